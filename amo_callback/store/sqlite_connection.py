"""Connections to a SQLite file, the size of its write-ahead log, and jobs for a connection's thread in batches.

To hand a job to a thread and to return its result costs more than most statements do, and an fsync costs as much for
one transaction as for fifty. So jobs that are submitted while a batch runs are executed together in the next one; a
single job is executed at once.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import aiosqlite

from amo_callback.store.backup import error_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from amo_callback.clock import Clock

T = TypeVar("T")
J = TypeVar("J")

WAL_LIMIT = 4 * 1024 * 1024
"""Bytes of the write-ahead log that are kept when it begins anew: about what SQLite writes between two checkpoints."""
_CHECKPOINT_WAIT = 0.1
"""Seconds that a checkpoint waits for the readers; no commit is possible meanwhile."""
BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process's lock."""
_RETRY = 0.02
_LARGEST = 64
"""Jobs of a batch at most, so that the first of them need not wait for long."""


class SqliteConnection(aiosqlite.Connection):
    """The library's connection, whose thread also runs functions of ours."""

    def __init__(self, path: Path, *, mode: str = "rwc") -> None:
        super().__init__(partial(_connect, f"{path.absolute().as_uri()}?mode={mode}"), iter_chunk_size=64)

    async def __aenter__(self) -> Self:
        _ = await self  # opens it, and is the same
        return self

    async def run(self, work: Callable[..., T], *values: object) -> T:
        """Run `work` with SQLite's connection and values on the connection's thread."""
        result: T = await self._execute(work, self._conn, *values)  # type: ignore[no-untyped-call]  # reason: its own
        return result


def _connect(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT)
    connection.row_factory = sqlite3.Row
    return connection


async def prepare(database: aiosqlite.Connection, clock: Clock) -> None:
    """Have what a commit has written on the disk, and in a write-ahead log of a limited length."""
    await _enable_wal(database, clock)
    await database.execute("PRAGMA synchronous = FULL")
    await database.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")


async def _enable_wal(database: aiosqlite.Connection, clock: Clock) -> None:
    """Turn the write-ahead log on; wait for another process that is making the file at this moment.

    SQLite's own busy timeout does not do that here: two that both hold the file's lock to change its mode would
    wait for each other for ever.
    """
    give_up_at = clock.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            await database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not error_name(error).startswith("SQLITE_BUSY") or clock.monotonic() >= give_up_at:
                raise
            await clock.sleep(_RETRY)
        else:
            return


class WriteAheadLog:
    """The size of one database's write-ahead log; every call is made on the writer's thread.

    SQLite writes each commit to the log and copies it into the database file from time to time (a checkpoint, each
    1,000 pages). It begins the log anew only at a commit that finds everything copied and no reader that uses the log;
    and only then does `journal_size_limit` shorten the file. So two things keep it long: readers that overlap, and a
    reader that stays. Against the first, the writer waits for the readers once the log is too long: those that begin
    meanwhile read the database file alone, so the wait ends with the readers that are there. Against the second nothing
    helps but its end, so the wait is short, and is not repeated for every commit.
    """

    def __init__(self, database: Path, *, busy_timeout: float) -> None:
        self._file = database.with_name(f"{database.name}-wal")
        self._busy_timeout = busy_timeout
        self._again_at = WAL_LIMIT

    def bound(self, writer: sqlite3.Connection) -> None:
        """Shorten the log after a commit where it is too long; the commit stands, whatever becomes of that."""
        with suppress(OSError, sqlite3.Error):
            size = self._file.stat().st_size
            if size <= WAL_LIMIT:
                self._again_at = WAL_LIMIT
            elif size > self._again_at:
                self._again_at = size + WAL_LIMIT
                try:
                    writer.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT * 1000:.0f}")
                    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    writer.execute(f"PRAGMA busy_timeout = {self._busy_timeout * 1000:.0f}")


class Batcher(Generic[J]):
    """A queue of jobs; `run` returns the result of each of a batch, or its exception, or raises for all of them."""

    def __init__(self, run: Callable[[Sequence[J]], Awaitable[Sequence[Any]]], *, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: list[tuple[J, asyncio.Future[Any]]] = []
        self._batch: list[tuple[J, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, job: J) -> asyncio.Future[Any]:
        """Return the future result of a job, which is executed whether or not anything waits for it."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run_waiting(), name=self._name)
            self._task.add_done_callback(self._ended)
        return done

    async def _run_waiting(self) -> None:
        while self._waiting:
            self._batch, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
            jobs, futures = zip(*self._batch, strict=True)
            try:
                results = await self._run(jobs)
            except Exception as error:  # noqa: BLE001 -- because each caller must get it, whatever it is
                results = [error] * len(jobs)
            for result, done in zip(results, futures, strict=True):
                if done.done():
                    continue  # its caller was cancelled
                if isinstance(result, BaseException):
                    done.set_exception(result)
                else:
                    done.set_result(result)
        self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Cancel whatever waits where the loop ends, also before a batch has begun."""
        if task.cancelled():
            self._task = None
            for _, done in (*self._batch, *self._waiting):
                done.cancel()
            self._waiting.clear()
