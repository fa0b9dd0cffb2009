"""Connections to a SQLite file, the size limit of its write-ahead log, and batches of jobs for a connection's thread.

Passing a job and its result between threads costs more than most statements, and an fsync costs the same for one
transaction as for fifty. Jobs submitted while a batch runs are therefore executed together in the next batch; a single
job is executed immediately.
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
"""The size in bytes to which the write-ahead log is truncated: about what SQLite writes between two checkpoints."""
_CHECKPOINT_WAIT = 0.1
"""Seconds that a checkpoint waits for readers; meanwhile no commit is possible."""
BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process's lock."""
_RETRY = 0.02
_LARGEST = 64
"""The maximum number of jobs in a batch, so that its first job does not wait long."""


class SqliteConnection(aiosqlite.Connection):
    """An aiosqlite connection whose thread also runs other functions."""

    def __init__(self, path: Path, *, mode: str = "rwc") -> None:
        super().__init__(partial(_connect, f"{path.absolute().as_uri()}?mode={mode}"), iter_chunk_size=64)

    async def __aenter__(self) -> Self:
        _ = await self
        return self

    async def run(self, work: Callable[..., T], *values: object) -> T:
        """Run `work` with the SQLite connection and `values` on the connection's thread."""
        result: T = await self._execute(work, self._conn, *values)  # type: ignore[no-untyped-call]  # reason: its own
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
    """Enable the write-ahead log; wait for another process that is creating the file.

    SQLite's busy timeout does not apply: two processes that both lock the file to change its mode would deadlock.
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
    """The size limit of a database's write-ahead log; called only on the writer's thread.

    SQLite appends each commit to the log and copies it into the database file at a checkpoint, every 1,000 pages. It
    restarts the log only at a commit that finds everything copied and no reader on the log, and only then does
    `journal_size_limit` truncate the file. Overlapping readers and a reader that stays therefore keep the log long.
    Against the first, the writer waits for the readers when the log is too long; readers that begin meanwhile use the
    database file only, so the wait ends. Against the second nothing helps, so the wait is short and is not repeated for
    every commit.
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
    """A queue of jobs. `run` executes a batch: it returns the result or exception of each job, or raises for all."""

    def __init__(self, run: Callable[[Sequence[J]], Awaitable[Sequence[Any]]], *, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: list[tuple[J, asyncio.Future[Any]]] = []
        self._batch: list[tuple[J, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, job: J) -> asyncio.Future[Any]:
        """Return the future result of a job, which is executed even if its caller is cancelled."""
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
            except Exception as error:  # noqa: BLE001 -- passed on to every caller
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
        """Cancel all waiting callers when the event loop ends."""
        if task.cancelled():
            self._task = None
            for _, done in (*self._batch, *self._waiting):
                done.cancel()
            self._waiting.clear()
