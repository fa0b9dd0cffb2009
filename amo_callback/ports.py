"""What the use cases need of the outside, as protocols: whoever fits may be passed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.model import (
        Claim,
        Connection,
        Event,
        Grant,
        Issued,
        Redirect,
        RefreshedPair,
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

    async def slot(self, priority: Priority) -> None:
        """Wait until the rate limit lets one more request go."""

    async def exchange(self, *, code: bytes, domain: str) -> Issued:
        """Spend an authorization code; one request, never repeated."""

    async def refresh(self, *, refresh_token: str, domain: str) -> Issued:
        """Spend a refresh token; one request, never repeated."""


class Store(Protocol):
    """What outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

    async def ping(self) -> None:
        """Read something."""

    async def canary(self, fresh: bytes) -> bytes:
        """Return the record by which the store tells whose keys wrote it; a new store keeps the fresh one."""

    async def prune(self, *, now: datetime, keep_grants: float) -> None:
        """Erase what expired grants hold, and forget them `keep_grants` seconds later."""

    # --- connections -----------------------------------------------------------------------------

    async def connection(self, connection_id: str) -> Connection | None:
        """Return one connection."""

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, the freshest active one first."""

    async def due(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[str]:
        """Return the ids of connections whose refresh is due and not claimed, oldest expiry first."""

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody has claimed."""

    async def claim(self, claim: Claim) -> Connection | None:
        """Commit a claim; `None` where somebody holds one, or the pair is no longer the one read."""

    async def save_refreshed(self, refreshed: RefreshedPair) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` where its version was superseded."""

    async def save_verdict(self, verdict: Verdict) -> bool:
        """Commit what became of an attempt without a pair; `False` where the attempt is no longer ours."""

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""

    # --- grants ----------------------------------------------------------------------------------

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""

    async def claim_grant(self, grant: Grant, *, now: datetime) -> Grant:
        """Begin a grant, or try a failed one again; who began it is told by the result's `attempt`."""

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""

    async def save_connected(self, grant: Grant, connection: Connection, *, token_iat: int | None) -> bool:
        """Commit a granted pair and its grant's end as one: renews the connection where there is one.

        A pair granted earlier than the connection's present grant (by AMO's `iat`) changes nothing: `False`.
        """
