"""Owners: whose a connection is, among the app's users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen
from amo_callback.event import Event, happened
from amo_callback.store import rows
from amo_callback.store.writer import Writer, every, json_list

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.model import Connection
    from amo_callback.store.database import Unit


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

    async def bind(self, connection_id: str, *, owner: str, grant_no: int, first_only: bool) -> bool:
        """Make somebody an owner, by a grant with this number.

        `False` where the connection is gone, where whose it was has been forgotten since, or he has left since, and
        where it has another owner and `first_only` is said.
        """
        if owner in (await self.owners_of([connection_id]))[connection_id]:
            return True  # told again, as often as he asks: nothing is written

        async def work(unit: Unit) -> bool:
            await unit.run("lock_connection", id=connection_id)
            owners = await self._owners(unit, connection_id)
            if owner in owners:
                return True
            if owners and first_only:
                return False
            return await self._bind(unit, connection_id, owner=owner, grant_no=grant_no)

        return await self._database.unit(work)

    async def unbind(self, owner: str) -> Sequence[Event]:
        """Take somebody from all that is his; what has no owner left is disconnected.

        Returns what that was, as it is remembered. Raises `Frozen` where something of it is: that may live elsewhere.
        """
        if not await self.connections_owned(owner):
            return []  # as often as he asks: nothing is written

        async def work(unit: Unit) -> Sequence[Event]:
            await unit.run("lock_owned", owner=owner)
            owned = every(await unit.run("connections_owned", owner=owner), rows.connection)
            if any(connection.frozen for connection in owned):
                raise Frozen
            serial = await self._next_serial(unit)
            return [await self._take(unit, connection, owner=owner, serial=serial) for connection in owned]

        return await self._database.unit(work)

    async def _take(self, unit: Unit, connection: Connection, *, owner: str, serial: int) -> Event:
        last = await self._owners(unit, connection.id) == [owner]
        told = {"owner": owner, "reason": "asked by its owner" if last else None}
        gone = happened("connection.disconnected" if last else "owner.unbound", connection, told=told)
        await self._record(unit, [gone], connection)
        if last:
            await unit.run(
                "disconnect", id=connection.id, row_version=connection.row_version, serial=serial, on_request=True
            )
            await unit.run("forget_owners", connection_id=connection.id)
        else:
            await unit.run("unbind_owner", connection_id=connection.id, owner=owner, serial=serial)
        return gone
