"""What happened, and who is notified of it, in the store, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from amo_callback.event import Event, Notice, Recorded, Undelivered


class History(Protocol):
    """What happened, kept for a while."""

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


class Outbox(Protocol):
    """Notices that wait to be delivered."""

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
