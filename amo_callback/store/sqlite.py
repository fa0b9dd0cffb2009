"""A SQLite file: one connection that writes, one that reads.

Every write is a unit of a transaction, `BEGIN IMMEDIATE … COMMIT`, of which there is one at a time, out of reach of
cancellation. Two tasks that share a connection otherwise roll back each other's work, and a cancelled one leaves its
transaction open for the next. `synchronous=FULL`: what is said to be stored has been fsynced.

A transaction runs to its end on the writer's thread, in one go, and units that wait for it go together. Where one of
them fails nothing of them is committed, and each has a transaction of its own, as if it had come alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiosqlite

from amo_callback.disk import open_regular
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.copies import keep
from amo_callback.store.database import Database, Unit
from amo_callback.store.files import check_files
from amo_callback.store.groups import Groups, Outcome
from amo_callback.store.migrate import migrate_sqlite
from amo_callback.store.rows import stored, ticks
from amo_callback.store.statements import Engine, load_migrations, load_statements
from amo_callback.store.wal import LIMIT, WriteAheadLog
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence
    from pathlib import Path

    from amo_callback.clock import Clock
    from amo_callback.store.row import Row
    from amo_callback.store.touched import Touched

T = TypeVar("T")

_Read = tuple[str, Mapping[str, object]]
_Work = Callable[[Unit], Awaitable[Any]]

_BUSY_TIMEOUT = 5.0
"""Seconds that a statement waits for another process's lock."""
_LOOK_AGAIN = 0.02
_MISCONFIGURED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")
"""What no second start mends; whatever else (busy, full) may pass."""
_LOST = (
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
    "SQLITE_PROTOCOL",
    "ValueError",  # closed
)
"""What says that the database is out of reach."""
_UNWRITABLE = (*_LOST, "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")
"""What says so of a write: the file has one lock for all who write, so for as long as this write has waited for it no
process could store a pair. Whatever else is one statement's own."""


@asynccontextmanager
async def open_sqlite(
    path: Path, *, clock: Clock, migrations: Sequence[Sequence[str]] | None = None
) -> AsyncIterator[SqliteDatabase]:
    """Open a database file, make it where there is none (0600), and bring its schema up to date."""
    try:
        check_files(path)
        os.close(open_regular(path, os.O_RDWR | os.O_CREAT))  # 0600: the WAL beside it gets the same mode
    except OSError as error:
        raise ConfigurationError(f"storage.url: {path} cannot be opened: {error.strerror}") from None
    # A connection left open keeps its thread, and that the process: so each in its own context.
    async with _Connection(path) as writer, _Connection(path) as reader:
        try:
            await _prepare(writer, clock)
            await migrate_sqlite(
                writer,
                load_migrations(Engine.SQLITE) if migrations is None else migrations,
                keep=lambda version: keep(path, version=version, now=clock.now()),
            )
            await _prepare(reader, clock)
            await reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            if _name(error).startswith(_MISCONFIGURED):
                raise ConfigurationError(f"storage.url: {path} cannot be used: {_name(error)}") from None
            raise StoreUnavailable(_name(error)) from None
        log = WriteAheadLog(path, busy_timeout=_BUSY_TIMEOUT)
        statements = load_statements(Engine.SQLITE)
        yield SqliteDatabase(writer=writer, reader=reader, log=log, statements=statements, clock=clock)


class _Connection(aiosqlite.Connection):
    """The library's connection, whose thread also runs what is more than one statement."""

    def __init__(self, path: Path) -> None:
        super().__init__(partial(sqlite3.connect, path, isolation_level=None), iter_chunk_size=64)

    async def __aenter__(self) -> Self:
        _ = await self  # opens it, and is the same
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the connection's thread."""
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]  # reason: the library's own
        return result


async def _prepare(database: aiosqlite.Connection, clock: Clock) -> None:
    database.row_factory = sqlite3.Row
    await database.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT * 1000:.0f}")
    await _log_ahead(database, clock)
    await database.execute("PRAGMA synchronous = FULL")
    await database.execute(f"PRAGMA journal_size_limit = {LIMIT}")


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
        writer: _Connection,
        reader: _Connection,
        log: WriteAheadLog,
        statements: Mapping[str, str],
        clock: Clock,
    ) -> None:
        super().__init__(statements=statements, clock=clock)
        self._writer = writer
        self._reader = reader
        self._log = log
        self._sql = statements
        self._reads: Groups[_Read] = Groups(self._read_all, name="store:read")
        self._units: Groups[_Work] = Groups(self._commit, name="store:commit")

    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that changes nothing."""
        try:
            found: Sequence[Row] = await self._reads.join((self._sql[statement], _parameters(values, self.clock)))
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return found

    async def _read_all(self, reads: Sequence[_Read]) -> Sequence[Outcome]:
        return await self._reader.run(lambda database: [_found(database, read) for read in reads])

    async def unit(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit all that `work` runs, or nothing of it; it may be run again, and awaits nothing but its unit."""
        result: T = await unbroken(self._units.join(work))
        return result

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

    async def _commit(self, works: Sequence[_Work]) -> Sequence[Outcome]:
        together = await self._transaction(works)
        return together or [outcome for work in works for outcome in await self._transaction([work])]

    async def _transaction(self, works: Sequence[_Work]) -> Sequence[Outcome]:
        """Commit works as one; return nothing where one of several has failed, and nothing was committed."""
        units: list[_Unit] = []
        try:
            results = await self._writer.run(lambda database: self._transact(database, works, units))
        except (sqlite3.Error, ValueError) as error:
            failed = [self._failed(error, write=True) for _ in works]  # each raises one of its own
            self.failing = _name(error)
            return [Outcome(error=one) for one in failed]
        except Exception as error:  # noqa: BLE001 -- because it is the work's own
            return [Outcome(error=error)] * len(works)
        finally:
            self._tell(changed for unit in units for changed in unit.changes)  # a COMMIT that fails may have come about
        if results is None:
            return []
        self.failing = None
        for told in (told for unit in units for told in unit.told):
            told()
        return [Outcome(result=result) for result in results]

    def _transact(
        self, database: sqlite3.Connection, works: Sequence[_Work], units: list[_Unit]
    ) -> list[object] | None:
        """Run works, on the writer's thread, and commit them."""
        results = []
        database.execute("BEGIN IMMEDIATE")
        try:
            for work in works:
                units.append(_Unit(self._touched, database, self._sql, self.clock))
                try:
                    results.append(_to_end(work(units[-1])))
                except Exception:
                    if len(works) == 1:
                        raise
                    return None
            database.execute("COMMIT")
            self._log.bound(database)
            return results
        finally:
            with suppress(sqlite3.Error):  # the next BEGIN tells
                if database.in_transaction:
                    database.execute("ROLLBACK")

    def _failed(self, error: BaseException, *, write: bool = False) -> StoreUnavailable:
        if _name(error).startswith(_UNWRITABLE if write else _LOST):
            self.failed_at = self.clock.monotonic()
        return StoreUnavailable(_name(error))


class _Unit(Unit):
    """A part of a transaction, on the writer's thread: what it runs is done at once."""

    def __init__(
        self, touched: Touched, database: sqlite3.Connection, statements: Mapping[str, str], clock: Clock
    ) -> None:
        super().__init__(touched)
        self._database = database
        self._sql = statements
        self._clock = clock

    async def _run(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        sql = self._sql[statement]
        return self._database.execute(sql, _parameters(values, self._clock)).fetchall() if sql else []

    async def _run_many(self, statement: str, rows: Sequence[Mapping[str, object]]) -> None:
        self._database.executemany(self._sql[statement], [_parameters(values, self._clock) for values in rows])


def _found(database: sqlite3.Connection, read: _Read) -> Outcome:
    """Run a statement, on the reader's thread; what goes wrong with it is no concern of the others'."""
    try:
        return Outcome(result=database.execute(*read).fetchall())
    except Exception as error:  # noqa: BLE001 -- because whoever asked is to hear of it
        return Outcome(error=error)


def _to_end(work: Awaitable[T]) -> T:
    """Run what awaits nothing but its unit: there is nothing to wait for."""
    running: Generator[Any, Any, T] = work.__await__()
    try:
        next(running)
    except StopIteration as ended:
        result: T = ended.value
        return result
    running.close()
    raise RuntimeError("the work of a unit awaits nothing but its unit")


def _parameters(values: Mapping[str, object], clock: Clock) -> dict[str, object]:
    """Return values as SQLite takes them; leases are told by this process's own clock."""
    return {"clock": ticks(clock.now()), **{name: stored(value) for name, value in values.items()}}


def _name(error: BaseException) -> str:
    """Name an error without its text, which may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))
