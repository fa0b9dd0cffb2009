"""The store, on SQLite or PostgreSQL.

Another engine requires:

- a module with subclasses of `Store` and `engine.Transaction`;
- a member of `engine.Engine`, its parameter sign in `engine`, and lines with its prefix (like `--sqlite `) in the
  statements and the schema;
- migrations in `migrate`, and support for its URL in `config.database_url`, `database_file` and `open_store`;
- a check in `cli.checks`.

Backups (`backup`, `rebuild`) support SQLite only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.config.database_url import SQLITE, is_postgres
from amo_callback.errors import ConfigurationError
from amo_callback.store.connections import Connections
from amo_callback.store.grants import Grants
from amo_callback.store.history import History
from amo_callback.store.meta import Meta

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.clock import Clock


class Store(Meta, Connections, Grants, History):
    """The store of all persistent data. Every method raises `StoreUnavailable` if the database cannot be used."""


def database_file(url: str, *, folder: Path) -> Path | None:
    """Return the file of a SQLite URL, or `None` for a PostgreSQL URL; raises `ConfigurationError` for other URLs."""
    if is_postgres(url):
        return None
    if not url.startswith(SQLITE):
        raise ConfigurationError(f"storage.url must begin with {SQLITE} or postgresql://")
    return folder / url.removeprefix(SQLITE)


def open_store(
    url: str, *, folder: Path, clock: Clock, process: str = "amo-callback", read_only: bool = False
) -> AbstractAsyncContextManager[Store]:
    """Open the store at `url` and upgrade its schema; relative paths are resolved against `folder`.

    `process` is the name of this process in the history. With `read_only`, nothing is created, upgraded or written.
    Raises `ConfigurationError` if the store cannot be opened (`OtherSchema` if its schema belongs to another version),
    and `StoreUnavailable` if the failure may be temporary.
    """
    file = database_file(url, folder=folder)
    if file is None:
        try:
            from amo_callback.store.postgres import open_postgres  # noqa: PLC0415 -- asyncpg is an optional dependency
        except ModuleNotFoundError:
            raise ConfigurationError(
                "storage.url: PostgreSQL requires another package; run pip install 'amo-callback[postgres]'"
            ) from None
        return open_postgres(url, clock=clock, process=process, read_only=read_only)
    from amo_callback.store.sqlite import open_sqlite  # noqa: PLC0415 -- only the engine in use is loaded

    return open_sqlite(file, clock=clock, process=process, read_only=read_only)
