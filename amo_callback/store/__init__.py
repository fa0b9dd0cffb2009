"""What outlives the process: the `Store` port on a database."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from amo_callback.ports import Clock, Store

SQLITE = "sqlite:///"


def database_file(url: str, *, folder: Path) -> Path:
    """Return the file that `url` names; raises `ConfigurationError`."""
    if not url.startswith(SQLITE):
        raise ConfigurationError(f"storage.url: must begin with {SQLITE}")
    return folder / url.removeprefix(SQLITE)


@asynccontextmanager
async def open_store(url: str, *, folder: Path, clock: Clock, process: str = "amo-callback") -> AsyncIterator[Store]:
    """Open the store that `url` names, its schema brought up to date; relative paths start at `folder`.

    `process` is who writes, as the history tells it. Raises `ConfigurationError` where it cannot be opened at all.
    """
    path = database_file(url, folder=folder)
    from amo_callback.store.database import open_database  # noqa: PLC0415 -- because another engine may be asked for
    from amo_callback.store.sqlite import SqliteStore  # noqa: PLC0415 -- the same

    async with open_database(path, clock=clock) as database:
        yield SqliteStore(database, clock=clock, process=process)
