"""Connections to a PostgreSQL server: those of the pool, and the one that listens to the changes of other instances.

The one that listens finds out, too, whether the database is up. A commit notifies a channel, in the same transaction.
What was sent while this process did not listen is lost, and a pooler in between may drop all of it: so a cache is valid
for a moment only.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from amo_callback.config.database_url import read_postgres
from amo_callback.model import ChangeNotice
from amo_callback.store.engine import ANY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import DatabaseClock


ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
"""All that the library raises; a timeout is an `OSError`."""
CONNECTIONS = 10
"""Of one instance, beside the one that listens."""
PATIENCE = 5.0
"""Seconds for a connection, a free one of the pool, or a statement: no caller waits longer."""
_APPLICATION = {"application_name": "amo-callback"}
_SESSION = {
    "statement_timeout": "'5s'",
    "lock_timeout": "'3s'",
    # For a process that was stopped in the middle of a transaction: what it has locked is released.
    "idle_in_transaction_session_timeout": "'5s'",
    # Each statement sees what was committed before it: what a transaction locks first is read as it is then.
    "default_transaction_isolation": "'read committed'",
    # A COMMIT that is answered is on the server's disk: with `off` a crash loses pairs whose predecessors are spent.
    # Every other value flushes there, and stays: `local` waits for no standby, `remote_write` for its memory, `on` for
    # its disk, `remote_apply` for its answers; which of them a failover needs is the operator's to say.
    "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END",
}
"""What each session sets, as SQL, unless the URL says otherwise. It is set after connecting: PgBouncer refuses clients
that name such parameters as they connect. `default_transaction_read_only` stays as it is: an operator who has set it
wants nothing written."""
_STATEMENTS = 100
"""Prepared statements of a connection: the library's own default."""
_ATTRIBUTES = "target_session_attrs"
_LOCATION = "SELECT concat_ws('/', oid, datname, current_schema()) FROM pg_database WHERE datname = current_database()"
_CLUSTER = "SELECT system_identifier FROM pg_control_system()"


@asynccontextmanager
async def open_pool(url: str, *, read_only: bool = False) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool, without connecting yet; at its end a server that does not answer is not waited for."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=CONNECTIONS,
        timeout=PATIENCE,
        command_timeout=PATIENCE,
        server_settings=_APPLICATION,
        target_session_attrs=_attributes(url),
        init=_session(url, read_only=read_only),
        reset=_keep_session,
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(PATIENCE):
                await pool.close()
        except ERRORS:
            pool.terminate()


async def connect(url: str, *, patience: float | None = PATIENCE, read_only: bool = False) -> asyncpg.Connection:
    """Connect once; a statement may take so many seconds, or as long as it takes."""
    connection = await connect_bare(url, patience=patience)
    try:
        await _session(url, read_only=read_only)(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def connect_bare(
    url: str, *, patience: float | None, statement_cache_size: int = _STATEMENTS
) -> asyncpg.Connection:
    return await asyncpg.connect(
        url,
        timeout=PATIENCE if patience is None else patience,
        command_timeout=patience,
        server_settings=_APPLICATION,
        target_session_attrs=_attributes(url),
        statement_cache_size=statement_cache_size,
    )


async def location_of(connection: asyncpg.Connection) -> str:
    """Return a name for where the database is, by which a copy that is restored elsewhere is recognised."""
    database, cluster = await connection.fetchval(_LOCATION), ""
    with suppress(asyncpg.InsufficientPrivilegeError):  # some who host it do not tell
        cluster = await connection.fetchval(_CLUSTER)
    return f"postgresql:{cluster}/{database}"


def _session(
    url: str, *, read_only: bool
) -> Callable[[asyncpg.Connection | PoolConnectionProxy], Coroutine[Any, Any, None]]:
    named = _named(url)
    values = {name: value for name, value in _SESSION.items() if name not in named}
    if read_only:
        values["default_transaction_read_only"] = "'on'"
    settings = [f"set_config('{name}', {value}, false)" for name, value in values.items()]

    async def set_up(connection: asyncpg.Connection | PoolConnectionProxy) -> None:
        if settings:
            await connection.execute(f"SELECT {', '.join(settings)}", timeout=PATIENCE)

    return set_up


def _attributes(url: str) -> SessionAttribute | None:
    """Use, of several hosts, the one that takes writes, unless the URL says otherwise: a standby may be behind."""
    return SessionAttribute.read_write if len(read_postgres(url).hosts) > 1 and _ATTRIBUTES not in _named(url) else None


def _named(url: str) -> frozenset[str]:
    return frozenset(name for name, _ in parse_qsl(urlsplit(url).query))


async def _keep_session(_connection: object) -> None:
    """Reset nothing: nothing that we do stays with a connection, and a reset takes a round trip."""


# --- the connection that listens -------------------------------------------------------------------

_CHANNEL = "amo_callback"
_BEAT = 1.0
"""Seconds between two looks at whether the connection lives."""
_AGAIN = 0.5
"""Seconds until the next try to connect."""
_ANSWER_WITHIN = 2.0
"""Seconds that an answer may take."""
_MOST = 100
"""Connections that are named in one message, which may have 8,000 bytes; where there are more, it is any of them."""


class Listener:
    """The connection that listens, made anew whenever it is lost."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, clock: DatabaseClock) -> None:
        self._connect = connect
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._connection: asyncpg.Connection | None = None
        self._asking = asyncio.Lock()
        self._listeners: list[Callable[[ChangeNotice], None]] = []
        self.down: str | None = None
        """Why the database cannot be reached; `None` where it can, as far as is known."""

    def on_change(self, call: Callable[[ChangeNotice], None]) -> None:
        self._listeners.append(call)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen meanwhile; from the first moment on, where that can be."""
        with suppress(Exception):  # it is tried again
            await self._begin()
        task = asyncio.create_task(self._live(), name="store:listen")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._end()

    async def notify(self, connection: PoolConnectionProxy, changes: Iterable[ChangeNotice]) -> None:
        """Say, with the transaction that `connection` is in, what it changes."""
        if message := _message(list(changes)):
            await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, f"{self._name} {message}")

    async def ping(self) -> None:
        """Receive all notifications so far: they arrive before the answer to a query that is sent after them."""
        async with self._asking, asyncio.timeout(_ANSWER_WITHIN):
            if self._connection is None:
                raise ConnectionError
            asked_at = self._clock.monotonic()
            self._clock.set(await self._connection.fetchval("SELECT clock_timestamp()"), asked_at=asked_at)

    async def _live(self) -> None:
        while True:
            try:
                if self._connection is None:
                    async with asyncio.timeout(_ANSWER_WITHIN):
                        await self._begin()
                await asyncio.sleep(_BEAT)
                await self.ping()
            except Exception as error:  # noqa: BLE001 -- because whatever a server has answered, it may be well again
                if self._connection is None:
                    # One that was lost is made anew at once: only where that cannot be either is the database down; and
                    # not where there is merely none to spare.
                    self.down = None if isinstance(error, asyncpg.TooManyConnectionsError) else type(error).__name__
                    await asyncio.sleep(_AGAIN)
                self._end()

    async def _begin(self) -> None:
        connection = await self._connect()
        try:
            await connection.add_listener(_CHANNEL, self._on_message)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self.down = None
        self._notify_all(ANY)

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _on_message(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        sender, _, message = str(payload).partition(" ")
        if sender != self._name:
            self._notify_all(_read(message))

    def _notify_all(self, changed: ChangeNotice) -> None:
        for call in self._listeners:
            call(changed)


def _message(changes: list[ChangeNotice]) -> str:
    """Return what was changed, as one line; nothing, where that is no connection."""
    if not changes:
        return ""
    names = sorted({name for changed in changes for name in changed.connections or ()})
    every = len(names) > _MOST or any(changed.connections is None for changed in changes)
    erased = any(changed.erased for changed in changes)
    if every:
        return f"every {'erased' if erased else 'changed'}"
    kind = "erased" if erased else "belonging" if any(changed.belonging for changed in changes) else "changed"
    return " ".join([kind, *names])


def _read(message: str) -> ChangeNotice:
    kind, *names = message.split(" ")
    if kind == "every":
        return ChangeNotice(connections=None, belonging=True, erased=names == ["erased"])
    return ChangeNotice(connections=frozenset(names), belonging=kind != "changed", erased=kind == "erased")
