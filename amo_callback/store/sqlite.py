"""The store on SQLite: one connection that writes, one that reads.

Every write is one unit, `BEGIN IMMEDIATE … COMMIT`, under one lock and out of reach of cancellation. Two
tasks that share a connection otherwise roll back each other's work, and a cancelled one leaves its
transaction open for the next. `synchronous=FULL`: what is said to be stored has been fsynced.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import aiosqlite

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.store import rows
from amo_callback.store.migrate import migrate_sqlite
from amo_callback.store.rows import ticks
from amo_callback.store.statements import load_migrations, load_statements
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from amo_callback.model import Claim, Connection, Grant, RefreshedPair, Verdict

T = TypeVar("T")
Row = sqlite3.Row

_BUSY_TIMEOUT_MS = 5000
_MISCONFIGURED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")
"""What no second start mends; whatever else (busy, full) may pass."""


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    """Open a database file, make it where there is none (0600), and bring its schema up to date."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # the WAL beside it gets the same mode
    except OSError as error:
        raise ConfigurationError(f"storage.url: {path} cannot be opened: {error.strerror}") from None
    # A connection left open keeps its thread, and that the process: so each in its own context.
    async with (
        aiosqlite.connect(path, isolation_level=None) as writer,
        aiosqlite.connect(path, isolation_level=None) as reader,
    ):
        try:
            await _prepare(writer)
            await migrate_sqlite(writer, load_migrations())
            await _prepare(reader)
            await reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            if _name(error).startswith(_MISCONFIGURED):
                raise ConfigurationError(f"storage.url: {path} cannot be used: {_name(error)}") from None
            raise StoreUnavailable(_name(error)) from None
        yield SqliteStore(writer=writer, reader=reader, statements=load_statements())


async def _prepare(database: aiosqlite.Connection) -> None:
    database.row_factory = sqlite3.Row
    await database.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    await database.execute("PRAGMA journal_mode = WAL")
    await database.execute("PRAGMA synchronous = FULL")


class SqliteStore:
    """The `Store` port on SQLite."""

    def __init__(
        self, *, writer: aiosqlite.Connection, reader: aiosqlite.Connection, statements: Mapping[str, str]
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._sql = statements
        self._writing = asyncio.Lock()

    async def ping(self) -> None:
        """Read something."""
        await self._read("ping")

    async def canary(self, fresh: bytes) -> bytes:
        """Return the store's canary; a new store keeps the fresh one."""

        async def unit() -> bytes:
            await self._run("save_canary", value=fresh)
            [row] = await self._run("canary")
            return bytes(row["value"])

        return await self._write(unit)

    async def prune(self, *, now: datetime, keep_grants: float) -> None:
        """Erase what expired grants hold, and forget them `keep_grants` seconds later."""

        async def unit() -> None:
            await self._run("erase_grants", now=now)
            await self._run("forget_grants", before=now - timedelta(seconds=keep_grants))

        await self._write(unit)

    # --- connections -----------------------------------------------------------------------------

    async def connection(self, connection_id: str) -> Connection | None:
        """Return one connection."""
        return _first(await self._read("connection", id=connection_id), rows.connection)

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, the freshest active one first."""
        return [rows.connection(dict(row)) for row in await self._read("connections_of", account_id=account_id)]

    async def due(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[str]:
        """Return the ids of connections whose refresh is due and not claimed, oldest expiry first."""
        found = await self._read("due", now=now, limit=limit, apart_from=json.dumps(list(apart_from)))
        return [row["id"] for row in found]

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody has claimed."""
        found = await self._read("next_due", now=now, apart_from=json.dumps(list(apart_from)))
        return rows.moment(found[0]["next_refresh_at"]) if found else None

    async def claim(self, claim: Claim) -> Connection | None:
        """Commit a claim; `None` where somebody holds one, or the pair is no longer the one read."""
        found = await self._write_one(
            "claim",
            id=claim.connection_id,
            pair_version=claim.pair_version,
            attempt=claim.attempt,
            owner=claim.owner,
            at=claim.at,
            until=claim.until,
            fingerprint=claim.fingerprint,
        )
        return _first(found, rows.connection)

    async def save_refreshed(self, refreshed: RefreshedPair) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` where its version was superseded."""
        found = await self._write_one(
            "save_refreshed",
            id=refreshed.connection_id,
            pair_version=refreshed.pair_version,
            sealed_pair=refreshed.sealed_pair,
            api_domain=refreshed.api_domain,
            issued_at=refreshed.issued_at,
            expires_at=refreshed.expires_at,
            refresh_expires_at=refreshed.refresh_expires_at,
            next_refresh_at=refreshed.next_refresh_at,
        )
        return _first(found, rows.connection)

    async def save_verdict(self, verdict: Verdict) -> bool:
        """Commit what became of an attempt without a pair; `False` where the attempt is no longer ours."""
        found = await self._write_one(
            "save_verdict",
            id=verdict.connection_id,
            attempt=verdict.attempt,
            status=verdict.status.value,
            reason=verdict.reason and verdict.reason.value,
            last_error=verdict.last_error,
            doubtful=verdict.doubtful,
            next_refresh_at=verdict.next_refresh_at,
        )
        return bool(found)

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""
        await self._write_one("release", id=connection_id, attempt=attempt)

    # --- grants ----------------------------------------------------------------------------------

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""
        return _first(await self._read("grant", code_hash=code_hash), rows.grant)

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""
        return _first(await self._read("grant_by_handle", handle_hash=handle_hash), rows.grant)

    async def claim_grant(self, grant: Grant, *, now: datetime) -> Grant:
        """Begin a grant, or try a failed one again; who began it is told by the result's `attempt`."""

        async def unit() -> Grant:
            await self._run(
                "claim_grant",
                code_hash=grant.code_hash,
                handle_hash=grant.handle_hash,
                sealed=grant.sealed,
                attempt=grant.attempt,
                lease_until=grant.lease_until,
                expires_at=grant.expires_at,
                now=now,
            )
            [row] = await self._run("grant", code_hash=grant.code_hash)
            return rows.grant(dict(row))

        return await self._write(unit)

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""
        return bool(await self._write_one("finish_grant", **_end(grant)))

    async def save_connected(self, grant: Grant, connection: Connection, *, token_iat: int | None) -> bool:
        """Commit a granted pair and its grant's end as one; `False` where a later grant's pair was kept."""

        async def unit() -> bool:
            saved = await self._run(
                "save_connected",
                id=connection.id,
                account_id=connection.account_id,
                user_id=connection.user_id,
                domain=connection.domain,
                api_domain=connection.api_domain,
                client_id=connection.client_id,
                sealed_pair=connection.sealed_pair,
                access_issued_at=connection.access_issued_at,
                access_expires_at=connection.access_expires_at,
                refresh_expires_at=connection.refresh_expires_at,
                next_refresh_at=connection.next_refresh_at,
                connected_at=connection.connected_at,
                token_iat=token_iat,
            )
            await self._run("finish_grant", **_end(grant))
            return bool(saved)

        return await self._write(unit)

    # --- one unit --------------------------------------------------------------------------------

    async def _read(self, name: str, **values: object) -> list[Row]:
        try:
            return await self._execute(self._reader, name, values)
        except (sqlite3.Error, ValueError) as error:
            raise StoreUnavailable(_name(error)) from None

    async def _write_one(self, name: str, **values: object) -> list[Row]:
        return await self._write(lambda: self._run(name, **values))

    async def _write(self, unit: Callable[[], Awaitable[T]]) -> T:
        async with self._writing:
            return await unbroken(self._transaction(unit))

    async def _transaction(self, unit: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            result = await unit()
            await self._writer.execute("COMMIT")
        except (sqlite3.Error, ValueError) as error:
            raise StoreUnavailable(_name(error)) from None
        finally:
            await self._roll_back()
        return result

    async def _roll_back(self) -> None:
        """End a transaction that was not committed, so that the next unit finds none open."""
        try:
            if self._writer.in_transaction:
                await self._writer.execute("ROLLBACK")
        except (sqlite3.Error, ValueError):
            return  # the next BEGIN tells

    async def _run(self, name: str, **values: object) -> list[Row]:
        return await self._execute(self._writer, name, values)

    async def _execute(self, database: aiosqlite.Connection, name: str, values: Mapping[str, object]) -> list[Row]:
        parameters = {key: ticks(v) if isinstance(v, datetime) else v for key, v in values.items()}
        return list(await database.execute_fetchall(self._sql[name], parameters))


def _end(grant: Grant) -> dict[str, Any]:
    return {
        "code_hash": grant.code_hash,
        "attempt": grant.attempt,
        "status": grant.status.value,
        "error": grant.error,
        "connection_id": grant.connection_id,
        "doubtful": grant.doubtful,
    }


def _first(found: list[Row], read: Callable[[Mapping[str, Any]], T]) -> T | None:
    return read(dict(found[0])) if found else None


def _name(error: BaseException) -> str:
    """Name an error without its text, which may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))
