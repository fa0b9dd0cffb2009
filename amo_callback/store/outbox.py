"""Notices: what waits to be delivered, who is at it, and what was given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.store import rows
from amo_callback.store.writer import Writer, every, json_list, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from amo_callback.event import Event, Notice, Undelivered
    from amo_callback.store.database import Unit


class Outbox(Writer):
    """The table `outbox`."""

    async def notices(self, *, limit: int, after: int = 0) -> Sequence[Notice]:
        """Return what waits in the outbox or is parked there, in its order, from the one after a number on."""
        return every(await self._database.read("notices", after=after, limit=limit), rows.notice)

    async def next_notice(self, *, now: datetime, length: timedelta, apart_from: Sequence[str] = ()) -> datetime | None:
        """Return when the next delivery comes due, where leases are of this `length`."""
        [row] = await self._database.read("next_notice", now=now, length=length, apart_from=json_list(apart_from))
        return None if row["at"] is None else rows.moment(row["at"])

    async def claim_notices(
        self, *, now: datetime, length: timedelta, lease: str, limit: int, apart_from: Sequence[str] = ()
    ) -> Sequence[Notice]:
        """Commit a lease of this `length` of notices that are due, each the first of its connection not parked."""
        found = await self._database.write(
            "claim_notices", now=now, length=length, lease=lease, limit=limit, apart_from=json_list(apart_from)
        )
        return every(found, rows.notice)

    async def notice_delivered(self, notice_id: str, *, events: Sequence[Event] = ()) -> bool:
        """Take a notice out of the outbox; `False` where it is gone already."""

        async def work(unit: Unit) -> bool:
            gone = await unit.run("notice_delivered", id=notice_id)
            await self._record(unit, events if gone else [])
            return bool(gone)

        return await self._database.unit(work)

    async def notice_failed(self, failed: Undelivered, *, events: Sequence[Event] = ()) -> bool:
        """Commit when it is tried again, or that it is parked; `False` where the lease is no longer ours."""

        async def work(unit: Unit) -> bool:
            changed = await unit.run("notice_failed", **values_of(failed), now=self._clock.now())
            await self._record(unit, events if changed else [])
            return bool(changed)

        return await self._database.unit(work)

    async def retry_notices(self, notice_id: str | None) -> Sequence[str]:
        """Let a notice, or all that are parked, be tried now; return which these are."""

        async def work(unit: Unit) -> Sequence[str]:
            found = await unit.run("retry_notices", id=notice_id, now=self._clock.now())
            self._tell_of_notices(unit)
            return [row["id"] for row in found]

        return await self._database.unit(work)
