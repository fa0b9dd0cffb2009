"""Connections to a PostgreSQL server: how long they may take, what a pooler in between does, what a server can do.

The store needs a session: it listens, holds advisory locks, prepares statements and sets parameters. A pooler such as
PgBouncer that gives a server's connection to each transaction anew (`pool_mode = transaction`) takes all of that away,
and passes our parameters on to other clients. So it is recognised before any of that is sent.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from amo_callback.config.database_url import read_postgres
from amo_callback.errors import ConfigurationError
from amo_callback.store.postgres_errors import ERRORS, MISTAKEN, explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.clock import Clock

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
    """Connect once, and set nothing in the session."""
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
    """Return what sets a new connection's parameters."""
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
    """Return the options that the URL sets."""
    return frozenset(name for name, _ in parse_qsl(urlsplit(url).query))


async def _keep_session(_connection: object) -> None:
    """Reset nothing: nothing that we do stays with a connection, and a reset takes a round trip."""


# --- a pooler in between ---------------------------------------------------------------------------

_NEEDS_SESSIONS = (
    "PgBouncer, or another pooler in between, gives its connections out for each transaction (pool_mode = transaction "
    "or statement), and the service needs sessions"
)
USE_SESSIONS = "set pool_mode = session for this database there, or connect to the server directly"
_OTHERS = 3
"""Clients that hold a transaction open while the first one is asked again: where the pooler has several connections to
the server at hand, it need not give the same one to the very next client."""
_PROCESS = "SELECT pg_backend_pid()"
_NO_TRANSACTIONS = "pooling mode"
"""What PgBouncer says in statement mode where a transaction begins."""


class Pooling(StrEnum):
    """How connections to the server are shared with other clients.

    A pooler shows by itself: the process number that it names when a client connects is not that of the server's
    process. How it pools shows once two clients use it at the same time, also where nobody else does: in session mode
    no other client is given the server's process of a client that is connected, and that one keeps its own.
    """

    NONE = "none"
    SESSION = "session"
    TRANSACTION = "transaction"


async def find_pooling(url: str, *, patience: float = PATIENCE) -> Pooling:
    """Return how a pooler in between gives out connections; raises what the library raises."""
    async with _connected(url, patience) as first:
        try:
            process = await _process_id(first)
            if process == first.get_server_pid():
                return Pooling.NONE
            return Pooling.TRANSACTION if await _is_shared(first, process, url, patience) else Pooling.SESSION
        except ERRORS as error:
            if _NO_TRANSACTIONS in str(error):
                return Pooling.TRANSACTION
            raise


async def check_pooling(url: str, *, patience: float = PATIENCE) -> None:
    """Raise `ConfigurationError` where a pooler in between gives out connections for transactions alone."""
    if await find_pooling(url, patience=patience) is Pooling.TRANSACTION:
        raise ConfigurationError(f"{MISTAKEN}{_NEEDS_SESSIONS}: {USE_SESSIONS}")


async def _is_shared(first: asyncpg.Connection, process: int, url: str, patience: float) -> bool:
    """Return whether a client's server process is given to others while it is connected, or another one to it."""
    async with AsyncExitStack() as stack:
        with suppress(*ERRORS):  # no room for one more client: that says nothing against session mode
            for _ in range(_OTHERS):
                other = await stack.enter_async_context(_connected(url, patience))
                await stack.enter_async_context(other.transaction())
                if await other.fetchval(_PROCESS) == process or await _process_id(first) != process:
                    return True
    return False


async def _process_id(connection: asyncpg.Connection) -> int:
    """Return the number of the server's process; within a transaction, so that the library's two steps reach one."""
    async with connection.transaction():
        return int(await connection.fetchval(_PROCESS))


@asynccontextmanager
async def _connected(url: str, patience: float) -> AsyncIterator[asyncpg.Connection]:
    """Connect meanwhile, with nothing set and nothing prepared."""
    connection = await connect_bare(url, patience=patience, statement_cache_size=0)
    try:
        yield connection
    finally:
        connection.terminate()


# --- what a server says of itself ------------------------------------------------------------------

SETTINGS = {
    "synchronous_commit": ("on", "remote_apply", "remote_write", "local"),
    "default_transaction_isolation": ("read committed",),
    "default_transaction_read_only": ("off",),
    "fsync": ("on",),
    "full_page_writes": ("on",),
}
"""What the store relies on, and the values that it can work with. The service sets the first two by itself."""
_SETTINGS = "SELECT name, reset_val AS value FROM pg_settings WHERE name = ANY($1)"
_SERVER = """
SELECT
    current_setting('server_version') AS version,
    CAST(current_setting('server_version_num') AS INTEGER) / 10000 AS major,
    pg_is_in_recovery() AS is_standby,
    (SELECT CASE WHEN ssl THEN version END FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls,
    clock_timestamp() AS now,
    current_setting('server_encoding') AS encoding,
    LEAST(
        CAST(current_setting('max_connections') AS INTEGER)
            - CAST(current_setting('superuser_reserved_connections') AS INTEGER)
            - CAST(COALESCE(current_setting('reserved_connections', true), '0') AS INTEGER),
        (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
        (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database())
    ) AS allowed
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What a server says of itself."""

    version: str
    major: int
    is_standby: bool
    tls: str | None
    """The version of TLS that the connection has; `None` where it has none."""
    now: datetime
    encoding: str
    allowed: int
    """Connections that this user may have to this database, all of its together."""
    settings: Mapping[str, str]
    """Those of `SETTINGS` for this user and database, before any session has set its own."""


async def read_server(url: str, *, patience: float, clock: Clock) -> tuple[ServerFacts, datetime]:
    """Ask a server about itself; return `clock`'s time as it answered, too. It may take so many seconds.

    Raises `ConfigurationError`, and `StoreUnavailable` where it is away.
    """
    try:
        await check_pooling(url, patience=patience)
        async with _connected(url, patience) as connection:
            asked = clock.now()
            [row] = await connection.fetch(_SERVER)
            at = asked + (clock.now() - asked) / 2
            settings = await connection.fetch(_SETTINGS, list(SETTINGS))
    except ERRORS as error:
        raise explain(error) from None
    return ServerFacts(**dict(row.items()), settings={one["name"]: one["value"] for one in settings}), at
