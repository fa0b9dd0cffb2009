"""What a PostgreSQL server says of itself, and what a pooler in front of it does.

The store needs a session: it listens, holds advisory locks, prepares statements and sets parameters. A pooler such as
PgBouncer that gives a server's connection to each transaction anew (`pool_mode = transaction`) takes all of that away,
and passes our parameters on to other clients. So it is recognised before any of that is sent.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError
from amo_callback.store.postgres_connection import ERRORS, MISTAKEN, PATIENCE, connect_bare, explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    import asyncpg

    from amo_callback.clock import Clock

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
