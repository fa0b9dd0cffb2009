"""What outlives the process: the `Store` port on a database."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.config.database_url import SQLITE, is_postgres
from amo_callback.errors import ConfigurationError
from amo_callback.store.whole import DatabaseStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.ports import Clock, Store
    from amo_callback.store.database import Database


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
        yield DatabaseStore(database, process=process)


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
