"""What the store knows of itself: whose keys wrote it, where it lives, what time it was, whether it is frozen."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.event import Event, Level
from amo_callback.model import AmoBlock, Freeze
from amo_callback.store.rows import amo_block, amo_block_value, freeze, freeze_value, moment, ticks
from amo_callback.store.writer import Writer, pair_obtained_mark

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.store.database import Unit

_STEPPED = timedelta(seconds=60)
"""By how much a clock must go back for its times to be taken back: less harms no token."""


class Marks(Writer):
    """The table `meta`."""

    async def canary(self, fresh: bytes) -> bytes:
        """Return the store's canary; a new store keeps the fresh one."""

        async def work(unit: Unit) -> bytes:
            await unit.run("save_canary", value=fresh)
            [row] = await unit.run("canary")
            return bytes(row["value"])

        return await self._database.unit(work)

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed."""
        return bool(await self._database.read("deaths_held"))

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""
        await self._database.write("hold_deaths", value=now.isoformat().encode())

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

        async def work(unit: Unit) -> None:
            await unit.run("release_deaths")
            await unit.run("believe_deaths")

        await self._database.unit(work)

    async def pair_obtained(self, client_id: str) -> bool:
        """Return whether AMO has ever issued a pair that is or was stored here to this client id."""
        return bool(await self._database.read("pair_obtained", name=pair_obtained_mark(client_id)))

    async def refused_credentials(self) -> str | None:
        """Return what AMO says against our credentials, as some process has found; `None` where it says nothing."""
        found = await self._database.read("refused_credentials")
        return bytes(found[0]["value"]).decode() if found else None

    async def refuse_credentials(self, words: str) -> None:
        """Store what AMO says against our credentials, for every process and the next start."""
        await self._database.write("refuse_credentials", value=words.encode())

    async def accept_credentials(self) -> None:
        """Store that AMO accepts our credentials."""
        await self._database.write("accept_credentials")

    # --- frozen ----------------------------------------------------------------------------------

    async def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""
        found = await self._database.read("frozen")
        return freeze(found[0]["value"]) if found else None

    async def freeze_all(self, *, why: str, elsewhere: bool = False) -> bool:
        """Spend nothing from now on, the tokens living `elsewhere` maybe; `False` where that was so."""

        async def work(unit: Unit) -> bool:
            return await self._freeze_all(unit, why, elsewhere=elsewhere)

        return await self._database.unit(work)

    async def thaw_all(self, *, machine: str | None) -> bool:
        """Spend again, here: this machine is the store's from now on; `False` where it was not frozen.

        Where the tokens may have lived elsewhere meanwhile, all are due: so the dead are soon found out.
        """

        async def work(unit: Unit) -> bool:
            await unit.run("lock_for_freezing")  # what is read is what is thawed
            found = await unit.run("frozen")
            thawed = bool(await unit.run("thaw_all"))
            if thawed:
                if freeze(found[0]["value"]).elsewhere:
                    await unit.run("all_due", now=self._clock.now())
                if machine is not None:
                    here = await self._database.place(machine)
                    await unit.run("save_machine", value=here.encode())
                await self._record(unit, [Event(name="service.thawed")])
            return thawed

        return await self._database.unit(work)

    async def check_machine(self, machine: str) -> Freeze | None:
        """Return why nothing is spent, as `frozen` does; a store that was last used elsewhere is frozen now."""

        async def work(unit: Unit) -> Freeze | None:
            here = await self._database.place(machine)
            found = await unit.run("machine")
            if not found:
                await unit.run("save_machine", value=here.encode())
            elif found[0]["value"] != here.encode():
                await self._freeze_all(
                    unit,
                    "the database was last used in another place (another machine, folder or server): if it is in use "
                    "there, this copy must spend nothing",
                    elsewhere=True,
                )
            frozen = await unit.run("frozen")
            return freeze(frozen[0]["value"]) if frozen else None

        return await self._database.unit(work)

    async def _freeze_all(self, unit: Unit, why: str, *, elsewhere: bool) -> bool:
        value = freeze_value(Freeze(at=self._clock.now(), why=why, elsewhere=elsewhere))
        await unit.run("lock_for_freezing")
        frozen = bool(await unit.run("freeze_all", value=value))
        if frozen:
            await self._record(unit, [Event(name="service.frozen", level=Level.WARNING, fields={"reason": why})])
        return frozen

    # --- AMO blocks our address ------------------------------------------------------------------

    async def amo_block(self) -> AmoBlock | None:
        """Return the block of our address, as some process has found it."""
        [row] = await self._database.read("amo_block")
        return None if row["value"] is None else amo_block(row["value"])

    async def begin_amo_block(self, probed: str, *, probe_every: timedelta) -> None:
        """Store that AMO blocks our address, unless that is stored; `probed` is the connection that showed it."""

        async def work(unit: Unit) -> None:
            [row] = await unit.run("amo_block")
            now = moment(row["clock"])
            block = AmoBlock(since=now, probe_at=now + probe_every, exchange_at=now, probed=(probed,))
            if await unit.run("begin_amo_block", value=amo_block_value(block)):
                await self._record(unit, [Event(name="amo_blocked.started", level=Level.ERROR)])

        await self._database.unit(work)

    async def end_amo_block(self) -> None:
        """Store that AMO no longer blocks our address."""

        async def work(unit: Unit) -> None:
            if ended := await unit.run("end_amo_block"):
                fields = {"since": amo_block(ended[0]["value"]).since}
                await self._record(unit, [Event(name="amo_blocked.ended", fields=fields)])

        await self._database.unit(work)

    async def take_amo_probe(self, connection_id: str, *, every: timedelta) -> bool:
        """Reserve the next probe for a connection; `False` where none may leave yet, by the store's clock."""

        def taken(block: AmoBlock, now: datetime) -> AmoBlock | None:
            if now < block.probe_at:
                return None
            round_over = connection_id in block.probed  # each of the others has been presented, too
            probed = (connection_id,) if round_over else (*block.probed, connection_id)
            return dataclasses.replace(block, probe_at=now + every, probed=probed)

        return await self._take_at_block(taken)

    async def take_amo_exchange(self, *, every: timedelta) -> bool:
        """Reserve the next exchange; `False` where none may leave yet, by the store's clock."""

        def taken(block: AmoBlock, now: datetime) -> AmoBlock | None:
            return dataclasses.replace(block, exchange_at=now + every) if now >= block.exchange_at else None

        return await self._take_at_block(taken)

    async def _take_at_block(self, taken: Callable[[AmoBlock, datetime], AmoBlock | None]) -> bool:
        async def work(unit: Unit) -> bool:
            [row] = await unit.run("amo_block")
            if row["value"] is None:
                return True  # the block has ended
            block = taken(amo_block(row["value"]), moment(row["clock"]))
            if block is None:
                return False
            return bool(await unit.run("change_amo_block", value=amo_block_value(block), before=row["value"]))

        return await self._database.unit(work)

    async def _shift_amo_block(self, unit: Unit, *, back: timedelta, now: datetime) -> None:
        [row] = await unit.run("amo_block")
        if row["value"] is None:
            return
        block = amo_block(row["value"])
        times = {"since": block.since, "probe_at": block.probe_at, "exchange_at": block.exchange_at}
        shifted = {name: time - back if time > now else time for name, time in times.items()}
        value = amo_block_value(AmoBlock(**shifted, probed=block.probed))
        await unit.run("change_amo_block", value=value, before=row["value"])

    # --- time ------------------------------------------------------------------------------------

    async def keep_time(self, *, now: Callable[[], datetime]) -> timedelta:
        """Note what time it is; where that is before what was noted last, take all times back by as much.

        Returns by how much: nothing, where the clock has not gone back. Where several instances share a database
        nothing is taken back: one whose clock is wrong must not shift the others' times.
        """
        if self._database.keeps_time:
            await self._database.write("save_seen_at", value=str(ticks(now())).encode())
            return timedelta(0)

        async def work(unit: Unit) -> timedelta:
            time = now()  # read under the lock: another process may have noted a later one while this one waited
            found = await unit.run("seen_at")
            back = moment(int(found[0]["value"])) - time if found else timedelta(0)
            await unit.run("save_seen_at", value=str(ticks(time)).encode())
            if back < _STEPPED:
                return timedelta(0)
            by = back // timedelta(microseconds=1)
            await unit.run("shift_times", by=by, now=time)
            await unit.run("shift_notices", by=by, now=time)
            await self._shift_amo_block(unit, back=back, now=time)
            await self._record(
                unit, [Event(name="clock.went_back", level=Level.WARNING, fields={"seconds": back.total_seconds()})]
            )
            return back

        return await self._database.unit(work)
