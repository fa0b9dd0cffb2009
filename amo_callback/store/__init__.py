"""The store, on SQLite or PostgreSQL."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.config.database_url import SQLITE, is_postgres
from amo_callback.errors import ConfigurationError
from amo_callback.store.connections import Connections
from amo_callback.store.grants import Grants
from amo_callback.store.history import History
from amo_callback.store.meta import Meta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.clock import Clock
    from amo_callback.model import ChangeNotice
    from amo_callback.rate_limit import SharedLimits
    from amo_callback.store.engine import Database


class Store(Meta, Connections, Grants, History):
    """All that outlives the process. Every method raises `StoreUnavailable` where it cannot do its work."""

    @property
    def has_shared_clock(self) -> bool:
        """Whether the database's own clock decides about leases, one for all instances."""
        return self._database.has_shared_clock

    @property
    def clock(self) -> Clock:
        """The clock of what is stored: on PostgreSQL the database's, which all instances share."""
        return self._database.clock

    @property
    def clock_skew(self) -> float:
        """Seconds by which this machine's wall clock is ahead of `clock`."""
        return self._database.clock_skew

    @property
    def shared(self) -> SharedLimits | None:
        """The limits that all instances share; `None` where it is one process's own."""
        return self._database.shared

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it was last out of reach."""
        return self._database.failed_at

    @property
    def last_write_error(self) -> str | None:
        """The error of the last write; `None` where it succeeded."""
        return self._database.last_write_error

    def subscribe(self, listener: Callable[[ChangeNotice], None]) -> None:
        """Call `listener` with every committed change of connections or of their owners."""
        self._database.subscribe(listener)

    async def data_version(self) -> int:
        """Return a number that changes when another process has committed a change of which it has not notified."""
        return await self._database.data_version()


def database_file(url: str, *, folder: Path) -> Path | None:
    """Return the file that `url` names, `None` where that is PostgreSQL; raises `ConfigurationError`."""
    if is_postgres(url):
        return None
    if not url.startswith(SQLITE):
        raise ConfigurationError(f"storage.url: must begin with {SQLITE}")
    return folder / url.removeprefix(SQLITE)


def open_store(
    url: str, *, folder: Path, clock: Clock, process: str = "amo-callback", read_only: bool = False
) -> AbstractAsyncContextManager[Store]:
    """Open the store that `url` names, its schema brought up to date; relative paths start at `folder`.

    `process` is this process's name in the history. `read_only`, nothing is made, upgraded or written. Raises
    `ConfigurationError` where it cannot be opened at all, `OtherSchema` where it would have to be upgraded first.
    """
    return _opened(_open_database(url, folder, clock=clock, process=process, read_only=read_only))


@asynccontextmanager
async def _opened(opening: AbstractAsyncContextManager[Database]) -> AsyncIterator[Store]:
    async with opening as database:
        yield Store(database)


def _open_database(
    url: str, folder: Path, *, clock: Clock, process: str, read_only: bool
) -> AbstractAsyncContextManager[Database]:
    file = database_file(url, folder=folder)
    if file is None:
        try:
            from amo_callback.store.postgres import open_postgres  # noqa: PLC0415 -- because it is an extra
        except ModuleNotFoundError:
            raise ConfigurationError(
                "storage.url: PostgreSQL takes another package: pip install 'amo-callback[postgres]'"
            ) from None
        return open_postgres(url, clock=clock, process=process, read_only=read_only)
    from amo_callback.store.sqlite import open_sqlite  # noqa: PLC0415 -- because the other engine may be asked for

    return open_sqlite(file, clock=clock, process=process, read_only=read_only)
