"""A SQLite file with one connection for writes and one for reads.

Every write is part of a transaction (`BEGIN IMMEDIATE … COMMIT`). Transactions run one at a time, because two tasks on
one connection would roll back each other's writes. They are shielded from cancellation, because a cancelled task would
leave its transaction open. With `synchronous=FULL`, a committed write has been fsynced.

A transaction runs to completion on the writer's thread. Waiting transactions are committed together. If one of them
fails, none of them is committed, and each is retried separately.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from amo_callback.concurrency import run_to_completion
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.files import open_regular
from amo_callback.store import Store
from amo_callback.store.backup import back_up_before_migration, check_files, error_name
from amo_callback.store.engine import Engine, Row, Statement, Transaction, arguments, load_statements
from amo_callback.store.migrate import check_sqlite_schema, load_migrations, migrate_sqlite
from amo_callback.store.sqlite_connection import BUSY_TIMEOUT, Batcher, SqliteConnection, WriteAheadLog, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Mapping
    from pathlib import Path

    from amo_callback.clock import Clock

T = TypeVar("T")

_Read = tuple[str, Sequence[object]]
_Job = Callable[[Transaction], Awaitable[Any]]

_MISCONFIGURED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")
"""Errors that a restart does not fix; other errors (busy, full) may be temporary."""
_LOST = (
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_PERM",
    "SQLITE_PROTOCOL",
    "ValueError",  # raised by a closed connection
)
_UNWRITABLE = (*_LOST, "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")
"""Errors of a write that other processes would also get, because all writers share one lock and one file.

Any other error concerns a single statement.
"""


@asynccontextmanager
async def open_sqlite(
    path: Path,
    *,
    clock: Clock,
    process: str = "amo-callback",
    migrations: Sequence[Sequence[str]] | None = None,
    read_only: bool = False,
) -> AsyncIterator[SqliteStore]:
    """Open a database file, creating it with mode 0600 if necessary, and upgrade its schema.

    With `read_only`, nothing is created, upgraded or written; raises `OtherSchema` if an upgrade would be necessary.
    """
    known = load_migrations(Engine.SQLITE) if migrations is None else migrations
    # The thread of an unclosed connection prevents the process from exiting, so the stack closes every connection.
    async with AsyncExitStack() as stack:
        with _explained(path):
            check_files(path)
            # A new file gets mode 0600, which SQLite also uses for the write-ahead log.
            os.close(open_regular(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT))
            if read_only:
                # Without a running service, a read-only connection would create the files of the write-ahead log and
                # could not remove them. A writable connection removes them on close, even if it wrote nothing.
                mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
                writer = reader = await stack.enter_async_context(SqliteConnection(path, mode=mode))
                await check_sqlite_schema(reader, len(known))
            else:
                writer = await stack.enter_async_context(SqliteConnection(path))
                reader = await stack.enter_async_context(SqliteConnection(path))
                await prepare(writer, clock)
                await migrate_sqlite(
                    writer,
                    known,
                    back_up=lambda version: back_up_before_migration(path, version=version, now=clock.now()),
                )
                await prepare(reader, clock)
            await reader.execute("PRAGMA query_only = ON")
        wal = WriteAheadLog(path, busy_timeout=BUSY_TIMEOUT)
        yield SqliteStore(writer=writer, reader=reader, wal=wal, clock=clock, process=process)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise `ConfigurationError` for an error that a restart does not fix, otherwise `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"storage.url: {path} cannot be opened: {error.strerror}") from None
    except sqlite3.Error as error:
        if error_name(error).startswith(_MISCONFIGURED):
            raise ConfigurationError(f"storage.url: {path} cannot be used: {error_name(error)}") from None
        raise StoreUnavailable(error_name(error)) from None


class SqliteStore(Store):
    has_shared_clock = False

    def __init__(
        self, *, writer: SqliteConnection, reader: SqliteConnection, wal: WriteAheadLog, clock: Clock, process: str
    ) -> None:
        super().__init__(clock=clock, statements=load_statements(Engine.SQLITE), process=process)
        self._writer = writer
        self._reader = reader
        self._wal = wal
        self._reads: Batcher[_Read] = Batcher(partial(reader.run, _read_all), name="store:read")
        self._jobs: Batcher[_Job] = Batcher(self._commit, name="store:commit")

    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        sql = self.statements[statement]
        try:
            given = arguments(sql, {"clock": self.clock.now(), **values})
            found: Sequence[Row] = await self._reads.submit((sql.text, given))
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return found

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await run_to_completion(self._transact(work))

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        committed: tuple[T, _SqliteTransaction] = await self._jobs.submit(work)
        result, transaction = committed
        for call in transaction.on_commit:  # in the caller's task, with its context variables
            call()
        return result

    async def data_version(self) -> int:
        """Return SQLite's `data_version`, which changes if another connection writes.

        The value is read on the connection for writes, so that only writes of other processes change it
        (https://sqlite.org/pragma.html#pragma_data_version).
        """
        try:
            [[version]] = await self._writer.execute_fetchall("PRAGMA data_version")
        except (sqlite3.Error, ValueError) as error:
            raise self._failed(error) from None
        return int(version)

    async def _commit(self, jobs: Sequence[_Job]) -> Sequence[Any]:
        results = await self._commit_together(jobs)
        if results is None:
            results = []
            for work in jobs:
                results += await self._commit_together([work]) or []
        return results

    async def _commit_together(self, jobs: Sequence[_Job]) -> list[Any] | None:
        """Commit jobs in one transaction; return, for each job, its result and transaction, or an error.

        Returns `None` if one of several jobs failed, in which case nothing was committed.
        """
        transactions: list[_SqliteTransaction] = []  # one for each job that was started
        begin = partial(_SqliteTransaction, self.statements, self.clock)
        try:
            results = await self._writer.run(_run_all, jobs, begin, transactions, self._wal)
        except (sqlite3.Error, ValueError) as error:
            self.last_write_error = error_name(error)
            # Each caller gets its own error, because raising an error adds a traceback to it.
            return [self._failed(error, write=True) for _ in jobs]
        except Exception as error:  # noqa: BLE001 -- passed to the caller
            return [error] * len(jobs)
        finally:  # even after an error, the COMMIT may have been executed
            for transaction in transactions:
                self._notify(transaction.changes)
        if results is None:
            return None
        self.last_write_error = None
        return list(zip(results, transactions, strict=True))

    def _failed(self, error: BaseException, *, write: bool = False) -> StoreUnavailable:
        if error_name(error).startswith(_UNWRITABLE if write else _LOST):
            self.failed_at = self.clock.monotonic()
        return StoreUnavailable(error_name(error))


class _SqliteTransaction(Transaction):
    """One job's part of a transaction on the writer's thread. Statements run synchronously, so `run` never suspends."""

    def __init__(self, statements: Mapping[str, Statement], clock: Clock, database: sqlite3.Connection) -> None:
        super().__init__(statements)
        self._clock = clock
        self._database = database

    async def _execute(self, sql: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        given = arguments(sql, {"clock": self._clock.now(), **values})
        return self._database.execute(sql.text, given).fetchall()

    async def _execute_many(self, sql: Statement, rows: Sequence[Mapping[str, object]]) -> None:
        self._database.executemany(sql.text, [arguments(sql, values) for values in rows])


def _read_all(database: sqlite3.Connection, reads: Sequence[_Read]) -> list[Any]:
    """Execute statements on the reader's thread; return the rows or the exception of each statement."""
    results: list[Any] = []
    for text, given in reads:
        try:
            results.append(database.execute(text, given).fetchall())
        except Exception as error:  # noqa: BLE001 -- passed to the caller
            results.append(error)
    return results


def _run_all(
    database: sqlite3.Connection,
    jobs: Sequence[_Job],
    begin: Callable[[sqlite3.Connection], _SqliteTransaction],
    transactions: list[_SqliteTransaction],
    wal: WriteAheadLog,
) -> list[Any] | None:
    """Run jobs on the writer's thread and commit them together; return `None` if one of several jobs failed."""
    results = []
    database.execute("BEGIN IMMEDIATE")
    try:
        for work in jobs:
            transactions.append(begin(database))
            try:
                results.append(_run_sync(work(transactions[-1])))
            except Exception:
                if len(jobs) == 1:
                    raise
                return None
        database.execute("COMMIT")
        wal.bound(database)
        return results
    finally:
        with suppress(sqlite3.Error):  # if the rollback fails, so does the next BEGIN
            if database.in_transaction:
                database.execute("ROLLBACK")


def _run_sync(work: Awaitable[T]) -> T:
    """Run a coroutine that awaits only its transaction, and therefore never suspends."""
    running: Generator[Any, Any, T] = work.__await__()
    try:
        next(running)
    except StopIteration as ended:
        result: T = ended.value
        return result
    running.close()
    raise RuntimeError("the coroutine of a transaction must await only the transaction's own methods")
