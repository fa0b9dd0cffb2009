"""Error messages for a PostgreSQL server, facts about the server, and detection of a connection pooler.

The store needs sessions: it listens for notifications, holds advisory locks, prepares statements and sets session
parameters. These features do not work with a pooler in transaction mode, such as PgBouncer with
`pool_mode = transaction`, which also passes session parameters on to other clients. A pooler is therefore detected
before the store uses any of these features.
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
from amo_callback.store.postgres_connection import ERRORS, WAIT_LIMIT, connect_bare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from amo_callback.clock import Clock

# --- errors ----------------------------------------------------------------------------------------

_MISCONFIGURED: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.InvalidPasswordError, "the server does not accept this user and password"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "the server does not accept this user from this machine; check pg_hba.conf, the user name, and sslmode",
    ),
    (asyncpg.InvalidCatalogNameError, "the server does not have the database in the URL; run CREATE DATABASE"),
    (asyncpg.InvalidSchemaNameError, "the user has no schema in which to create tables; set search_path"),
    (asyncpg.InsufficientPrivilegeError, "the user cannot create or use tables; make this user the database's owner"),
    (asyncpg.ClientConfigurationError, "the URL's options conflict, or a certificate is missing"),
    (asyncpg.UndefinedObjectError, "the URL names a parameter that the server does not know"),
    (asyncpg.CantChangeRuntimeParamError, "the URL names a parameter that cannot be set for a session"),
    (asyncpg.InvalidParameterValueError, "the URL sets a parameter to a value that the server does not accept"),
    (ssl.SSLCertVerificationError, "the server's certificate cannot be verified; check sslrootcert and the host name"),
    (ValueError, "the URL cannot be parsed"),
)
"""Errors that a restart does not fix; the first match is reported."""
_TRANSIENT: Sequence[tuple[type[Exception], str]] = (
    (
        asyncpg.TooManyConnectionsError,
        "the server has no free connection; raise max_connections, or the user's connection limit",
    ),
    (asyncpg.CannotConnectNowError, "the server is starting or stopping"),
    (asyncpg.ReadOnlySQLTransactionError, "the server is read-only; it may be a standby"),
    (asyncpg.TargetServerAttributeNotMatched, "no host meets the requirement of target_session_attrs"),
    (socket.gaierror, "the host's name cannot be resolved"),
    (TimeoutError, "the server did not respond in time"),
    (ConnectionRefusedError, "connection refused"),
    (FileNotFoundError, "the socket, or a certificate, does not exist"),
    (PermissionError, "this process has no permission to open the socket or a certificate"),
    (ssl.SSLError, "the TLS handshake failed"),
    (OSError, "the server cannot be reached"),
)
MISTAKEN = "storage.url: "
_PARAMETERS = "unsupported startup parameter"
_NO_TLS = "the server does not offer TLS, which sslmode requires"


def explain(error: Exception) -> ConfigurationError | StoreUnavailable:
    """Return the error to raise: `ConfigurationError`, or `StoreUnavailable` if `error` may be temporary.

    The message of `error` is not included, because asyncpg's messages may quote values.
    """
    if isinstance(error, ConnectionError) and "rejected SSL" in str(error):  # asyncpg raises no more specific type
        return _mistake(_NO_TLS, error)
    if isinstance(error, asyncpg.ProtocolViolationError) and _PARAMETERS in str(error):  # PgBouncer's message
        return _mistake("PgBouncer rejects a parameter in the URL; add it to ignore_startup_parameters", error)
    for kind, why in _MISCONFIGURED:
        if isinstance(error, kind):
            return _mistake(why, error)
    name = type(error).__name__
    return StoreUnavailable(next((f"{why} ({name})" for kind, why in _TRANSIENT if isinstance(error, kind)), name))


def _mistake(why: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{MISTAKEN}{why} ({type(error).__name__})")


# --- connection poolers -----------------------------------------------------------------------------

_NEEDS_SESSIONS = (
    "PgBouncer, or another pooler, assigns a server connection per transaction or statement, but the service needs "
    "sessions"
)
USE_SESSIONS = "set pool_mode = session for this database in the pooler, or connect to the server directly"
_OTHERS = 3
"""The number of other clients that hold a transaction open while the first client is checked.

One is not enough: a pooler with several free server connections can assign any of them to the next client.
"""
_PROCESS = "SELECT pg_backend_pid()"
_NO_TRANSACTIONS = "pooling mode"
"""A part of the error that PgBouncer in statement mode returns at the beginning of a transaction."""


class Pooling(StrEnum):
    """The way in which a pooler shares server connections among clients.

    Behind a pooler, the process id reported at connect differs from that of the server process. The mode is determined
    with several clients at the same time: in session mode, a connected client keeps its server process, and no other
    client uses that process.
    """

    NONE = "none"
    SESSION = "session"
    TRANSACTION = "transaction"


async def find_pooling(url: str, *, wait_limit: float = WAIT_LIMIT) -> Pooling:
    """Return the mode of the pooler between this process and the server, if any; raises asyncpg's errors."""
    async with _connected(url, wait_limit) as first:
        try:
            process = await _process_id(first)
            if process == first.get_server_pid():
                return Pooling.NONE
            return Pooling.TRANSACTION if await _is_shared(first, process, url, wait_limit) else Pooling.SESSION
        except ERRORS as error:
            if _NO_TRANSACTIONS in str(error):
                return Pooling.TRANSACTION
            raise


async def check_pooling(url: str, *, wait_limit: float = WAIT_LIMIT) -> None:
    """Raise `ConfigurationError` if the server is behind a pooler that does not provide sessions."""
    if await find_pooling(url, wait_limit=wait_limit) is Pooling.TRANSACTION:
        raise ConfigurationError(f"{MISTAKEN}{_NEEDS_SESSIONS}: {USE_SESSIONS}")


async def _is_shared(first: asyncpg.Connection, process: int, url: str, wait_limit: float) -> bool:
    """Return whether a connected client's server process changes, or is also assigned to another client."""
    async with AsyncExitStack() as stack:
        with suppress(*ERRORS):  # an error, for example too many clients, can occur in any mode
            for _ in range(_OTHERS):
                other = await stack.enter_async_context(_connected(url, wait_limit))
                await stack.enter_async_context(other.transaction())
                if await other.fetchval(_PROCESS) == process or await _process_id(first) != process:
                    return True
    return False


async def _process_id(connection: asyncpg.Connection) -> int:
    """Return the id of the server process.

    asyncpg prepares and executes the query in two steps; a transaction ensures that both reach the same process.
    """
    async with connection.transaction():
        return int(await connection.fetchval(_PROCESS))


@asynccontextmanager
async def _connected(url: str, wait_limit: float) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection without session parameters or cached prepared statements."""
    connection = await connect_bare(url, wait_limit=wait_limit, statement_cache_size=0)
    try:
        yield connection
    finally:
        connection.terminate()


# --- facts about a server --------------------------------------------------------------------------

SETTINGS = {
    "synchronous_commit": ("on", "remote_apply", "remote_write", "local"),
    "default_transaction_isolation": ("read committed",),
    "default_transaction_read_only": ("off",),
    "fsync": ("on",),
    "full_page_writes": ("on",),
}
"""Server settings that the store relies on, with acceptable values; the service sets the first two in its sessions."""
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
    """The TLS version of the connection; `None` without TLS."""
    now: datetime
    encoding: str
    allowed: int
    """The maximum number of connections of this user to this database."""
    settings: Mapping[str, str]
    """The values of `SETTINGS` for this user and database, before the service sets its session parameters."""


async def read_server(url: str, *, wait_limit: float, clock: Clock) -> tuple[ServerFacts, datetime]:
    """Return facts about a server, and the time by `clock` at which the server reported its own time.

    Raises `ConfigurationError`, and `StoreUnavailable` if the server is unreachable.
    """
    try:
        await check_pooling(url, wait_limit=wait_limit)
        async with _connected(url, wait_limit) as connection:
            asked = clock.now()
            [row] = await connection.fetch(_SERVER)
            at = asked + (clock.now() - asked) / 2
            settings = await connection.fetch(_SETTINGS, list(SETTINGS))
    except ERRORS as error:
        raise explain(error) from None
    return ServerFacts(**dict(row.items()), settings={one["name"]: one["value"] for one in settings}), at
