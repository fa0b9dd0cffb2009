"""A PostgreSQL database: a pool of connections, and one that listens to what other instances change.

Every write is one transaction on a connection of its own, out of reach of cancellation, so that none is left open.
What a transaction reads first and then writes by it locks; the database's clock tells leases, for all instances.

While the database is away nobody waits for it: the connection that listens finds out when it is back.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from amo_callback.clock import DatabaseClock
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.database import Database, Unit
from amo_callback.store.dialect import Statement, translate
from amo_callback.store.listener import Listener
from amo_callback.store.migrate import migrate_postgres
from amo_callback.store.pooler import NEEDS_SESSIONS, USE_SESSIONS, Pooling, find_pooling
from amo_callback.store.postgres_pool import ERRORS, PATIENCE, connect, open_pool, place_of
from amo_callback.store.refusals import MISTAKEN, refusal
from amo_callback.store.rows import moment, stored
from amo_callback.store.shares import Shares
from amo_callback.store.statements import Engine, load_migrations, load_statements
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import Clock
    from amo_callback.model import Changed
    from amo_callback.store.row import Row
    from amo_callback.store.touched import Touched

T = TypeVar("T")

_LEISURE = 600.0
"""Seconds for a statement that goes through a whole table."""
_AT_LEISURE = frozenset({"all_due", "believe_deaths", "count_sealed"})
"""Such statements: they are rare, and for a large fleet would never come to their end in a few seconds."""
_NOT_A_TEXT = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
"""What it says of a text that it cannot hold, as one with a NUL: nothing that is there is named so."""
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)
"""What ends a transaction for no fault of its own: two had locked what the other one wanted; another version of
amo-callback has changed a table since the statement was prepared."""
_AGAIN = 2
"""How often such a one is tried again."""
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
"""What says that the database is out of reach."""
_FAILING = (
    *_LOST,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,  # and a timeout
)
"""What says so of a write only where it goes on: a statement that takes too long, or a pool that is empty for a moment,
keeps nobody from storing a pair. Whatever else is one statement's own."""


@asynccontextmanager
async def open_postgres(url: str, *, clock: Clock, process: str) -> AsyncIterator[PostgresDatabase]:
    """Open the database that `url` names, and bring its schema up to date.

    Raises `ConfigurationError`, and `StoreUnavailable` where it is away.
    """
    async with open_pool(url) as pool:
        own = DatabaseClock(clock)
        async with _told():
            if await find_pooling(url) is Pooling.TRANSACTION:
                raise ConfigurationError(f"{MISTAKEN}{NEEDS_SESSIONS}: {USE_SESSIONS}")
            place = await _prepare(url, own)
        listener = Listener(lambda: connect(url), clock=own)
        database = PostgresDatabase(pool=pool, listener=listener, place=place, clock=own, process=process)
        async with listener.listening():
            yield database


async def _prepare(url: str, clock: DatabaseClock) -> str:
    """Bring the schema up to date, however long that takes, and set the clock; return where the database is."""
    connection = await connect(url, patience=None)
    try:
        await migrate_postgres(connection, load_migrations(Engine.POSTGRES))
        asked_at = clock.monotonic()
        clock.set(await connection.fetchval("SELECT statement_timestamp()"), asked_at=asked_at)
        return await place_of(connection)
    finally:
        await connection.close(timeout=PATIENCE)


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Tell what keeps the service from starting."""
    try:
        yield
    except ERRORS as error:
        raise refusal(error) from None


class _Undone(StoreUnavailable):
    """The store has undone a transaction: it can be tried again."""


class PostgresDatabase(Database):
    """A PostgreSQL database."""

    keeps_time = True

    clock: DatabaseClock

    def __init__(
        self, *, pool: asyncpg.Pool, listener: Listener, place: str, clock: DatabaseClock, process: str
    ) -> None:
        statements = load_statements(Engine.POSTGRES)
        super().__init__(statements=statements, clock=clock)
        self._pool = pool
        self._listener = listener
        self._place = place
        self._process = process
        self._sql = {name: translate(text) for name, text in statements.items()}
        self.shared = Shares(self)
        # For all that we know nobody could write until now: another instance may still hold a pair that it could not
        # store, whatever the database's clock says of its lease.
        self.failed_at = clock.monotonic()
        listener.on_change(lambda changed: self._tell([changed]))

    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that changes nothing."""
        try:
            async with self._connection() as connection:
                return await self._begin(connection).run(statement, **values)
        except _NOT_A_TEXT:
            return []
        except ERRORS as error:
            raise self._failed(error) from None

    async def unit(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit all that `work` runs, or nothing of it."""
        return await unbroken(self._tried(work, lasts=True))

    async def aside(self, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Commit what keeps instances apart: where that can be written, what lasts may still find the disk full."""
        return await unbroken(self._tried(work, lasts=False))

    async def others_version(self) -> int:
        """Hear what other instances have said so far; there is no number for what they have not said."""
        try:
            await self._listener.hear()
        except ERRORS as error:
            raise self._failed(error) from None
        return 0

    async def allot(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that gives this instance something to do, and nobody else meanwhile."""
        return await self.aside(lambda unit: unit.run(statement, **values))

    @property
    def ahead(self) -> float:
        """Seconds by which this process's clock is ahead of the database's."""
        return self.clock.ahead

    async def tidy(self) -> None:
        """Forget the turns that are over."""
        await self.allot("forget_turns")

    async def place(self, machine: str) -> str:
        """Return where the database is, wherever this process is."""
        del machine
        return self._place

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        if self._listener.away is not None:
            raise ConnectionError(self._listener.away)
        async with self._pool.acquire(timeout=PATIENCE) as connection:
            yield connection

    async def _tried(self, work: Callable[[Unit], Awaitable[T]], *, lasts: bool) -> T:
        for _ in range(_AGAIN):
            try:
                return await self._transaction(work, lasts=lasts)
            except _Undone:
                continue
        return await self._transaction(work, lasts=lasts)

    async def _transaction(self, work: Callable[[Unit], Awaitable[T]], *, lasts: bool) -> T:
        changes: list[Changed] = []
        try:
            async with self._connection() as connection, connection.transaction():
                unit = self._begin(connection)
                changes = unit.changes
                result = await work(unit)
                await self._listener.notify(connection, changes)
        except ERRORS as error:
            failed = self._failed(error, again=lasts and self.failing is not None)
            if lasts:
                self.failing = _name(error)
            raise failed from None
        finally:
            self._tell(changes)  # in any case: a COMMIT that fails may have come about
        if lasts:
            self.failing = None
        for told in unit.told:
            told()
        return result

    def _begin(self, connection: PoolConnectionProxy) -> _Unit:
        return _Unit(connection, self._sql, self._touched, process=self._process, clock=self.clock)

    def _failed(self, error: BaseException, *, again: bool = False) -> StoreUnavailable:
        if isinstance(error, _FAILING if again else _LOST):
            self.failed_at = self.clock.monotonic()
        if isinstance(error, _UNDONE):
            return _Undone(_name(error))
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            self._expiring = asyncio.ensure_future(self._pool.expire_connections())  # another is written to by now
        return StoreUnavailable(_name(error))


class _Unit(Unit):
    """A transaction on a connection of its own."""

    def __init__(
        self,
        connection: PoolConnectionProxy,
        statements: Mapping[str, Statement],
        touched: Touched,
        *,
        process: str,
        clock: DatabaseClock,
    ) -> None:
        super().__init__(touched)
        self._clock = clock
        self._connection = connection
        self._sql = statements
        self._process = process

    async def _run(self, statement: str, values: Mapping[str, object]) -> Sequence[Row]:
        sql = self._sql[statement]
        arguments = self._arguments(sql, values)
        if statement not in _AT_LEISURE:
            asked_at = self._clock.monotonic()
            found = await self._connection.fetch(sql.text, *arguments)
            if found and (ticks := found[0].get("clock")) is not None:
                self._clock.set(moment(ticks), asked_at=asked_at)
            return list(found)
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL statement_timeout = 0")
            return list(await self._connection.fetch(sql.text, *arguments, timeout=_LEISURE))

    async def _run_many(self, statement: str, rows: Sequence[Mapping[str, object]]) -> None:
        sql = self._sql[statement]
        await self._connection.executemany(sql.text, [self._arguments(sql, values) for values in rows])

    def _arguments(self, sql: Statement, values: Mapping[str, object]) -> list[object]:
        given = {"process": self._process, **values}
        return [stored(given[name]) for name in sql.parameters]


def _name(error: BaseException) -> str:
    """Name an error without its text, which may quote values."""
    return type(error).__name__
