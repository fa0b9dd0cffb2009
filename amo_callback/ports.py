"""What the use cases need of the outside, as protocols: whoever fits may be passed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from amo_callback.event import Event
    from amo_callback.grant import Grant, GrantedPair, Redirect
    from amo_callback.model import (
        Account,
        Claim,
        Connection,
        Extension,
        Fleet,
        Issued,
        RefreshedPair,
        Sighting,
        Verdict,
    )


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that no step of the wall clock changes."""

    async def sleep(self, seconds: float) -> None:
        """Sleep."""


class Observer(Protocol):
    """Whoever wants to know what happens."""

    def __call__(self, event: Event) -> None:
        """Take note; never raise."""


class Priority(IntEnum):
    """Who goes first at AMO's rate limit."""

    PEOPLE = 0
    BACKGROUND = 1


class AmoOAuth(Protocol):
    """The vendor's OAuth."""

    @property
    def client_id(self) -> str:
        """The integration that tokens are granted to."""

    @property
    def timeout(self) -> float:
        """Seconds that one request may take."""

    def read_redirect(self, query: bytes) -> Redirect:
        """Read the raw query of AMO's redirect; what is wrong with it is in its `error`."""

    def check_domain(self, host: str | None) -> str:
        """Return the account's host, the default one for `None`; raises `PersonMustAct`."""

    def account_of(self, access_token: str) -> Account:
        """Return whose access token it is, as far as it tells."""

    def is_hook(self, *, account_id: str, client_id: str, signature: str) -> bool:
        """Tell whether AMO signed that our integration was switched off in this account."""

    async def slot(self, priority: Priority) -> None:
        """Wait until the rate limit lets one more request go."""

    async def exchange(self, *, code: bytes, domain: str, not_after: float) -> Issued:
        """Spend an authorization code; one request, never repeated, and not sent after this monotonic time."""

    async def refresh(self, *, refresh_token: str, domain: str, not_after: float) -> Issued:
        """Spend a refresh token; one request, never repeated, and not sent after this monotonic time."""

    async def look_up(self, *, refresh_token: str, api_domain: str | None, account_id: str) -> Sighting:
        """Ask about a refresh token without spending it, and where its account lives; never raises."""

    async def ask_about(self, *, access_token: str, domain: str, account_id: str) -> Sighting:
        """Ask about an access token, and where its account lives; spends nothing and never raises."""


class Store(Protocol):
    """What outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""

    async def ping(self) -> None:
        """Read something."""

    async def canary(self, fresh: bytes) -> bytes:
        """Return the record by which the store tells whose keys wrote it; a new store keeps the fresh one."""

    async def prune(self, *, now: datetime, keep_grants: float) -> None:
        """Erase what expired grants hold, and forget them `keep_grants` seconds later."""

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed, as some process has found."""

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

    # --- connections -----------------------------------------------------------------------------

    async def connection(self, connection_id: str) -> Connection | None:
        """Return one connection."""

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, the freshest active one first."""

    async def due(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[Connection]:
        """Return connections whose refresh is due, those with an open attempt too, oldest expiry first."""

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody is at."""

    async def probe(self, *, apart_from: Sequence[str]) -> Connection | None:
        """Return an active connection, the one due first."""

    async def look_ups(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[str]:
        """Return the ids of connections whose tokens are to be looked up."""

    async def fleet(self, *, now: datetime, since: datetime) -> Fleet:
        """Count the living, those of them whose access tokens live, and those given up since."""

    async def claim(self, claim: Claim) -> Connection | None:
        """Commit a claim; `None` where the connection has changed since it was read."""

    async def extend(self, extension: Extension) -> bool:
        """Commit a longer lease and the account's new host; `False` where the attempt is no longer ours."""

    async def save_refreshed(self, refreshed: RefreshedPair) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` where its version was superseded."""

    async def save_verdict(self, verdict: Verdict) -> Connection | None:
        """Commit what became of an attempt without a pair; `None` where the attempt is no longer ours."""

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""

    async def postpone(self, connection: Connection, *, last_error: str, next_refresh_at: datetime) -> bool:
        """Put off a refresh that was not begun; `False` where the connection has changed since it was read."""

    async def reseal(self, *, connection_id: str, before: bytes, sealed_pair: bytes) -> bool:
        """Put the same pair under another key; `False` where the stored bytes are no longer those read."""

    async def revive(self, connection: Connection, *, next_refresh_at: datetime) -> bool:
        """Make a connection active again; `False` where it has changed since it was read."""

    async def disconnect(self, connection: Connection, *, at: datetime | None) -> bool:
        """Erase a connection's tokens; `False` where it has changed since it was read.

        A pair granted before `at` does not come back; without it, whatever was granted may be stored later.
        """

    async def switched_off(self, account_id: str, *, now: datetime, quiet: float) -> Sequence[str]:
        """Note AMO's hook: look-ups are due now, unless the last hook came less than `quiet` seconds ago."""

    async def look_up_again(self, connection: Connection, *, at: datetime | None) -> bool:
        """Set when its tokens are looked up next; `False` where it has changed since it was read."""

    # --- grants ----------------------------------------------------------------------------------

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""

    async def claim_grant(self, grant: Grant, *, now: datetime) -> Grant:
        """Begin a grant, or try a failed one again; who began it is told by the result's `attempt`."""

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""

    async def save_connected(self, granted: GrantedPair) -> Connection | None:
        """Commit a granted pair and its grant's end as one: renews the connection where there is one.

        A pair granted earlier than the connection's present grant (by AMO's `iat`), or before it was
        disconnected, changes nothing: `None`.
        """


class RescueFiles(Protocol):
    """A folder for pairs that the store does not take. Its methods block, and raise `OSError`."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole, and so that a power failure does not lose it."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def read(self) -> Mapping[str, bytes | None]:
        """Return what each file holds; `None` of one that cannot be read."""

    def reserve(self) -> bool:
        """Keep some of the disk free for it; tell whether it is kept."""
