"""Connections from elsewhere: many in one transaction, each only over what it was meant to replace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from amo_callback.store import rows
from amo_callback.store.connections import values_of
from amo_callback.store.writer import Writer, every

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.model import Brought, Connection


class Transfers(Writer):
    """The table `connections`, by the hundred."""

    async def count(self) -> int:
        """Count the connections that are not disconnected."""
        [row] = await self._database.read("count")
        return int(row["number"])

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return those of these connections that there are."""
        found = await self._database.read("connections_by_id", ids=json.dumps(list(ids)))
        return every(found, rows.connection)

    async def bring(self, brought: Sequence[Brought]) -> Sequence[str]:
        """Commit connections from elsewhere as one, each with its event; return the ids of those that were left."""

        async def unit() -> Sequence[str]:
            now, left = self._clock.now(), []
            for one in brought:
                over = one.over
                changed = await self._database.run(
                    "bring",
                    **values_of(one.connection),
                    over_pair=over and over.sealed_pair,
                    over_version=over and over.pair_version,
                    now=now,
                )
                if changed:
                    await self._record([one.event], one.connection)
                else:
                    left.append(one.connection.id)
            return left

        return await self._database.unit(unit)
