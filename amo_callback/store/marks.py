"""What the store knows of itself: whose keys wrote it, where it lives, what time it was, whether it is frozen."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.event import Event, Level
from amo_callback.model import Freeze
from amo_callback.store.rows import freeze, freeze_value, moment, ticks
from amo_callback.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPPED = timedelta(seconds=60)
"""By how much a clock must go back for its times to be taken back: less harms no token."""


class Marks(Writer):
    """The table `meta`."""

    async def ping(self) -> None:
        """Read something."""
        await self._database.read("ping")

    async def canary(self, fresh: bytes) -> bytes:
        """Return the store's canary; a new store keeps the fresh one."""

        async def unit() -> bytes:
            await self._database.run("save_canary", value=fresh)
            [row] = await self._database.run("canary")
            return bytes(row["value"])

        return await self._database.unit(unit)

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed."""
        return bool(await self._database.read("deaths_held"))

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""
        await self._database.write("hold_deaths", value=now.isoformat().encode())

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

        async def unit() -> None:
            await self._database.run("release_deaths")
            await self._database.run("believe_deaths")

        await self._database.unit(unit)

    # --- frozen ----------------------------------------------------------------------------------

    async def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""
        found = await self._database.read("frozen")
        return freeze(found[0]["value"]) if found else None

    async def freeze_all(self, *, why: str, elsewhere: bool = False) -> bool:
        """Spend nothing from now on, the tokens living `elsewhere` maybe; `False` where that was so."""

        async def unit() -> bool:
            return await self._freeze_all(why, elsewhere=elsewhere)

        return await self._database.unit(unit)

    async def thaw_all(self, *, machine: str | None) -> bool:
        """Spend again, here: this machine is the store's from now on; `False` where it was not frozen.

        Where the tokens may have lived elsewhere meanwhile, all are due: so the dead are soon found out.
        """

        async def unit() -> bool:
            found = await self._database.run("frozen")
            thawed = bool(await self._database.run("thaw_all"))
            if thawed:
                if freeze(found[0]["value"]).elsewhere:
                    await self._database.run("all_due", now=self._clock.now())
                if machine is not None:
                    await self._database.run("save_machine", value=machine.encode())
                await self._record([Event(name="service.thawed")])
            return thawed

        return await self._database.unit(unit)

    async def check_machine(self, machine: str) -> Freeze | None:
        """Return why nothing is spent, as `frozen` does; a store that was last used elsewhere is frozen now."""

        async def unit() -> Freeze | None:
            found = await self._database.run("machine")
            if not found:
                await self._database.run("save_machine", value=machine.encode())
            elif found[0]["value"] != machine.encode():
                await self._freeze_all(
                    "the database was last used on another machine or in another folder: if it is in use there, "
                    "this copy must spend nothing",
                    elsewhere=True,
                )
            frozen = await self._database.run("frozen")
            return freeze(frozen[0]["value"]) if frozen else None

        return await self._database.unit(unit)

    async def _freeze_all(self, why: str, *, elsewhere: bool) -> bool:
        value = freeze_value(Freeze(at=self._clock.now(), why=why, elsewhere=elsewhere))
        frozen = bool(await self._database.run("freeze_all", value=value))
        if frozen:
            await self._record([Event(name="service.frozen", level=Level.WARNING, fields={"reason": why})])
        return frozen

    # --- time ------------------------------------------------------------------------------------

    async def keep_time(self, *, now: Callable[[], datetime]) -> timedelta:
        """Note what time it is; where that is before what was noted last, take all times back by as much.

        Returns by how much: nothing, where the clock has not gone back.
        """

        async def unit() -> timedelta:
            time = now()  # read under the lock: another process may have noted a later one while this one waited
            found = await self._database.run("seen_at")
            back = moment(int(found[0]["value"])) - time if found else timedelta(0)
            await self._database.run("save_seen_at", value=str(ticks(time)).encode())
            if back < _STEPPED:
                return timedelta(0)
            by = back // timedelta(microseconds=1)
            await self._database.run("shift_times", by=by, now=time)
            await self._database.run("shift_leaves", by=by, now=time)
            await self._database.run("shift_notices", by=by, now=time)
            await self._record(
                [Event(name="clock.went_back", level=Level.WARNING, fields={"seconds": back.total_seconds()})]
            )
            return back

        return await self._database.unit(unit)
