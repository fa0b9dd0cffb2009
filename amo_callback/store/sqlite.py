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
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import aiosqlite

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.copies import keep
from amo_callback.store.database import Database, Row, Unit
from amo_callback.store.migrate import migrate_sqlite
from amo_callback.store.rows import microseconds, ticks
from amo_callback.store.statements import Engine, load_migrations, load_statements
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from amo_callback.ports import Clock
    from amo_callback.store.touched import Touched

T = TypeVar("T")

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
async def open_sqlite(path: Path, *, clock: Clock) -> AsyncIterator[SqliteDatabase]:
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
                writer,
                load_migrations(Engine.SQLITE),
                keep=lambda version: keep(path, version=version, now=clock.now()),
            )
            await _prepare(reader, clock)
            await reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            if _name(error).startswith(_MISCONFIGURED):
                raise ConfigurationError(f"storage.url: {path} cannot be used: {_name(error)}") from None
            raise StoreUnavailable(_name(error)) from None
        yield SqliteDatabase(writer=writer, reader=reader, statements=load_statements(Engine.SQLITE), clock=clock)


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


class SqliteDatabase(Database):
    """A SQLite file."""

    keeps_time = False

    def __init__(
        self,
        *,
        writer: aiosqlite.Connection,
        reader: aiosqlite.Connection,
        statements: Mapping[str, str],
        clock: Clock,
    ) -> None:
        super().__init__(statements=statements, clock=clock)
        self._writer = writer
        self._reader = reader
        self._sql = statements
        self._writing = asyncio.Lock()

    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that changes nothing."""
        try:
            found = await self._reader.execute_fetchall(self._sql[statement], _parameters(values, self._clock))
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return list(found)

    async def unit(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit all that `work` runs, or nothing of it."""
        async with self._writing:
            return await unbroken(self._transaction(work))

    async def others_version(self) -> int:
        """Return SQLite's number for the file's content, which stays where the connection that is asked writes itself.

        So the one that writes is asked: what is seen there is another process's (https://sqlite.org/pragma.html).
        """
        try:
            [[version]] = await self._writer.execute_fetchall("PRAGMA data_version")
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return int(version)

    async def place(self, machine: str) -> str:
        """Return where the file is, as this process sees it."""
        return machine

    async def tidy(self) -> None:
        """Forget nothing: there is only this one instance."""

    async def _transaction(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        unit = _Unit(self._writer, self._sql, self._touched, self._clock)
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            result = await work(unit)
            await self._writer.execute("COMMIT")
        except (sqlite3.Error, ValueError) as error:
            self.failing = _name(error)
            raise self._failed(error) from None
        finally:
            await self._roll_back()
            self._tell(unit.changes)  # in any case: a COMMIT that fails may have come about
        self.failing = None
        for told in unit.told:
            told()
        return result

    async def _roll_back(self) -> None:
        """End a transaction that was not committed, so that the next unit finds none open."""
        try:
            if self._writer.in_transaction:
                await self._writer.execute("ROLLBACK")
        except (sqlite3.Error, ValueError):
            return  # the next BEGIN tells

    def _failed(self, error: BaseException) -> StoreUnavailable:
        if _name(error).startswith(_OUT_OF_REACH):
            self.failed_at = self._clock.monotonic()
        return StoreUnavailable(_name(error))


class _Unit(Unit):
    """A transaction of the connection that writes."""

    def __init__(
        self, writer: aiosqlite.Connection, statements: Mapping[str, str], touched: Touched, clock: Clock
    ) -> None:
        super().__init__(touched)
        self._writer = writer
        self._sql = statements
        self._clock = clock

    async def _run(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        return list(await self._writer.execute_fetchall(self._sql[statement], _parameters(values, self._clock)))

    async def _run_many(self, statement: str, rows: Sequence[Mapping[str, object]]) -> None:
        await self._writer.executemany(self._sql[statement], [_parameters(values, self._clock) for values in rows])


def _parameters(values: Mapping[str, object], clock: Clock) -> dict[str, object]:
    """Return values as SQLite takes them; leases are told by this process's own clock."""
    return {"clock": ticks(clock.now()), **{name: _plain(value) for name, value in values.items()}}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return ticks(value)
    return microseconds(value) if isinstance(value, timedelta) else value


def _name(error: BaseException) -> str:
    """Name an error without its text, which may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))
