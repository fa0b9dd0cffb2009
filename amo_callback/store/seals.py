"""What lies sealed in any table: read by the hundred, and put under another key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.sealing import Kind, Resealed, Sealed
from amo_callback.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.store.database import Unit


class Seals(Writer):
    """Whatever is sealed in `connections`, `grants`, `states` and `meta`."""

    async def count_sealed(self) -> int:
        """Count what lies sealed in the store, of any kind."""
        [[number]] = await self._database.read("count_sealed")
        return int(number)

    async def sealed(self, kind: Kind, *, after: str, limit: int) -> Sequence[Sealed]:
        """Return what lies sealed of one kind by its names, from the one after `after` on."""
        found = await self._database.read(f"sealed_{kind}", after=after, limit=limit)
        return [Sealed(kind=kind, name=row["name"], content=row["content"]) for row in found]

    async def reseal(self, resealed: Sequence[Resealed]) -> Sequence[Sealed]:
        """Commit the same under another key as one; return those that were left: other bytes are stored by then."""

        async def work(unit: Unit) -> Sequence[Sealed]:
            return [one.read for one in resealed if not await self._reseal(unit, one)]

        return await self._database.unit(work)

    async def _reseal(self, unit: Unit, one: Resealed) -> bool:
        read = one.read
        changed = await unit.run(f"reseal_{read.kind}", id=read.name, read=read.content, content=one.content)
        return bool(changed)
