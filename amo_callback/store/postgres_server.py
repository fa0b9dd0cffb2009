"""What a PostgreSQL server says of itself, its errors in words, and what a pooler in front of it does.

The store needs a session: it listens, holds advisory locks, prepares statements and sets parameters. A pooler such as
PgBouncer that gives a server's connection to each transaction anew (`pool_mode = transaction`) takes all of that away,
and passes our parameters on to other clients. So it is recognised before any of that is sent.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.postgres_connection import ERRORS, PATIENCE, connect_bare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from amo_callback.clock import Clock

# --- errors ----------------------------------------------------------------------------------------

_MISCONFIGURED: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.InvalidPasswordError, "the server does not accept this user and password"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "the server does not accept this user from here: check pg_hba.conf, the user's name, and sslmode",
    ),
    (asyncpg.InvalidCatalogNameError, "the server has no database of that name: CREATE DATABASE"),
    (asyncpg.InvalidSchemaNameError, "the user has no schema for tables: set search_path"),
    (asyncpg.InsufficientPrivilegeError, "the user may not create or use tables: make it the database's owner"),
    (asyncpg.ClientConfigurationError, "options of the URL contradict each other, or a certificate is missing"),
    (asyncpg.UndefinedObjectError, "the URL names a parameter that the server does not know"),
    (asyncpg.CantChangeRuntimeParamError, "the URL names a parameter that cannot be set for a session"),
    (asyncpg.InvalidParameterValueError, "the URL gives a parameter a value that the server does not accept"),
    (ssl.SSLCertVerificationError, "its certificate is not valid for it: check sslrootcert and the host's name"),
    (ValueError, "the URL cannot be parsed"),
)
"""Errors that a restart does not remove; the first that fits is reported."""
_TRANSIENT: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.TooManyConnectionsError, "no connection is free: raise max_connections, or the user's limit"),
    (asyncpg.CannotConnectNowError, "the server is starting or stopping"),
    (asyncpg.ReadOnlySQLTransactionError, "the server is read-only, as a standby is"),
    (asyncpg.TargetServerAttributeNotMatched, "no host is of the kind that target_session_attrs requires"),
    (socket.gaierror, "the host's name cannot be resolved"),
    (TimeoutError, "no answer in time"),
    (ConnectionRefusedError, "connection refused"),
    (FileNotFoundError, "the socket, or a certificate, does not exist"),
    (PermissionError, "no permission to open the socket or a certificate"),
    (ssl.SSLError, "the TLS handshake failed"),
    (OSError, "the server cannot be reached"),
)
MISTAKEN = "storage.url: PostgreSQL cannot be used: "
_PARAMETERS = "unsupported startup parameter"
_NO_TLS = "the server does not offer TLS, which sslmode requires"


def explain(error: Exception) -> ConfigurationError | StoreUnavailable:
    """Return why the service cannot start: an error in the configuration, or one that may pass.

    The library's texts may quote values: only its types are used.
    """
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):  # has no type of its own
        return _mistake(_NO_TLS, error)
    if isinstance(error, asyncpg.ProtocolViolationError) and _PARAMETERS in str(error):  # PgBouncer's own
        return _mistake("PgBouncer rejects a parameter that the URL names: ignore_startup_parameters", error)
    for kind, why in _MISCONFIGURED:
        if isinstance(error, kind):
            return _mistake(why, error)
    name = type(error).__name__
    return StoreUnavailable(next((f"{why} ({name})" for kind, why in _TRANSIENT if isinstance(error, kind)), name))


def _mistake(why: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{MISTAKEN}{why} ({type(error).__name__})")


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
