"""Freeze and thaw: a frozen connection is not refreshed, and no connection is refreshed while all are frozen.

A copy of the database on another host contains tokens that introspection accepts, but refreshing them there would break
the original's connections. A store that detects another machine, another folder or a restored backup is therefore
frozen until an operator thaws it, because only a person knows whether the original is still in use. Valid access tokens
are still handed out, and pending writes are still stored. The claim's SQL statement enforces the freeze, so no process
can miss it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.events import Event, Level, connection_event

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.model import Connection, Freeze


class FreezeSwitch:
    """Freezes and thaws. `machine` names the store's location; thawing all connections records it."""

    def __init__(self, core: Core, *, machine: str) -> None:
        self._core = core
        self._machine = machine
        self.frozen: Freeze | None = None
        """When and why all connections were frozen, as last read; `None` if they are not."""

    async def begin(self) -> None:
        """Compare the store's location with its last one, and freeze all connections if it differs."""
        self.adopt(await self._core.store.check_machine(self._machine))

    async def watch(self) -> None:
        """Read what another process or the command has frozen or thawed."""
        self.adopt(await self._core.store.frozen())

    async def freeze_all(self, *, why: str) -> Freeze | None:
        """Freeze all connections; refreshes in progress are finished."""
        await self._core.store.freeze_all(why=why)
        await self.watch()
        return self.frozen

    async def thaw_all(self) -> None:
        """Thaw all connections, and record this machine as the store's location."""
        await self._core.store.thaw_all(machine=self._machine)
        await self.watch()

    async def freeze(self, connection: Connection) -> None:
        """Freeze one connection."""
        frozen = connection_event("connection.frozen", connection)
        await self._core.store.freeze(connection.id, at=self._core.clock.now(), events=[frozen])

    async def thaw(self, connection: Connection) -> None:
        """Thaw one connection; it is still not refreshed while all connections are frozen."""
        thawed = connection_event("connection.thawed", connection)
        await self._core.store.freeze(connection.id, at=None, events=[thawed])

    def adopt(self, frozen: Freeze | None) -> None:
        """Adopt the state from the store."""
        if frozen is not None and self.frozen is None:
            fields = {"since": frozen.at, "why": frozen.why, "text": "amo-callback connections thaw --all"}
            self._core.observer(Event(name="service.frozen", level=Level.ERROR, fields=fields))
        elif frozen is None and self.frozen is not None:
            self._core.observer(Event(name="service.thawed"))
        self.frozen = frozen
