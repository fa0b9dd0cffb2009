"""Frozen: nothing is spent, of one connection or of all, until somebody thaws it.

A copy of the database that is started elsewhere holds tokens that probe as good, and to spend them kills the
connections of whoever works with the original. So a store that finds itself on another machine, in another folder or
restored is frozen, and only a person can tell whether the original still lives. Live tokens are handed out, and what
was paid for is stored. What enforces it is the claim's own statement: no process can miss it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.events import Event, Level, connection_event

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.model import Connection, Freeze


class FreezeSwitch:
    """Freeze and thaw. `machine` names where the store is; a person who thaws says that it belongs there."""

    def __init__(self, core: Core, *, machine: str) -> None:
        self._core = core
        self._machine = machine
        self.frozen: Freeze | None = None
        """Since when nothing is spent, and why, as of the last look."""

    async def begin(self) -> None:
        """Look where the store is: one that was last used elsewhere spends nothing."""
        self.adopt(await self._core.store.check_machine(self._machine))

    async def watch(self) -> None:
        """Read what other processes, or the command, have frozen or thawed."""
        self.adopt(await self._core.store.frozen())

    async def freeze_all(self, *, why: str) -> Freeze | None:
        """Spend nothing from now on; what is in flight goes on to its end."""
        await self._core.store.freeze_all(why=why)
        await self.watch()
        return self.frozen

    async def thaw_all(self) -> None:
        """Spend again, on this machine from now on."""
        await self._core.store.thaw_all(machine=self._machine)
        await self.watch()

    async def freeze(self, connection: Connection) -> None:
        """Spend nothing of one connection."""
        frozen = connection_event("connection.frozen", connection)
        await self._core.store.freeze(connection.id, at=self._core.clock.now(), events=[frozen])

    async def thaw(self, connection: Connection) -> None:
        """Spend again of one connection; while all are frozen, it stays so."""
        thawed = connection_event("connection.thawed", connection)
        await self._core.store.freeze(connection.id, at=None, events=[thawed])

    def adopt(self, frozen: Freeze | None) -> None:
        """Take over what is stored."""
        if frozen is not None and self.frozen is None:
            fields = {"since": frozen.at, "why": frozen.why, "text": "amo-callback connections thaw --all"}
            self._core.observer(Event(name="service.frozen", level=Level.ERROR, fields=fields))
        elif frozen is None and self.frozen is not None:
            self._core.observer(Event(name="service.thawed"))
        self.frozen = frozen
