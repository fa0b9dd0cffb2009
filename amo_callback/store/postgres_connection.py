"""Connections to a PostgreSQL server: how long they may take, what they set, and their errors in words."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from amo_callback.config.database_url import read_postgres
from amo_callback.errors import ConfigurationError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from asyncpg.pool import PoolConnectionProxy


ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
"""All that the library raises; a timeout is an `OSError`."""
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


# --- connections -----------------------------------------------------------------------------------

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
