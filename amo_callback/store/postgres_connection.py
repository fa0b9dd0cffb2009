"""Connections to a PostgreSQL server: a pool, and one connection that listens for changes by other instances.

The listening connection also detects outages. Each transaction sends a notification of its changes when it commits.
Notifications are lost while this process is not listening, and a pooler may drop all of them. Cache entries are
therefore valid only briefly.
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
"""The exceptions that asyncpg raises; a timeout is an `OSError`."""
CONNECTIONS = 10
"""The pool size of one instance, excluding the listening connection."""
WAIT_LIMIT = 5.0
"""The timeout, in seconds, for connecting, for acquiring a pooled connection, and for a statement."""
_APPLICATION = {"application_name": "amo-callback"}
_SESSION = {
    "statement_timeout": "'5s'",
    "lock_timeout": "'3s'",
    # Releases the locks of a process that was suspended during a transaction.
    "idle_in_transaction_session_timeout": "'5s'",
    # Each statement sees all earlier commits, so a row that is read under its lock is current.
    "default_transaction_isolation": "'read committed'",
    # A successful COMMIT must be on the server's disk: with `off`, a crash loses pairs whose old token is spent.
    # All other values flush to the server's disk and are left unchanged. `local` does not wait for a standby.
    # `remote_write` waits until the standby has received the change, `on` until the standby has flushed it, and
    # `remote_apply` until the standby has applied it.
    "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END",
}
"""The session parameters that the store sets, as SQL expressions; parameters in the URL take precedence.

The store sets its parameters after connecting: PgBouncer rejects them in a connection request.
`default_transaction_read_only` is never set to `off`, because an operator who has set it to `on` wants no writes.
"""
_STATEMENTS = 100
"""The maximum number of prepared statements cached per connection; asyncpg's default."""
_ATTRIBUTES = "target_session_attrs"
_LOCATION = "SELECT concat_ws('/', oid, datname, current_schema()) FROM pg_database WHERE datname = current_database()"
_CLUSTER = "SELECT system_identifier FROM pg_control_system()"


@asynccontextmanager
async def open_pool(url: str, *, read_only: bool = False) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool without connecting yet; closing the pool waits for the server for at most `WAIT_LIMIT` seconds."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=CONNECTIONS,
        timeout=WAIT_LIMIT,
        command_timeout=WAIT_LIMIT,
        server_settings=_APPLICATION,
        target_session_attrs=_attributes(url),
        init=_session(url, read_only=read_only),
        reset=_keep_session,
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(WAIT_LIMIT):
                await pool.close()
        except ERRORS:
            pool.terminate()


async def connect(url: str, *, wait_limit: float | None = WAIT_LIMIT, read_only: bool = False) -> asyncpg.Connection:
    """Open a connection; `wait_limit` is the timeout of each statement in seconds, or `None` for no timeout."""
    connection = await connect_bare(url, wait_limit=wait_limit)
    try:
        await _session(url, read_only=read_only)(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def connect_bare(
    url: str, *, wait_limit: float | None, statement_cache_size: int = _STATEMENTS
) -> asyncpg.Connection:
    return await asyncpg.connect(
        url,
        timeout=WAIT_LIMIT if wait_limit is None else wait_limit,
        command_timeout=wait_limit,
        server_settings=_APPLICATION,
        target_session_attrs=_attributes(url),
        statement_cache_size=statement_cache_size,
    )


async def location_of(connection: asyncpg.Connection) -> str:
    """Return a name for the database's location; a copy that is restored elsewhere has another name."""
    database, cluster = await connection.fetchval(_LOCATION), ""
    with suppress(asyncpg.InsufficientPrivilegeError):  # some hosting providers do not allow this query
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
            await connection.execute(f"SELECT {', '.join(settings)}", timeout=WAIT_LIMIT)

    return set_up


def _attributes(url: str) -> SessionAttribute | None:
    """Return `read_write` if the URL names several hosts and no `target_session_attrs`, because a standby may lag."""
    return SessionAttribute.read_write if len(read_postgres(url).hosts) > 1 and _ATTRIBUTES not in _named(url) else None


def _named(url: str) -> frozenset[str]:
    return frozenset(name for name, _ in parse_qsl(urlsplit(url).query))


async def _keep_session(_connection: object) -> None:
    """Skip asyncpg's reset between uses, because it costs a round trip and the service leaves no session state."""


# --- the connection that listens -------------------------------------------------------------------

_CHANNEL = "amo_callback"
_BEAT = 1.0
"""The interval between checks of the connection, in seconds."""
_AGAIN = 0.5
"""The delay before the next try to connect, in seconds."""
_ANSWER_WITHIN = 2.0
"""The timeout of a check in seconds."""
_MOST = 100
"""The maximum number of connection ids in a notification, which PostgreSQL limits to 8,000 bytes.

If more connections have changed, the notification names none, and the receiver assumes that any connection may have
changed.
"""


class Listener:
    """The listening connection, reopened whenever it is lost."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, clock: DatabaseClock) -> None:
        self._connect = connect
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._connection: asyncpg.Connection | None = None
        self._asking = asyncio.Lock()
        self._listeners: list[Callable[[ChangeNotice], None]] = []
        self.down: str | None = None
        """The type of the error while the database is unreachable; otherwise `None`."""

    def on_change(self, call: Callable[[ChangeNotice], None]) -> None:
        self._listeners.append(call)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen for notifications until the context ends."""
        with suppress(Exception):  # the background task tries again
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
        """Notify other instances of changes, within the transaction of `connection`."""
        if message := _message(list(changes)):
            await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, f"{self._name} {message}")

    async def ping(self) -> None:
        """Send a query. All pending notifications have been received when its response arrives."""
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
            except Exception as error:  # noqa: BLE001 -- retry after any error
                if self._connection is None:
                    # A lost connection is reopened immediately. If reopening fails, too, the database counts as
                    # unreachable, unless the server merely has no free connection.
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
    """Encode changes as one line, or as an empty string if there are none."""
    if not changes:
        return ""
    names = sorted({name for changed in changes for name in changed.connections or ()})
    every = len(names) > _MOST or any(changed.connections is None for changed in changes)
    erased = any(changed.erased for changed in changes)
    if every:
        return f"every {'erased' if erased else 'changed'}"
    kind = "erased" if erased else "belonging" if any(changed.membership_changed for changed in changes) else "changed"
    return " ".join([kind, *names])


def _read(message: str) -> ChangeNotice:
    kind, *names = message.split(" ")
    if kind == "every":
        return ChangeNotice(connections=None, membership_changed=True, erased=names == ["erased"])
    return ChangeNotice(connections=frozenset(names), membership_changed=kind != "changed", erased=kind == "erased")
