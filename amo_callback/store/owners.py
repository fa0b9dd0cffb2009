"""Owners: whose a connection is, among the app's users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen
from amo_callback.event import Event, happened
from amo_callback.store import rows
from amo_callback.store.writer import Writer, every, json_list

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from amo_callback.model import Connection


class Owners(Writer):
    """The table `owners`."""

    async def owners_of(self, ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the owners of each of these connections, who came first, first."""
        owners: dict[str, list[str]] = {name: [] for name in ids}
        for row in await self._database.read("owners_of", ids=json_list(ids)):
            owners[row["connection_id"]].append(row["owner"])
        return owners

    async def connections_owned(self, owner: str) -> Sequence[Connection]:
        """Return an owner's connections, the freshest active one first."""
        return every(await self._database.read("connections_owned", owner=owner), rows.connection)

    async def bind(self, connection_id: str, *, owner: str, at: datetime, first_only: bool) -> bool:
        """Make somebody an owner; `False` where the connection is gone, or has another one and `first_only` is said."""

        async def unit() -> bool:
            owners = await self._owners(connection_id)
            if owner in owners:
                return True
            if owners and first_only:
                return False
            return await self._bind(connection_id, owner=owner, at=at)

        return await self._database.unit(unit)

    async def unbind(self, owner: str, *, at: datetime) -> Sequence[Event]:
        """Take somebody from all that is his; what has no owner left is disconnected. Raises `Frozen`.

        Returns what that was, as it is remembered.
        """

        async def unit() -> Sequence[Event]:
            if await self._database.run("frozen"):
                raise Frozen
            owned = every(await self._database.run("connections_owned", owner=owner), rows.connection)
            return [await self._take(connection, owner=owner, at=at) for connection in owned]

        return await self._database.unit(unit)

    async def _take(self, connection: Connection, *, owner: str, at: datetime) -> Event:
        if await self._owners(connection.id) == [owner]:
            told = {"reason": "asked by its owner", "owner": owner}
            gone = happened("connection.disconnected", connection, told=told)
            await self._database.run("disconnect", id=connection.id, row_version=connection.row_version, at=at)
        else:
            gone = happened("owner.unbound", connection, told={"owner": owner})
        await self._record([gone], connection)
        await self._database.run("unbind_owner", connection_id=connection.id, owner=owner)
        return gone
