"""The `Store` port on a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.store.connections import Connections
from amo_callback.store.grants import Grants
from amo_callback.store.history import History
from amo_callback.store.marks import Marks
from amo_callback.store.outbox import Outbox
from amo_callback.store.owners import Owners
from amo_callback.store.seals import Seals
from amo_callback.store.surveys import Surveys
from amo_callback.store.transfers import Transfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.model import Changed
    from amo_callback.ports import Clock, Shared


class DatabaseStore(Marks, Connections, Grants, Owners, History, Outbox, Transfers, Seals, Surveys):
    """The `Store` port: its parts, on one database."""

    @property
    def keeps_time(self) -> bool:
        """Whether leases are told by the database's own clock, one for all instances."""
        return self._database.keeps_time

    @property
    def clock(self) -> Clock:
        """The clock of what is stored: on PostgreSQL the database's, which all instances share."""
        return self._database.clock

    @property
    def ahead(self) -> float:
        """Seconds by which this machine's wall clock is ahead of that one."""
        return self._database.ahead

    @property
    def shared(self) -> Shared | None:
        """What all instances share beside it; `None` where it is one process's own."""
        return self._database.shared

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""
        return self._database.failed_at

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""
        return self._database.failing

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every commit that changes connections, or whose they are."""
        self._database.watch(listener)

    async def others_version(self) -> int:
        """Return a number that is another one once any other process has committed anything that was not told."""
        return await self._database.others_version()
