"""A SQLite file: one connection that writes, one that reads.

Every write is one unit, `BEGIN IMMEDIATE … COMMIT`, under one lock and out of reach of cancellation. Two
tasks that share a connection otherwise roll back each other's work, and a cancelled one leaves its
transaction open for the next. `synchronous=FULL`: what is said to be stored has been fsynced.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import aiosqlite

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.copies import keep
from amo_callback.store.migrate import migrate_sqlite
from amo_callback.store.rows import ticks
from amo_callback.store.statements import load_migrations, load_statements
from amo_callback.store.touched import Touched
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from amo_callback.model import Changed
    from amo_callback.ports import Clock

T = TypeVar("T")
Row = sqlite3.Row

_BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process's lock."""
_LOOK_AGAIN = 0.02
_MISCONFIGURED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")
"""What no second start mends; whatever else (busy, full) may pass."""
_OUT_OF_REACH = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
    "SQLITE_PROTOCOL",
    "ValueError",  # closed
)
"""What keeps everybody from storing anything; whatever else is one statement's own."""


@asynccontextmanager
async def open_database(path: Path, *, clock: Clock) -> AsyncIterator[Database]:
    """Open a database file, make it where there is none (0600), and bring its schema up to date."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the WAL beside it gets the same mode
    except OSError as error:
        raise ConfigurationError(f"storage.url: {path} cannot be opened: {error.strerror}") from None
    # A connection left open keeps its thread, and that the process: so each in its own context.
    async with (
        aiosqlite.connect(path, isolation_level=None) as writer,
        aiosqlite.connect(path, isolation_level=None) as reader,
    ):
        try:
            await _prepare(writer, clock)
            await migrate_sqlite(
                writer, load_migrations(), keep=lambda version: keep(path, version=version, now=clock.now())
            )
            await _prepare(reader, clock)
            await reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            if _name(error).startswith(_MISCONFIGURED):
                raise ConfigurationError(f"storage.url: {path} cannot be used: {_name(error)}") from None
            raise StoreUnavailable(_name(error)) from None
        yield Database(writer=writer, reader=reader, statements=load_statements(), clock=clock)


async def _prepare(database: aiosqlite.Connection, clock: Clock) -> None:
    database.row_factory = sqlite3.Row
    await database.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT * 1000:.0f}")
    await _log_ahead(database, clock)
    await database.execute("PRAGMA synchronous = FULL")


async def _log_ahead(database: aiosqlite.Connection, clock: Clock) -> None:
    """Turn the write-ahead log on; a file that another process is making at this moment is waited for.

    SQLite's own busy timeout does not do that here: two that both hold the file's lock to change its mode would
    wait for each other for ever.
    """
    give_up_at = clock.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            await database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _name(error).startswith("SQLITE_BUSY") or clock.monotonic() >= give_up_at:
                raise
            await clock.sleep(_LOOK_AGAIN)
        else:
            return


class Database:
    """Run named statements; raises `StoreUnavailable`, and remembers when the file was out of reach."""

    def __init__(
        self,
        *,
        writer: aiosqlite.Connection,
        reader: aiosqlite.Connection,
        statements: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._sql = statements
        self._clock = clock
        self._writing = asyncio.Lock()
        self._afterwards: list[Callable[[], None]] = []
        self._touched = Touched(statements)
        self._changes: list[Changed] = []
        self._listeners: list[Callable[[Changed], None]] = []
        self.failed_at: float | None = None
        self.failing: str | None = None

    async def read(self, statement: str, /, **values: object) -> list[Row]:
        """Run a statement that changes nothing."""
        try:
            return await self._execute(self._reader, statement, values)
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None

    async def write(self, statement: str, /, **values: object) -> list[Row]:
        """Run one statement as a unit of its own."""
        return await self.unit(lambda: self.run(statement, **values))

    async def unit(self, work: Callable[[], Awaitable[T]]) -> T:
        """Commit all that `work` runs, or nothing of it."""
        async with self._writing:
            return await unbroken(self._transaction(work))

    async def run(self, statement: str, /, **values: object) -> list[Row]:
        """Run a statement within a unit."""
        found = await self._execute(self._writer, statement, values)
        self._note(statement, values, found)
        return found

    def afterwards(self, told: Callable[[], None]) -> None:
        """Call `told` once the present unit is committed, and not where it is not."""
        self._afterwards.append(told)

    async def run_many(self, statement: str, /, rows: Sequence[Mapping[str, object]]) -> None:
        """Run a statement within a unit, once for each row of values: one after the other would take much longer."""
        await self._writer.executemany(self._sql[statement], [_parameters(values) for values in rows])
        for values in rows:
            self._note(statement, values, None)

    def watch(self, listener: Callable[[Changed], None]) -> None:
        """Let `listener` hear of every commit that changes connections, or whose they are."""
        self._listeners.append(listener)

    async def others_version(self) -> int:
        """Return SQLite's number for the file's content, which stays where the connection that is asked writes itself.

        So the one that writes is asked: what is seen there is another process's (https://sqlite.org/pragma.html).
        """
        try:
            [[version]] = await self._writer.execute_fetchall("PRAGMA data_version")
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return int(version)

    async def _transaction(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            result = await work()
            await self._writer.execute("COMMIT")
        except (sqlite3.Error, ValueError) as error:
            self.failing = _name(error)
            raise self._failed(error) from None
        finally:
            await self._roll_back()
            afterwards, self._afterwards = self._afterwards, []
            self._tell()  # in any case: a COMMIT that fails may have come about
        self.failing = None
        for told in afterwards:
            told()
        return result

    def _note(self, statement: str, values: Mapping[str, object], found: Sequence[Row] | None) -> None:
        changed = self._touched.by(statement, values, found)
        if changed is not None:
            self._changes.append(changed)

    def _tell(self) -> None:
        changes, self._changes = self._changes, []
        for changed in changes:
            for listener in self._listeners:
                listener(changed)

    async def _roll_back(self) -> None:
        """End a transaction that was not committed, so that the next unit finds none open."""
        try:
            if self._writer.in_transaction:
                await self._writer.execute("ROLLBACK")
        except (sqlite3.Error, ValueError):
            return  # the next BEGIN tells

    async def _execute(self, database: aiosqlite.Connection, statement: str, values: Mapping[str, object]) -> list[Row]:
        return list(await database.execute_fetchall(self._sql[statement], _parameters(values)))

    def _failed(self, error: BaseException) -> StoreUnavailable:
        if _name(error).startswith(_OUT_OF_REACH):
            self.failed_at = self._clock.monotonic()
        return StoreUnavailable(_name(error))


def _parameters(values: Mapping[str, object]) -> dict[str, object]:
    return {key: ticks(value) if isinstance(value, datetime) else value for key, value in values.items()}


def _name(error: BaseException) -> str:
    """Name an error without its text, which may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))
