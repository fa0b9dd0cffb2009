"""The `Store` port on SQLite."""

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


class SqliteStore(Marks, Connections, Grants, Owners, History, Outbox, Transfers, Seals, Surveys):
    """The `Store` port on SQLite: its parts, on one database."""

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""
        return self._database.failed_at

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""
        return self._database.failing

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every write of this process that changes connections, or whose they are."""
        self._database.watch(listener)

    async def others_version(self) -> int:
        """Return a number that is another one once any other process has committed anything."""
        return await self._database.others_version()
