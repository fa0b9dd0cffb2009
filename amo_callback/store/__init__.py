"""What outlives the process, on SQLite or PostgreSQL."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.config.database_url import SQLITE, is_postgres
from amo_callback.errors import ConfigurationError
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
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.clock import Clock
    from amo_callback.model import Changed
    from amo_callback.slots import Shared
    from amo_callback.store.database import Database


class Store(Marks, Connections, Grants, Owners, History, Outbox, Transfers, Seals, Surveys):
    """What outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

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


def database_file(url: str, *, folder: Path) -> Path | None:
    """Return the file that `url` names, `None` where that is PostgreSQL; raises `ConfigurationError`."""
    if is_postgres(url):
        return None
    if not url.startswith(SQLITE):
        raise ConfigurationError(f"storage.url: must begin with {SQLITE}")
    return folder / url.removeprefix(SQLITE)


@asynccontextmanager
async def open_store(url: str, *, folder: Path, clock: Clock, process: str = "amo-callback") -> AsyncIterator[Store]:
    """Open the store that `url` names, its schema brought up to date; relative paths start at `folder`.

    `process` is who writes, as the history tells it. Raises `ConfigurationError` where it cannot be opened at all.
    """
    async with _open_database(url, folder=folder, clock=clock, process=process) as database:
        yield Store(database, process=process)


def _open_database(url: str, *, folder: Path, clock: Clock, process: str) -> AbstractAsyncContextManager[Database]:
    file = database_file(url, folder=folder)
    if file is None:
        try:
            from amo_callback.store.postgres import open_postgres  # noqa: PLC0415 -- because it is an extra
        except ModuleNotFoundError:
            raise ConfigurationError(
                "storage.url: PostgreSQL takes another package: pip install 'amo-callback[postgres]'"
            ) from None
        return open_postgres(url, clock=clock, process=process)
    from amo_callback.store.sqlite import open_sqlite  # noqa: PLC0415 -- because the other engine may be asked for

    return open_sqlite(file, clock=clock)
