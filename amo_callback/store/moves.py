"""All records as they are, read by the thousand from one database and written into another one.

The one they come into is frozen from before the first row to the last, and marked with where they come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import CommandFailed
from amo_callback.event import Event
from amo_callback.model import Freeze
from amo_callback.moving import Record, Step, Table, Target
from amo_callback.store.rows import freeze, freeze_value
from amo_callback.store.tables import LAYOUTS, Layout
from amo_callback.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.moving import Key
    from amo_callback.store.database import Unit
    from amo_callback.store.row import Row

_COMING = "connections are being moved here: `amo-callback connections move` ends it, once all are here"


class Moves(Writer):
    """Every table, and the marks `moving` and `moved`: from which place."""

    async def place(self, machine: str) -> str:
        """Return a name for where the store is, given one for where this process believes it to be."""
        return await self._database.place(machine)

    async def records(self, table: Table, *, after: Key | None, limit: int) -> Sequence[Record]:
        """Return rows of a table by their keys, from the one after `after` on."""
        layout = LAYOUTS[table]
        values = layout.first if after is None else after
        start = {f"after_{name}": value for name, value in zip(layout.key, values, strict=True)}
        found = await self._database.read(f"move_read_{table}", **start, limit=limit)
        return [_record(row, layout) for row in found]

    async def count_records(self) -> Mapping[Table, int]:
        """Count the rows that a move brings, of each table."""
        found = {}
        for table in Table:
            [[number]] = await self._database.read(f"move_count_{table}")
            found[table] = int(number)
        return found

    async def target(self, source: str) -> Target:
        """Return what this store is to a move from `source`; changes nothing."""
        return await self._database.unit(lambda unit: _target(unit, source))

    async def coming(self) -> bool:
        """Tell whether all this store holds is still on its way into it."""
        return bool(await self._database.read("coming"))

    async def begin_coming(self, source: str) -> Target:
        """Be the target of a move: frozen until it ends; only a new store, and one where it was begun."""

        async def work(unit: Unit) -> Target:
            await unit.run("lock_for_freezing")
            target = await _target(unit, source)
            if target is Target.NEW:
                value = freeze_value(Freeze(at=self._clock.now(), why=_COMING, elsewhere=True))
                await unit.run("freeze_over", value=value)
                await unit.run("begin_coming", value=source.encode())
            return target

        return await self._database.unit(work)

    async def take_over(self, step: Step, *, source: str) -> Sequence[Record]:
        """Commit a step of a move as one; return the connections that were left, for they are others than were read.

        Connections are never deleted. Raises `CommandFailed` where this is no longer the target of that move.
        """

        async def work(unit: Unit) -> Sequence[Record]:
            await _check_coming(unit, source)
            if step.table is Table.CONNECTIONS:
                await unit.run_many(f"move_add_{step.table}", [record.values for record in step.new])
                return [here for there, here in step.changed if not await _replace(unit, there, here)]
            written = [*step.new, *(here for _, here in step.changed)]
            await unit.run_many(f"move_drop_{step.table}", [_key(step.table, record) for record in step.gone])
            await unit.run_many(f"move_put_{step.table}", [record.values for record in written])
            await unit.run("go_on_numbering")
            return []

        return await self._database.unit(work)

    async def end_coming(self, *, source: str, machine: str, frozen: Freeze | None) -> None:
        """End a move: all is here, and lives in this place; it stays `frozen` where the other one was by itself.

        Nothing is made due: what lies here was spent nowhere else. Leases have been waited for, so that none is left
        whose end another clock has written. Raises `CommandFailed` as `take_over` does.
        """

        async def work(unit: Unit) -> None:
            await _check_coming(unit, source)
            await unit.run("end_leases")
            await unit.run("end_coming")
            await unit.run("save_machine", value=(await self._database.place(machine)).encode())
            if frozen is None:
                await unit.run("thaw_all")
            else:
                await unit.run("freeze_over", value=freeze_value(frozen))
            await self._record(unit, [Event(name="service.moved")])

        await self._database.unit(work)

    async def leave(self, frozen: Freeze) -> Freeze:
        """Note of a store that is `frozen` so, that what it holds lives elsewhere; return how it is frozen now."""

        async def work(unit: Unit) -> Freeze:
            await unit.run("lock_for_freezing")  # nobody thaws it, and spends, between this look and what is written
            found = await unit.run("frozen")
            if not found or freeze(found[0]["value"]) != frozen:
                raise CommandFailed("it was thawed at this moment: nothing leaves it")
            left = Freeze(at=frozen.at, why=frozen.why, elsewhere=True)
            await unit.run("freeze_over", value=freeze_value(left))
            return left

        return frozen if frozen.elsewhere else await self._database.unit(work)


def _record(row: Row, layout: Layout) -> Record:
    values = dict(zip(layout.columns, row, strict=True))  # by their names each column would be looked for
    for name in layout.flags:
        values[name] = bool(values[name])
    return Record(key=tuple(values[name] for name in layout.key), values=values)


def _key(table: Table, record: Record) -> Mapping[str, object]:
    return dict(zip(LAYOUTS[table].key, record.key, strict=True))


async def _target(unit: Unit, source: str) -> Target:
    coming, moved, frozen = [await unit.run(name) for name in ("coming", "moved", "frozen")]
    place = source.encode()
    if coming:
        if coming[0]["value"] != place:
            return Target.TAKEN
        return Target.BEGUN if frozen and freeze(frozen[0]["value"]).why == _COMING else Target.THAWED
    if moved and moved[0]["value"] == place:
        return Target.DONE
    return Target.TAKEN if moved or await unit.run("is_taken") else Target.NEW


async def _check_coming(unit: Unit, source: str) -> None:
    if await _target(unit, source) is not Target.BEGUN:
        raise CommandFailed(
            "the new database was thawed, or taken for something else, before all was there: what it holds may have "
            "been spent, so it is not written over"
        )


async def _replace(unit: Unit, there: Record, here: Record) -> bool:
    over = {"over_pair": there.values["sealed_pair"], "over_version": there.values["pair_version"]}
    return bool(await unit.run(f"move_replace_{Table.CONNECTIONS}", **here.values, **over))
