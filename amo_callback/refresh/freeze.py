"""Freeze and thaw of single connections, or of all; a frozen connection is not refreshed.

A copy of the database on another host contains tokens that introspection accepts, but refreshing them there would break
the original's connections. A store is therefore frozen when another location (machine, folder or server) or a restored
backup is detected. It stays frozen until an operator thaws it, because only a person knows whether the original is
still in use. During a freeze, valid access tokens are handed out, and pending writes are stored. The SQL statement of
the claim enforces the freeze for all processes. `store.meta` stores the freeze, and decides which freeze replaces
another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.events import Event, Level, connection_event

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.model import Connection, Freeze


class FreezeSwitch:
    """Freezes and thaws connections; `machine` names the location of a local database."""

    def __init__(self, core: Core, *, machine: str) -> None:
        self._core = core
        self._machine = machine
        self.frozen: Freeze | None = None
        """The freeze of all connections, as last read from the store; `None` if they are not frozen."""

    async def begin(self) -> None:
        """Freeze all connections if the store was last used at another location."""
        self.adopt(await self._core.store.check_machine(self._machine))

    async def watch(self) -> None:
        """Read whether all connections are frozen, since another process may have frozen or thawed them."""
        self.adopt(await self._core.store.frozen())

    async def freeze_all(self, *, why: str) -> Freeze | None:
        """Freeze all connections, and return the freeze; refreshes in progress run to completion."""
        await self._core.store.freeze_all(why=why)
        await self.watch()
        return self.frozen

    async def thaw_all(self) -> None:
        """Thaw all connections, and record the store's current location."""
        await self._core.store.thaw_all(machine=self._machine)
        await self.watch()

    async def freeze(self, connection: Connection) -> None:
        """Freeze one connection."""
        frozen = connection_event("connection.frozen", connection)
        await self._core.store.freeze(connection.id, at=self._core.clock.now(), events=[frozen])

    async def thaw(self, connection: Connection) -> None:
        """Thaw one connection; a freeze of all connections continues to apply to it."""
        thawed = connection_event("connection.thawed", connection)
        await self._core.store.freeze(connection.id, at=None, events=[thawed])

    def adopt(self, frozen: Freeze | None) -> None:
        """Adopt the freeze that was read from the store, and report its start or end."""
        if frozen is not None and self.frozen is None:
            text = "once no other host uses these tokens, run `amo-callback connections thaw --all`"
            fields = {"since": frozen.at, "why": frozen.why, "text": text}
            self._core.observer(Event(name="service.frozen", level=Level.ERROR, fields=fields))
        elif frozen is None and self.frozen is not None:
            self._core.observer(Event(name="service.thawed"))
        self.frozen = frozen
