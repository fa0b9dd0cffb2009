"""A connection pooler between this process and PostgreSQL, such as PgBouncer, and how it gives out connections.

The store needs a session: it listens, holds advisory locks, prepares statements and sets parameters. A pooler that
gives a server's connection to each transaction anew (`pool_mode = transaction`) takes all of that away, and passes our
parameters on to other clients. So it is recognised before any of that is sent.

A pooler shows by itself: the process number that it names when a client connects is not that of the server's process.
How it pools shows once two clients use it at the same time, also where nobody else does: in session mode no other
client is given the server's process of a client that is connected, and that one keeps its own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from amo_callback.store.postgres_pool import ERRORS, PATIENCE, connect_bare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

NEEDS_SESSIONS = (
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
    """How connections to the server are shared with other clients."""

    NONE = "none"
    SESSION = "session"
    TRANSACTION = "transaction"


async def find_pooling(url: str, *, patience: float = PATIENCE) -> Pooling:
    """Return how a pooler in between gives out connections; raises what the library raises."""
    async with _connected(url, patience) as first:
        try:
            process = await _process(first)
            if process == first.get_server_pid():
                return Pooling.NONE
            return Pooling.TRANSACTION if await _is_shared(first, process, url, patience) else Pooling.SESSION
        except ERRORS as error:
            if _NO_TRANSACTIONS in str(error):
                return Pooling.TRANSACTION
            raise


async def _is_shared(first: asyncpg.Connection, process: int, url: str, patience: float) -> bool:
    """Tell whether a client's server process is given to others while it is connected, or another one to itself."""
    async with AsyncExitStack() as stack:
        with suppress(*ERRORS):  # no room for one more client: that says nothing against session mode
            for _ in range(_OTHERS):
                other = await stack.enter_async_context(_connected(url, patience))
                await stack.enter_async_context(other.transaction())
                if await other.fetchval(_PROCESS) == process or await _process(first) != process:
                    return True
    return False


async def _process(connection: asyncpg.Connection) -> int:
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
