"""A PostgreSQL database looked at from outside, whoever works on it: nothing is made, upgraded or written."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store.engine import Engine, arguments, load_migrations, load_statements
from amo_callback.store.inspection import PAGE, SealedPair
from amo_callback.store.meta import read_freeze
from amo_callback.store.postgres_connection import (
    ERRORS,
    MISTAKEN,
    NEEDS_SESSIONS,
    Pooling,
    explain,
    find_pooling,
    location_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from amo_callback.model import Freeze

SETTINGS = {
    "synchronous_commit": ("on", "remote_apply", "remote_write", "local"),
    "default_transaction_isolation": ("read committed",),
    "default_transaction_read_only": ("off",),
    "fsync": ("on",),
    "full_page_writes": ("on",),
}
"""What the store relies on, and the values that it can work with. The service sets the first two by itself."""
_SETTINGS = "SELECT name, reset_val AS value FROM pg_settings WHERE name = ANY($1)"
_READ_ONLY = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
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
_SCHEMA = "SELECT to_regclass('schema_version') IS NOT NULL"
_VERSION = "SELECT version FROM schema_version"
_TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
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


@asynccontextmanager
async def open_postgres_inspection(url: str, *, patience: float) -> AsyncIterator[PostgresInspection]:
    """Connect, for reading only; an answer is waited for so many seconds.

    Raises `ConfigurationError` and `StoreUnavailable`; the latter also whoever looks into it.
    """
    try:
        if await find_pooling(url, patience=patience) is Pooling.TRANSACTION:
            raise ConfigurationError(f"{MISTAKEN}{NEEDS_SESSIONS}")
        connection = await asyncpg.connect(url, timeout=patience, command_timeout=patience, statement_cache_size=0)
    except ERRORS as error:
        raise explain(error) from None
    try:
        inspected = PostgresInspection(connection)
        await inspected.read_only()
        yield inspected
    finally:
        connection.terminate()


class PostgresInspection:
    """What a database holds. Nothing but pages is kept in memory."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._sql = load_statements(Engine.POSTGRES)
        self.known_schema = len(load_migrations(Engine.POSTGRES))

    async def read_only(self) -> None:
        """Have the server refuse every write of this session."""
        await self._fetch(_READ_ONLY)

    async def server(self) -> Server:
        """Ask the server about itself."""
        [row] = await self._fetch(_SERVER)
        return Server(**dict(row.items()))

    async def settings(self) -> dict[str, str]:
        """Return the server's values of `SETTINGS` for this user and database, before any session has set its own."""
        return {row["name"]: row["value"] for row in await self._fetch(_SETTINGS, list(SETTINGS))}

    async def schema(self) -> int | None:
        """Return the version of its schema; 0 where it is empty, `None` where it is no database of ours."""
        if (await self._fetch(_SCHEMA))[0][0]:
            return int((await self._fetch(_VERSION))[0][0])
        return None if (await self._fetch(_TABLES))[0][0] else 0

    async def canary(self) -> bytes | None:
        """Return the record by which keys are told to be the right ones; `None` before the first start."""
        return await self._mark("canary")

    async def machine(self) -> str | None:
        """Return the name of the place where it was last served."""
        found = await self._mark("machine")
        return None if found is None else found.decode()

    async def place(self) -> str:
        """Return the name of the place where it is."""
        try:
            return await location_of(self._connection)
        except ERRORS as error:
            raise StoreUnavailable(type(error).__name__) from None

    async def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""
        found = await self._mark("frozen")
        return None if found is None else read_freeze(found)

    async def count(self) -> int:
        """Count the connections that are not disconnected."""
        return int((await self._fetch(self._sql["count_connections"].text))[0][0])

    async def pairs(self, *, page: int = PAGE) -> AsyncIterator[SealedPair]:
        """Go through the connections that are not disconnected, so many at a time."""
        after, sql = "", self._sql["sealed_pairs"]
        while True:
            found = await self._fetch(sql.text, *arguments(sql, {"after": after, "limit": page}))
            for name, sealed in found:
                yield SealedPair(connection_id=name, sealed=sealed)
            if not found:
                return
            after = found[-1][0]

    async def _mark(self, name: str) -> bytes | None:
        found = await self._fetch(self._sql["get_meta"].text, name)
        return bytes(found[0][0]) if found else None

    async def _fetch(self, query: str, *values: object) -> Sequence[asyncpg.Record]:
        try:
            return list(await self._connection.fetch(query, *values))
        except ERRORS as error:
            raise StoreUnavailable(type(error).__name__) from None
