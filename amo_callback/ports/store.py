"""What outlives the process, as a protocol.

Changes of a connection take the `events` that they are: written with the change, or not at all.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from amo_callback.brought import Brought
    from amo_callback.event import Event, Notice, Recorded, Undelivered
    from amo_callback.grant import Grant, GrantedPair, IssuedState
    from amo_callback.model import Changed, Claim, Connection, Extension, Filter, Fleet, Freeze, RefreshedPair, Verdict
    from amo_callback.moving import Key, Record, Step, Table, Target
    from amo_callback.ports.shared import Shared
    from amo_callback.sealing import Kind, Resealed, Sealed
    from amo_callback.survey import Survey


TURN = timedelta(seconds=30)
"""For how long one of several instances has what is due to itself: as long as it may wait for its slots."""


class Store(Protocol):
    """What outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

    @property
    def keeps_time(self) -> bool:
        """Whether leases are told by the store's own clock, one for all instances."""

    @property
    def ahead(self) -> float:
        """Seconds by which this process's clock is ahead of that one."""

    @property
    def shared(self) -> Shared | None:
        """What all instances share beside it; `None` where it is one process's own."""

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every write of this process that changes connections, or whose they are.

        It hears after the commit, and before whoever wrote does; and of other processes' as soon as they can be heard
        of. It must not raise.
        """

    async def others_version(self) -> int:
        """Return a number that is another one once any other process has committed anything that was not told."""

    async def ping(self) -> None:
        """Read something."""

    async def canary(self, fresh: bytes) -> bytes:
        """Return the record by which the store tells whose keys wrote it; a new store keeps the fresh one."""

    async def prune(self, *, now: datetime, keep: float) -> None:
        """Erase what expired grants and states hold, and forget them `keep` seconds later."""

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed, as some process has found."""

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

    # --- frozen, and the time --------------------------------------------------------------------

    async def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""

    async def freeze_all(self, *, why: str, elsewhere: bool = False) -> bool:
        """Spend nothing from now on, the tokens living `elsewhere` maybe; `False` where that was so."""

    async def thaw_all(self, *, machine: str | None) -> bool:
        """Spend again, here: this machine is the store's from now on; `False` where it was not frozen.

        Where the tokens may have lived elsewhere meanwhile, all are due: so the dead are soon found out.
        """

    async def check_machine(self, machine: str) -> Freeze | None:
        """Return why nothing is spent, as `frozen` does; a store that was last used elsewhere is frozen now."""

    async def keep_time(self, *, now: Callable[[], datetime]) -> timedelta:
        """Note what time it is; where that is before what was noted last, take all times back by as much.

        Returns by how much: nothing, where the clock has not gone back.
        """

    # --- history ---------------------------------------------------------------------------------

    async def record(self, event: Event) -> None:
        """Remember what happened outside of any other write."""

    async def events(
        self,
        *,
        connection_id: str | None = None,
        account_id: str | None = None,
        owner: str | None = None,
        before: int | None = None,
        limit: int,
    ) -> Sequence[Recorded]:
        """Return what happened, newest first, from before an event's id on: to whom is named, or to all."""

    async def forget(self, *, now: datetime) -> bool:
        """Forget a step of what is too old to be asked about; `True` where there is more."""

    # --- notices ---------------------------------------------------------------------------------

    def on_notice(self, told: Callable[[], None]) -> None:
        """Tell of each notice that this process commits, or wants tried again: somebody delivers them."""

    async def notices(self, *, limit: int, after: int = 0) -> Sequence[Notice]:
        """Return what waits in the outbox or is parked there, in its order, from the one after a number on."""

    async def next_notice(self, *, now: datetime, length: timedelta, apart_from: Sequence[str] = ()) -> datetime | None:
        """Return when the next delivery comes due, where leases are of this `length`."""

    async def claim_notices(
        self, *, now: datetime, length: timedelta, lease: str, limit: int, apart_from: Sequence[str] = ()
    ) -> Sequence[Notice]:
        """Commit a lease of this `length` of notices that are due, each the first of its connection not parked."""

    async def notice_delivered(self, notice_id: str, *, events: Sequence[Event] = ()) -> bool:
        """Take a notice out of the outbox; `False` where it is gone already."""

    async def notice_failed(self, failed: Undelivered, *, events: Sequence[Event] = ()) -> bool:
        """Commit when it is tried again, or that it is parked; `False` where the lease is no longer ours."""

    async def retry_notices(self, notice_id: str | None) -> Sequence[str]:
        """Let a notice, or all that are parked, be tried now; return which these are."""

    # --- connections -----------------------------------------------------------------------------

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
        """Return connections whose refresh is due, those with an open attempt too, oldest expiry first.

        Where several instances share the store, each is given to one of them for a `turn`.
        """

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody is at."""

    async def probe(self, *, apart_from: Sequence[str]) -> Connection | None:
        """Return an active connection, the one due first."""

    async def look_ups(
        self, *, now: datetime, limit: int, apart_from: Sequence[str], turn: timedelta = TURN
    ) -> Sequence[str]:
        """Return the ids of connections whose tokens are to be looked up, each given to one instance for a `turn`."""

    async def fleet(self, *, now: datetime, since: datetime) -> Fleet:
        """Count the living, those of them whose access tokens live, and those given up since."""

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

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""

    async def postpone(
        self, connection: Connection, *, last_error: str, next_refresh_at: datetime, events: Sequence[Event] = ()
    ) -> bool:
        """Put off a refresh that was not begun; `False` where the connection has changed since it was read."""

    async def revive(self, connection: Connection, *, next_refresh_at: datetime, events: Sequence[Event] = ()) -> bool:
        """Make a connection active again; `False` where it has changed since it was read."""

    async def doubt(self, connection: Connection, *, events: Sequence[Event] = ()) -> bool:
        """Say that we may have spent the token of a connection given up; `False` where it has changed since."""

    async def disconnect(self, connection: Connection, *, at: datetime | None, events: Sequence[Event] = ()) -> bool:
        """Erase a connection's tokens, and who owned it; `False` where it has changed since it was read.

        A pair granted before `at` does not come back; without it, whatever was granted may be stored later.
        """

    async def freeze(self, connection_id: str, *, at: datetime | None, events: Sequence[Event] = ()) -> bool:
        """Spend nothing of one connection, or spend again where `at` is `None`; `False` where that was so."""

    async def warn(self, *, days: int, before: datetime, event: Callable[[Connection], Event]) -> Sequence[Event]:
        """Note, once for so many `days`, that refresh tokens of active connections end before this; tell of which."""

    async def switched_off(self, account_id: str, *, now: datetime, quiet: float) -> Sequence[str]:
        """Note AMO's hook: look-ups are due now, unless the last hook came less than `quiet` seconds ago."""

    async def look_up_again(self, connection: Connection, *, at: datetime | None, events: Sequence[Event] = ()) -> bool:
        """Set when its tokens are looked up next; `False` where it has changed since it was read."""

    # --- grants ----------------------------------------------------------------------------------

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""

    async def exchanging(self, *, now: datetime) -> Sequence[Grant]:
        """Return the grants whose code is being exchanged, or whose process died at it."""

    async def grant_by_ticket(self, ticket_hash: str) -> Grant | None:
        """Return the grant that a ticket stands for."""

    async def issue_state(self, issued: IssuedState) -> None:
        """Remember a state that is issued."""

    async def issued_state(self, state_hash: str) -> IssuedState | None:
        """Return what is known of a state that was issued."""

    async def claim_grant(
        self, grant: Grant, *, now: datetime, over: str | None = None, state_hash: str | None = None
    ) -> Grant:
        """Begin a grant, or try again `over` the attempt that was read, failed or with a lease that was seen to end.

        With it an issued state is used. Who began it is told by the result's `attempt`. Raises `Frozen`, and
        `InvalidState` where the state was used with another code, or is over.
        """

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""

    async def save_connected(self, granted: GrantedPair, *, events: Sequence[Event] = ()) -> Connection | None:
        """Commit a granted pair and its grant's end as one: renews the connection where there is one.

        A pair granted earlier than the connection's present grant (by AMO's `iat`), or before it was
        disconnected, changes nothing: `None`.
        """

    # --- owners ----------------------------------------------------------------------------------

    async def owners_of(self, ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the owners of each of these connections, who came first, first."""

    async def connections_owned(self, owner: str) -> Sequence[Connection]:
        """Return an owner's connections, the freshest active one first."""

    async def bind(self, connection_id: str, *, owner: str, accepted_at: datetime | None, first_only: bool) -> bool:
        """Make somebody an owner, by what AMO accepted then.

        `False` where the connection is gone, where whose it was has been forgotten since, or he has left since, and
        where it has another owner and `first_only` is said.
        """

    async def unbind(self, owner: str, *, at: datetime) -> Sequence[Event]:
        """Take somebody from all that is his; what has no owner left is disconnected.

        Returns what that was, as it is remembered. Raises `Frozen` where something of it is: that may live elsewhere.
        """

    # --- from elsewhere --------------------------------------------------------------------------

    async def count(self) -> int:
        """Count the connections that are not disconnected."""

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return those of these connections that there are."""

    async def bring(self, brought: Sequence[Brought]) -> Sequence[str]:
        """Commit connections from elsewhere as one, each with its event; return the ids of those that were left.

        One is left where the store has another one by now than it was meant to replace, or one that is being refreshed.
        """

    # --- sealed ----------------------------------------------------------------------------------

    async def count_sealed(self) -> int:
        """Count what lies sealed in the store, of any kind."""

    async def sealed(self, kind: Kind, *, after: str, limit: int) -> Sequence[Sealed]:
        """Return what lies sealed of one kind by its names, from the one after `after` on."""

    async def reseal(self, resealed: Sequence[Resealed]) -> Sequence[Sealed]:
        """Commit the same under another key as one; return those that were left: other bytes are stored by then."""

    # --- moved to another database ---------------------------------------------------------------

    async def place(self, machine: str) -> str:
        """Return a name for where the store is, given one for where this process believes it to be."""

    async def records(self, table: Table, *, after: Key | None, limit: int) -> Sequence[Record]:
        """Return rows of a table by their keys, from the one after `after` on."""

    async def count_records(self) -> Mapping[Table, int]:
        """Count the rows that a move brings, of each table."""

    async def leave(self, frozen: Freeze) -> Freeze:
        """Note of a store that is `frozen` so, that what it holds lives elsewhere; return how it is frozen now."""

    async def target(self, source: str) -> Target:
        """Return what this store is to a move from `source`; changes nothing."""

    async def coming(self) -> bool:
        """Tell whether all this store holds is still on its way into it."""

    async def begin_coming(self, source: str) -> Target:
        """Be the target of a move: frozen until it ends; only a new store, and one where it was begun."""

    async def take_over(self, step: Step, *, source: str) -> Sequence[Record]:
        """Commit a step of a move as one; return the connections that were left, for they are others than were read.

        Raises `CommandFailed` where this is no longer the target of that move.
        """

    async def end_coming(self, *, source: str, machine: str, frozen: Freeze | None) -> None:
        """End a move: all is here, and lives in this place; it stays `frozen` where the other one was by itself.

        Raises `CommandFailed` where this is no longer the target of that move.
        """
