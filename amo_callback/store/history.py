"""What happened, kept for a while."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.store import rows
from amo_callback.store.writer import Writer, every

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Event, Recorded
    from amo_callback.store.database import Unit

_KEEP_EVENTS = timedelta(days=90)
"""A refresh token's whole life: as long as somebody may ask who spent it."""
_KEEP_NOTICES = timedelta(days=7)
"""Where nobody delivers them: for whoever begins to."""
_KEEP_UNDELIVERED = timedelta(days=30)
"""Those that were given up; and where they are delivered, any that wait: none is lost in silence."""
_STEP = 1000
"""Rows that are deleted in one transaction."""
_LAST = 2**62
_EVENTS = {
    None: "events",
    "account_id": "events_of_account",
    "owner": "events_of_owner",
    "connection_id": "events_of",
}
"""The statement that finds events, by what is named of whose they are."""


class History(Writer):
    """The table `events`, and what is too old in that and in `outbox`."""

    async def record(self, event: Event) -> None:
        """Remember what happened outside of any other write."""

        async def work(unit: Unit) -> None:
            await self._record(unit, [event])

        await self._database.unit(work)

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
        given = {"account_id": account_id, "owner": owner, "connection_id": connection_id}
        named = {name: value for name, value in given.items() if value is not None}
        whose = next(iter(named), None)
        until = _LAST if before is None else before
        found = await self._database.read(_EVENTS[whose], before=until, limit=limit, **named)
        return every(found, rows.recorded)

    async def prune(self, *, now: datetime, keep: float) -> None:
        """Erase what expired grants and states hold, and forget them `keep` seconds later; step by step."""
        before = now - timedelta(seconds=keep)
        for kind in ("grants", "states"):
            while len(await self._database.write(f"erase_{kind}", now=now, limit=_STEP)) == _STEP:
                continue
            while len(await self._database.write(f"forget_{kind}", before=before, limit=_STEP)) == _STEP:
                continue
        await self._database.tidy()

    async def forget(self, *, now: datetime) -> bool:
        """Forget a step of what is too old to be asked about; `True` where there is more."""

        async def work(unit: Unit) -> bool:
            gone = await unit.run("prune_events", before=now - _KEEP_EVENTS, limit=_STEP)
            keep = _KEEP_NOTICES if self._told is None else _KEEP_UNDELIVERED
            await unit.run("prune_notices", before=now - keep, limit=_STEP)
            await unit.run("prune_parked", before=now - _KEEP_UNDELIVERED, limit=_STEP)
            return len(gone) == _STEP

        return await self._database.unit(work)
