"""Connections in the store, as a protocol.

Changes take the `events` that they are: written with the change, or not at all.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from amo_callback.event import Event
    from amo_callback.model import Claim, Connection, Extension, Filter, Fleet, RefreshedPair, Successes, Verdict
    from amo_callback.survey import Survey


TURN = timedelta(seconds=30)
"""For how long one of several instances has what is due to itself: as long as it may wait for its slots."""


class Connections(Protocol):
    """Connections, and all that happens to one."""

    async def connection(self, connection_id: str) -> Connection | None:
        """Return one connection."""

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, the freshest active one first."""

    async def page(self, *, after: str, limit: int, only: Filter) -> Sequence[Connection]:
        """Return connections by their ids, from the one after `after` on."""

    async def attempts(self) -> Sequence[Connection]:
        """Return the connections with an open attempt."""

    async def due(
        self, *, now: datetime, limit: int, apart_from: Sequence[str], turn: timedelta = TURN
    ) -> Sequence[Connection]:
        """Return connections whose refresh is due, those with an open attempt too, earliest due first.

        Rows whose times cannot be right (`schedule.is_impossible`) are due, too.

        Where several instances share the store, each is given to one of them for a `turn`.
        """

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody is at."""

    async def probe(self, *, apart_from: Sequence[str], turn: timedelta) -> Connection | None:
        """Return an active connection with a refresh token: the most recent success first, failed attempts last.

        Where several instances share the store, one of them is given probes for a `turn`.
        """

    async def look_ups(
        self, *, now: datetime, limit: int, apart_from: Sequence[str], turn: timedelta = TURN
    ) -> Sequence[str]:
        """Return the ids of connections whose tokens are to be looked up, each given to one instance for a `turn`."""

    async def fleet(self, *, now: datetime, since: datetime) -> Fleet:
        """Count the living, those of them whose access tokens live, and those given up since."""

    async def successes(self, *, now: datetime) -> Successes:
        """Return what AMO has accepted of all connections."""

    async def survey(self, *, now: datetime, late: datetime) -> Survey:
        """Count connections and notices; as overdue the refreshes that were due before `late`. Quick for any fleet."""

    async def claim(self, claim: Claim, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a claim; `None` where the connection has changed since it was read, or is frozen."""

    async def extend(self, extension: Extension, *, events: Sequence[Event] = ()) -> bool:
        """Commit a longer lease and the account's new host; `False` where the attempt is no longer ours."""

    async def save_refreshed(self, refreshed: RefreshedPair, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` where its version was superseded."""

    async def save_verdict(self, verdict: Verdict, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit what became of an attempt without a pair; `None` where the attempt is no longer ours."""

    async def give_up(
        self,
        connection: Connection,
        *,
        last_error: str,
        now: datetime,
        look_up_at: datetime,
        events: Sequence[Event] = (),
    ) -> bool:
        """Apply a suspended terminal answer; `False` where the connection has changed since it was read."""

    async def accept_token(self, connection: Connection) -> None:
        """Forget refusals and a suspended answer: introspection accepts the refresh token of this very pair."""

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""

    async def postpone(
        self, connection: Connection, *, last_error: str, next_refresh_at: datetime | None, events: Sequence[Event] = ()
    ) -> bool:
        """Put off a refresh that was not begun; `False` where the connection has changed since it was read."""

    async def retry_hosts(self, *, now: datetime) -> None:
        """Make due the refreshes that were put off because of the connection's host, and forget that they were."""

    async def revive(self, connection: Connection, *, next_refresh_at: datetime, events: Sequence[Event] = ()) -> bool:
        """Make a connection active again; `False` where it has changed since it was read."""

    async def doubt(self, connection: Connection, *, events: Sequence[Event] = ()) -> bool:
        """Say that we may have spent the token of a connection given up; `False` where it has changed since."""

    async def disconnect(self, connection: Connection, *, on_request: bool, events: Sequence[Event] = ()) -> bool:
        """Erase a connection's tokens, and who owned it; `False` where it has changed since it was read.

        `on_request`, the pair of a grant that was claimed before is not stored later; otherwise it is.
        """

    async def freeze(self, connection_id: str, *, at: datetime | None, events: Sequence[Event] = ()) -> bool:
        """Spend nothing of one connection, or spend again where `at` is `None`; `False` where that was so."""

    async def warn(self, *, days: int, before: datetime, event: Callable[[Connection], Event]) -> Sequence[Event]:
        """Note, once for so many `days`, that refresh tokens of active connections end before this; tell of which.

        Without a refresh token it is the access token.
        """

    async def expire_missing(self, *, now: datetime, event: Callable[[Connection], Event]) -> Sequence[Event]:
        """Set connections without a refresh token to `needs_reauth`, `missing`, whose access token has expired.

        Those whose access token has not expired become active again: the clock was wrong. Returns their events.
        """

    async def switched_off(self, account_id: str, *, shortest: timedelta, quiet: timedelta) -> Sequence[str]:
        """Note AMO's hook; return the ids of the connections whose look-up is pending because of it.

        The pause since a connection's last look-up is the stored one, or the `shortest` after so `quiet` a time.
        """

    async def begin_look_up(self, connection: Connection, *, again_in: timedelta) -> Connection | None:
        """Note that a look-up begins; `None` where the connection has changed, or another process has begun it.

        Where no result is written, the look-up is due again after `again_in`.
        """

    async def look_up_again(
        self,
        connection: Connection,
        *,
        at: datetime | None,
        pause: timedelta | None = None,
        events: Sequence[Event] = (),
    ) -> bool:
        """Set when its tokens are looked up next, and the pause before that; `False` where it has changed since.

        Where a hook came since it was read, it is looked up when the pause is over.
        """
