"""A PostgreSQL database: a pool of connections, and one connection that listens for changes by other instances.

Every write is one transaction on a connection of its own. Writes are shielded from cancellation, so that no transaction
is left open. Rows that a transaction reads and then updates are locked. The database's clock determines leases for all
instances.

While the database is unreachable, calls fail immediately. The listening connection detects the end of the outage.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from amo_callback.clock import DatabaseClock
from amo_callback.concurrency import run_to_completion
from amo_callback.errors import StoreUnavailable
from amo_callback.rate_limit import RateState, SlotDecision, WaiterKind, pause, request_slot
from amo_callback.store import Store
from amo_callback.store.engine import Engine, Statement, Transaction, arguments, from_micros, load_statements
from amo_callback.store.migrate import check_postgres_schema, load_migrations, migrate_postgres
from amo_callback.store.postgres_connection import ERRORS, WAIT_LIMIT, Listener, connect, location_of, open_pool
from amo_callback.store.postgres_server import check_pooling, explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import Clock
    from amo_callback.model import ChangeNotice
    from amo_callback.store.engine import Database, Row

T = TypeVar("T")

_SLOW = 600.0
"""The timeout, in seconds, of a statement marked `slow`, which reads a whole table and runs rarely."""
_NOT_A_TEXT = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
"""Errors for text that the database cannot store, such as a NUL character. Reads with such text return no rows."""
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError, asyncpg.UniqueViolationError)
"""Errors after which a transaction is retried.

The causes are a deadlock, a table that another version of amo-callback altered after a statement was prepared, or a row
that another instance inserted at the same time.
"""
_AGAIN = 2
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
_FAILING = (
    *_LOST,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,  # includes timeouts
)
"""Errors of a write that count as an outage if the previous write failed, too.

After a single timeout, or after the pool was briefly exhausted, a process can still store a pair with its next write.
Errors that are not listed concern a single statement.
"""


@asynccontextmanager
async def open_postgres(
    url: str, *, clock: Clock, process: str, read_only: bool = False
) -> AsyncIterator[PostgresStore]:
    """Open the database at `url` and upgrade its schema.

    With `read_only`, the server rejects every write, and the schema is not upgraded; raises `OtherSchema` if an upgrade
    would be necessary. Raises `ConfigurationError` for errors that a restart does not fix, and `StoreUnavailable` for
    others.
    """
    async with open_pool(url, read_only=read_only) as pool:
        own = DatabaseClock(clock)
        try:
            await check_pooling(url)
            location = await _prepare(url, own, read_only=read_only)
        except ERRORS as error:
            raise explain(error) from None
        listener = Listener(lambda: connect(url), clock=own)
        database = PostgresStore(pool=pool, listener=listener, location=location, clock=own, process=process)
        async with nullcontext() if read_only else listener.listening():  # a standby does not support LISTEN
            yield database


async def _prepare(url: str, clock: DatabaseClock, *, read_only: bool) -> str:
    """Prepare the schema and the clock, and return the database's location.

    The schema is upgraded, without the usual statement timeout; with `read_only`, it is only checked.
    """
    connection, known = await connect(url, wait_limit=None, read_only=read_only), load_migrations(Engine.POSTGRES)
    try:
        if read_only:
            await check_postgres_schema(connection, len(known))
        else:
            await migrate_postgres(connection, known)
        asked_at = clock.monotonic()
        clock.set(await connection.fetchval("SELECT statement_timestamp()"), asked_at=asked_at)
        return await location_of(connection)
    finally:
        await connection.close(timeout=WAIT_LIMIT)


class _Undone(StoreUnavailable):
    """An error after which the transaction can be retried."""


class PostgresStore(Store):
    has_shared_clock = True

    clock: DatabaseClock

    def __init__(
        self, *, pool: asyncpg.Pool, listener: Listener, location: str, clock: DatabaseClock, process: str
    ) -> None:
        super().__init__(clock=clock, statements=load_statements(Engine.POSTGRES), process=process)
        self._pool = pool
        self._listener = listener
        self._location = location
        self.shared = PostgresLimits(self)
        # The database may have been unavailable until now, so opening it counts as an outage: another instance may hold
        # a pair that it could not store, although the attempt's lease has expired by the database's clock.
        self.failed_at = clock.monotonic()
        listener.on_change(lambda changed: self._notify([changed]))

    async def read(self, statement: str, /, **values: object) -> Sequence[Row]:
        try:
            async with self._connection() as connection:
                return await _PostgresTransaction(connection, self).run(statement, **values)
        except _NOT_A_TEXT:
            return []
        except ERRORS as error:
            raise self._failed(error) from None

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await run_to_completion(self._try(work, lasts=True))

    async def coordinate(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run a transaction that only coordinates instances; it may succeed even if the disk is full."""
        return await run_to_completion(self._try(work, lasts=False))

    async def data_version(self) -> int:
        """Receive pending notifications from other instances; always return 0, because they report all changes."""
        try:
            await self._listener.ping()
        except ERRORS as error:
            raise self._failed(error) from None
        return 0

    async def claim_work(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Execute a statement that assigns work to this instance only."""
        return await self.coordinate(lambda transaction: transaction.run(statement, **values))

    @property
    def clock_skew(self) -> float:
        return self.clock.ahead

    async def location(self, machine: str) -> str:
        """Return a name for the database's location, which does not depend on `machine`."""
        del machine
        return self._location

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        if self._listener.down is not None:
            raise ConnectionError(self._listener.down)
        async with self._pool.acquire(timeout=WAIT_LIMIT) as connection:
            yield connection

    async def _try(self, work: Callable[[Transaction], Awaitable[T]], *, lasts: bool) -> T:
        for _ in range(_AGAIN):
            try:
                return await self._transact_once(work, lasts=lasts)
            except _Undone:
                continue
        return await self._transact_once(work, lasts=lasts)

    async def _transact_once(self, work: Callable[[Transaction], Awaitable[T]], *, lasts: bool) -> T:
        changes: list[ChangeNotice] = []
        try:
            async with self._connection() as connection, connection.transaction():
                transaction = _PostgresTransaction(connection, self)
                changes = transaction.changes
                result = await work(transaction)
                await self._listener.notify(connection, changes)
        except ERRORS as error:
            failed = self._failed(error, again=lasts and self.last_write_error is not None)
            if lasts:
                self.last_write_error = type(error).__name__
            raise failed from None
        finally:
            self._notify(changes)  # even after an error, the COMMIT may have been executed
        if lasts:
            self.last_write_error = None
        for call in transaction.on_commit:
            call()
        return result

    def _failed(self, error: BaseException, *, again: bool = False) -> StoreUnavailable:
        """Return the error for the caller, and record an outage if there is one.

        The message of `error` is not included, because it may quote values.
        """
        if isinstance(error, _FAILING if again else _LOST):
            self.failed_at = self.clock.monotonic()
        if isinstance(error, _UNDONE):
            return _Undone(type(error).__name__)
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # A failover may have moved the primary, so each pooled connection is reopened before its next use.
            self._expiring = asyncio.ensure_future(self._pool.expire_connections())
        return StoreUnavailable(type(error).__name__)


class _PostgresTransaction(Transaction):
    """A transaction on a connection of its own."""

    def __init__(self, connection: PoolConnectionProxy, store: PostgresStore) -> None:
        super().__init__(store.statements)
        self._connection = connection
        self._clock = store.clock
        self._process = store.process

    async def _execute(self, sql: Statement, values: Mapping[str, object]) -> Sequence[Row]:
        given = arguments(sql, {"process": self._process, **values})
        if "slow" in sql.notes:
            async with self._connection.transaction():
                await self._connection.execute("SET LOCAL statement_timeout = 0")
                return list(await self._connection.fetch(sql.text, *given, timeout=_SLOW))
        asked_at = self._clock.monotonic()
        found = list(await self._connection.fetch(sql.text, *given))
        if found and (clock := found[0].get("clock")) is not None:
            self._clock.set(from_micros(clock), asked_at=asked_at)
        return found

    async def _execute_many(self, sql: Statement, rows: Sequence[Mapping[str, object]]) -> None:
        await self._connection.executemany(sql.text, [arguments(sql, values) for values in rows])


# --- the rate limit --------------------------------------------------------------------------------

_SECOND = 1e6
"""One second in microseconds."""
_TIMES = ("free_at", "people_until", "background_until")


class PostgresLimits:
    """The rate limit in the table `slots`, which all instances share.

    Instances request slots under a row lock, by the database's clock. Because they share a single row, one busy
    instance can use the whole rate, and no instance needs to know the number of instances. While the database is
    unreachable, no slot is granted; connections could not be claimed then, either.
    """

    is_local = False

    def __init__(self, database: Database) -> None:
        self._database = database

    async def request_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        return await self._change(lambda slots, now: request_slot(slots, now=now, interval=interval, waiting=waiting))

    async def pause(self, seconds: float) -> None:
        await self._change(lambda slots, now: SlotDecision(slots=pause(slots, now=now, seconds=seconds)))

    async def _change(self, change: Callable[[RateState, float], SlotDecision]) -> SlotDecision:
        """Change the row under its lock and return the decision."""

        async def work(transaction: Transaction) -> SlotDecision:
            found = await transaction.run("lock_slots")
            if not found:
                await transaction.run("make_slots")
                found = await transaction.run("lock_slots")
            [row] = found
            times = {name: row[name] / _SECOND for name in _TIMES}
            decision = change(RateState(last=WaiterKind(row["last"]), **times), row["clock"] / _SECOND)
            times = {name: int(getattr(decision.slots, name) * _SECOND) for name in _TIMES}
            await transaction.run("save_slots", last=decision.slots.last, **times)
            return decision

        return await self._database.coordinate(work)
