"""A SQLite store for a simulation, which runs in the simulation's thread and without fsync.

It executes the real statements. A thread for each connection would take longer than the rest of a simulated step.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from amo_callback.clock import Clock
from amo_callback.store import Store
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import load_migrations
from amo_callback.store.sqlite import SqliteStore
from amo_callback.store.sqlite_connection import WriteAheadLog

_MEMORY = Path("/dev/shm")  # noqa: S108 -- because a simulation has no power failure
_MIGRATIONS = load_migrations(Engine.SQLITE)


class _Connection:
    """A database connection with the methods that the store uses."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.row_factory = sqlite3.Row
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = OFF")

    async def run(self, work: Callable[..., Any], *values: object) -> Any:
        return work(self.database, *values)

    async def execute_fetchall(self, sql: str) -> Any:
        return self.database.execute(sql).fetchall()


class _SharedClock(SqliteStore):
    """A SQLite store whose clock is shared by all processes, as PostgreSQL's is."""

    has_shared_clock = True


@contextmanager
def open_in_process_store(*, clock: Clock, shared: bool) -> Iterator[Store]:
    """Open a store on a new file; if `shared`, the store's clock decides on stored times, as PostgreSQL's does."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        path = Path(folder) / "simulation.db"
        writer, reader = _Connection(path), _Connection(path)
        with closing(writer.database), closing(reader.database):
            for statement in (statement for migration in _MIGRATIONS for statement in migration):
                writer.database.execute(statement)
            yield (_SharedClock if shared else SqliteStore)(
                writer=cast("Any", writer),
                reader=cast("Any", reader),
                wal=WriteAheadLog(path, busy_timeout=0),
                clock=clock,
                process="simulation",
            )
