"""Connections from elsewhere: many in one transaction, each only over what it was meant to replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.event import happened
from amo_callback.model import Status
from amo_callback.store import rows
from amo_callback.store.writer import Writer, every, json_list, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Event
    from amo_callback.model import Connection, ImportedConnection
    from amo_callback.store.database import Unit


class Transfers(Writer):
    """The table `connections`, by the hundred."""

    async def count(self) -> int:
        """Count the connections that are not disconnected."""
        [[number]] = await self._database.read("count_connections")
        return int(number)

    async def connections_by_id(self, ids: Sequence[str]) -> Sequence[Connection]:
        """Return those of these connections that there are."""
        found = await self._database.read("connections_by_id", ids=json_list(ids))
        return every(found, rows.connection)

    async def bring(self, brought: Sequence[ImportedConnection]) -> Sequence[str]:
        """Commit connections from elsewhere as one, each with its event; return the ids of those that were left."""

        async def work(unit: Unit) -> Sequence[str]:
            now = self._clock.now()
            # In one order: two that bring the same connections would else wait for each other.
            ordered = sorted(brought, key=lambda one: one.connection.id)
            await unit.run_many("bring", [{**_row(one), "now": now} for one in ordered])
            found = await unit.run("connections_by_id", ids=json_list([one.connection.id for one in brought]))
            stored = {row["id"]: row["sealed_pair"] for row in found}
            # No two sealings are the same: what is stored as it was given was written here.
            done = {one.connection.id for one in brought if stored[one.connection.id] == one.connection.sealed_pair}
            owners = [
                {"connection_id": one.connection.id, "owner": owner, "at": now}
                for one in brought
                if one.connection.id in done
                for owner in one.owners
            ]
            await unit.run_many("bring_owner", owners)
            events = [self._event_row(one.event, now) for one in brought if one.connection.id in done]
            await unit.run_many("save_event", events)
            for one in brought:
                if one.connection.id in done and (changed := _change_of_status(one)):
                    await self._record(unit, [changed], one.connection)
            return [one.connection.id for one in brought if one.connection.id not in done]

        return await self._database.unit(work)


def _change_of_status(brought: ImportedConnection) -> Event | None:
    """Return what others are notified of: a connection that was here, and is given up or lives again by this."""
    over, now = brought.replaces, brought.connection
    if over is None or over.status is now.status:
        return None
    if now.status is Status.NEEDS_REAUTH:
        return happened("connection.needs_reauth", now, told={"reason": now.reason})
    return happened("connection.recovered" if over.status is Status.NEEDS_REAUTH else "connection.connected", now)


def _row(brought: ImportedConnection) -> dict[str, object]:
    over = brought.replaces
    return {
        **values_of(brought.connection),
        "over_pair": over and over.sealed_pair,
        "over_version": over and over.pair_version,
        "over_attempt": over and over.attempt,
        "over_lease_until": over and over.lease_until,
    }
