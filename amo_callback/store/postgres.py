"""A PostgreSQL database: a pool of connections, and one that listens to what other instances change.

Every write is one transaction on a connection of its own, out of reach of cancellation, so that none is left open.
What a transaction reads first and then writes by it locks; the database's clock tells leases, for all instances.

While the database is away no caller waits for it: the connection that listens finds out when it is back.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from amo_callback.clock import DatabaseClock
from amo_callback.concurrency import unbroken
from amo_callback.errors import StoreUnavailable
from amo_callback.rate_limit import RateState, SlotDecision, WaiterKind, ask, pause
from amo_callback.store import Store
from amo_callback.store.engine import Engine, Statement, Transaction, arguments, from_micros, load_statements
from amo_callback.store.migrate import check_postgres_schema, load_migrations, migrate_postgres
from amo_callback.store.postgres_connection import ERRORS, PATIENCE, Listener, connect, location_of, open_pool
from amo_callback.store.postgres_server import check_pooling, explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import Clock
    from amo_callback.model import ChangeNotice
    from amo_callback.store.engine import Database, Row

T = TypeVar("T")

_SLOW = 600.0
"""Seconds for a statement that is declared slow: it goes through a whole table, and is rare."""
_NOT_A_TEXT = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
"""What it says of a text that it cannot hold, as one with a NUL: nothing that is there is named so."""
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError, asyncpg.UniqueViolationError)
"""What ends a transaction for no fault of its own: two had locked what the other one wanted; another version of
amo-callback has changed a table since the statement was prepared; another instance has inserted the row meanwhile."""
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
    OSError,  # and a timeout
)
"""What says so of a write only where it goes on: a statement that takes too long, or a pool that is empty for a moment,
does not keep a process from storing a pair. Any other error is one statement's own."""


@asynccontextmanager
async def open_postgres(
    url: str, *, clock: Clock, process: str, read_only: bool = False
) -> AsyncIterator[PostgresStore]:
    """Open the database that `url` names, and bring its schema up to date.

    `read_only`, the server refuses every write, and nothing is upgraded: raises `OtherSchema` where that would be
    needed. Raises `ConfigurationError`, and `StoreUnavailable` where it is away.
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
        async with nullcontext() if read_only else listener.listening():  # a standby takes no LISTEN
            yield database


async def _prepare(url: str, clock: DatabaseClock, *, read_only: bool) -> str:
    """Bring the schema up to date, however long that takes, and set the clock; return where the database is."""
    connection, known = await connect(url, patience=None, read_only=read_only), load_migrations(Engine.POSTGRES)
    try:
        if read_only:
            await check_postgres_schema(connection, len(known))
        else:
            await migrate_postgres(connection, known)
        asked_at = clock.monotonic()
        clock.set(await connection.fetchval("SELECT statement_timestamp()"), asked_at=asked_at)
        return await location_of(connection)
    finally:
        await connection.close(timeout=PATIENCE)


class _Undone(StoreUnavailable):
    """An error of a transaction that can be tried again."""


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
        # As far as we know no process could write until now: another instance may still hold a pair that it could not
        # store, whatever the database's clock says of its lease.
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
        return await unbroken(self._try(work, lasts=True))

    async def coordinate(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Commit what keeps instances apart: where that can be written, what lasts may still find the disk full."""
        return await unbroken(self._try(work, lasts=False))

    async def data_version(self) -> int:
        """Receive the notifications of other instances so far; there is no number for what they have not sent."""
        try:
            await self._listener.ping()
        except ERRORS as error:
            raise self._failed(error) from None
        return 0

    async def claim_work(self, statement: str, /, **values: object) -> Sequence[Row]:
        """Run a statement that gives this instance something to do, and no other one meanwhile."""
        return await self.coordinate(lambda transaction: transaction.run(statement, **values))

    @property
    def clock_skew(self) -> float:
        return self.clock.ahead

    async def location(self, machine: str) -> str:
        """Return where the database is, wherever this process is."""
        del machine
        return self._location

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        if self._listener.down is not None:
            raise ConnectionError(self._listener.down)
        async with self._pool.acquire(timeout=PATIENCE) as connection:
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
            self._notify(changes)  # a COMMIT that fails may have been executed
        if lasts:
            self.last_write_error = None
        for call in transaction.on_commit:
            call()
        return result

    def _failed(self, error: BaseException, *, again: bool = False) -> StoreUnavailable:
        """Return the error for callers: its type alone, since its text may quote values."""
        if isinstance(error, _FAILING if again else _LOST):
            self.failed_at = self.clock.monotonic()
        if isinstance(error, _UNDONE):
            return _Undone(type(error).__name__)
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            self._expiring = asyncio.ensure_future(self._pool.expire_connections())  # another host takes writes by now
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
"""Microseconds."""
_TIMES = ("free_at", "people_until", "background_until")


class PostgresLimits:
    """The table `slots`: instances ask under a lock, by the database's clock.

    Why a row of slots, and not the n-th part of the rate for each of n instances: the whole rate is there for whichever
    of them has work, no instance need know how many there are, and while the database is away nobody goes, which is
    right: nothing could be claimed.
    """

    at_once = False

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ask_for_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        return await self._change(lambda slots, now: ask(slots, now=now, interval=interval, waiting=waiting))

    async def pause(self, seconds: float) -> None:
        await self._change(lambda slots, now: SlotDecision(slots=pause(slots, now=now, seconds=seconds)))

    async def _change(self, change: Callable[[RateState, float], SlotDecision]) -> SlotDecision:
        """Change the row under its lock, and return the decision."""

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
