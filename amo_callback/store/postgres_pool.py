"""Connections to a PostgreSQL server: how long anything on them may take, and which of several hosts they go to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from amo_callback.config.database_url import read_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from asyncpg.pool import PoolConnectionProxy

CONNECTIONS = 10
"""Of one instance, beside the one that listens."""
PATIENCE = 5.0
"""Seconds for a connection, a free one of the pool, or a statement: longer than that nobody is kept waiting."""
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)
"""What the library raises, of whatever kind; a timeout is an `OSError`."""
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
that name such parameters as they connect. `default_transaction_read_only` stays as it is: whoever has set it wants
nothing written."""
_STATEMENTS = 100
"""Prepared statements of a connection: the library's own default."""
_ATTRIBUTES = "target_session_attrs"
_PLACE = "SELECT concat_ws('/', oid, datname, current_schema()) FROM pg_database WHERE datname = current_database()"
_CLUSTER = "SELECT system_identifier FROM pg_control_system()"


@asynccontextmanager
async def open_pool(url: str) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool, without connecting yet; at its end a server that does not answer is not waited for."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=CONNECTIONS,
        timeout=PATIENCE,
        command_timeout=PATIENCE,
        server_settings=_APPLICATION,
        target_session_attrs=_attributes(url),
        init=_session(url),
        reset=_left_as_it_is,
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(PATIENCE):
                await pool.close()
        except ERRORS:
            pool.terminate()


async def connect(url: str, *, patience: float | None = PATIENCE) -> asyncpg.Connection:
    """Connect once; a statement may take so many seconds, or as long as it takes."""
    connection = await connect_bare(url, patience=patience)
    try:
        await _session(url)(connection)
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


async def place_of(connection: asyncpg.Connection) -> str:
    """Return a name for where the database is: a copy that is put back elsewhere is told by it."""
    database, cluster = await connection.fetchval(_PLACE), ""
    with suppress(asyncpg.InsufficientPrivilegeError):  # some who host it do not tell
        cluster = await connection.fetchval(_CLUSTER)
    return f"postgresql:{cluster}/{database}"


def _session(url: str) -> Callable[[asyncpg.Connection | PoolConnectionProxy], Coroutine[Any, Any, None]]:
    """Return what sets a new connection's parameters."""
    named = _named(url)
    settings = [f"set_config('{name}', {value}, false)" for name, value in _SESSION.items() if name not in named]

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


async def _left_as_it_is(_connection: object) -> None:
    """Leave a connection as it is for the next: nothing that we do stays with it, and to ask takes a round trip."""
