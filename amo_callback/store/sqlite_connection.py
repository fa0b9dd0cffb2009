"""Connections to a SQLite file, the size limit of its write-ahead log, and batches of jobs for a connection's thread.

Passing a job and its result between threads costs more than most statements, and an fsync costs the same for one
transaction as for fifty. Jobs submitted while a batch runs are therefore executed together in the next batch. A job
submitted while no batch runs is executed immediately.
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
"""The size limit of the write-ahead log in bytes: about the amount that SQLite writes between two checkpoints."""
_CHECKPOINT_WAIT = 0.1
"""The time in seconds that a checkpoint waits for readers; no commit is possible during the wait."""
BUSY_TIMEOUT = 5.0
"""The time in seconds that a statement waits for another process's lock."""
_RETRY = 0.02
_LARGEST = 64
"""The maximum number of jobs in a batch; in a larger batch, the first job would wait too long for its result."""


class SqliteConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs other functions."""

    def __init__(self, path: Path, *, mode: str = "rwc") -> None:
        super().__init__(partial(_connect, f"{path.absolute().as_uri()}?mode={mode}"), iter_chunk_size=64)

    async def __aenter__(self) -> Self:
        _ = await self
        return self

    async def run(self, work: Callable[..., T], *values: object) -> T:
        """Call `work` on the connection's thread, with the SQLite connection and `values` as arguments."""
        result: T = await self._execute(work, self._conn, *values)  # type: ignore[no-untyped-call]  # reason: untyped
        return result


def _connect(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT)
    connection.row_factory = sqlite3.Row
    return connection


async def prepare(database: aiosqlite.Connection, clock: Clock) -> None:
    """Configure durable commits and a write-ahead log of limited size."""
    await _enable_wal(database, clock)
    await database.execute("PRAGMA synchronous = FULL")
    await database.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")


async def _enable_wal(database: aiosqlite.Connection, clock: Clock) -> None:
    """Enable the write-ahead log; if another process is creating the file, wait for it.

    SQLite's busy timeout does not apply to the change of the journal mode, because two processes that both hold a lock
    would deadlock.
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
    """The size limit of a database's write-ahead log; used only on the writer's thread.

    SQLite appends each commit to the log, and copies the log into the database file at a checkpoint, every 1,000 pages.
    A commit restarts the log only if everything has been copied and no reader uses the log. `journal_size_limit`
    truncates the log only then. Overlapping readers, or a single long-running reader, therefore keep the log long.

    If the log is too long, the writer waits for the readers. Readers that begin during the wait use only the database
    file, so overlapping readers do not prolong the wait. A long-running reader does, so the wait is short and is not
    repeated after every commit.
    """

    def __init__(self, database: Path, *, busy_timeout: float) -> None:
        self._file = database.with_name(f"{database.name}-wal")
        self._busy_timeout = busy_timeout
        self._again_at = WAL_LIMIT

    def bound(self, writer: sqlite3.Connection) -> None:
        """Truncate the log after a commit if it is too long; a failure does not affect the commit."""
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
    """A queue of jobs that are executed in batches.

    `run` executes a batch. It returns the result or the exception of each job, or raises an exception for all jobs.
    """

    def __init__(self, run: Callable[[Sequence[J]], Awaitable[Sequence[Any]]], *, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: list[tuple[J, asyncio.Future[Any]]] = []
        self._batch: list[tuple[J, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, job: J) -> asyncio.Future[Any]:
        """Queue a job and return the future of its result; the job is executed even if its caller is cancelled."""
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
            except Exception as error:  # noqa: BLE001 -- passed to every caller
                results = [error] * len(jobs)
            for result, done in zip(results, futures, strict=True):
                if done.done():
                    continue  # the caller was cancelled
                if isinstance(result, BaseException):
                    done.set_exception(result)
                else:
                    done.set_result(result)
        self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Cancel the futures of all waiting jobs if the task was cancelled, which happens when the event loop ends."""
        if task.cancelled():
            self._task = None
            for _, done in (*self._batch, *self._waiting):
                done.cancel()
            self._waiting.clear()
