"""The schema's version: brought up to date at start, never guessed."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

from amo_callback.errors import BackupFailed, ConfigurationError
from amo_callback.store.engine import load_migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import aiosqlite
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from amo_callback.store.engine import Engine

_PATIENCE = 86400.0
"""Seconds for a step: the library's own limit is for statements that callers wait for."""
ENCODINGS = ("UTF8", "SQL_ASCII")
"""Those that take every text; the second one takes any bytes, which are ours."""
_VERSION = "PRAGMA user_version"
_IS_THERE = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = ANY($1)"


async def migrate_sqlite(
    database: aiosqlite.Connection, migrations: Sequence[Sequence[str]], *, back_up: Callable[[int], None]
) -> None:
    """Apply what is missing, each migration whole or not at all; raises `ConfigurationError`.

    Where nothing is missing nothing is written: a full disk is no reason not to serve what is there. A database that is
    not new is backed up first, by its version: where `back_up` raises `BackupFailed` nothing is changed.
    """
    if await _number(database, _VERSION) == len(migrations):
        return
    await database.execute("BEGIN IMMEDIATE")
    try:
        version = await _number(database, _VERSION)
        if version > len(migrations):
            raise OtherSchema(version, known=len(migrations))
        if version == 0 and await _number(database, "SELECT count(*) FROM sqlite_master"):
            raise OtherSchema(version, known=len(migrations), is_foreign=True)
        if 0 < version < len(migrations):
            await asyncio.to_thread(back_up, version)
        for statements in migrations[version:]:
            for statement in statements:
                await database.execute(statement)
        await database.execute(f"PRAGMA user_version = {len(migrations)}")
        await database.execute("COMMIT")
    except (ConfigurationError, BackupFailed, sqlite3.Error):
        if database.in_transaction:  # on a full disk SQLite has rolled back by itself
            await database.execute("ROLLBACK")
        raise


async def migrate_postgres(
    database: PoolConnectionProxy | asyncpg.Connection, migrations: Sequence[Sequence[str]]
) -> None:
    """Apply what is missing, all of it or nothing, while other instances start; raises `ConfigurationError`."""
    encoding = await database.fetchval("SHOW server_encoding")
    if encoding not in ENCODINGS:
        # An owner's name that it does not take would keep a pair from being stored that has been paid for.
        raise ConfigurationError(
            f"storage.url: the database's encoding is {encoding}: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if await _schema(database) == len(migrations):
        return
    async with database.transaction():
        await database.execute("SET LOCAL statement_timeout = 0")  # an index of a large table takes its time
        await database.execute("SET LOCAL lock_timeout = 0")
        await database.execute(
            "SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.amo_callback.schema'))", timeout=_PATIENCE
        )
        version = await _schema(database)
        if version > len(migrations):
            raise OtherSchema(version, known=len(migrations))
        if version == 0:
            if await database.fetchval(_IS_THERE, ["meta", "connections"]):
                raise OtherSchema(version, known=len(migrations), is_foreign=True)
            await database.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            await database.execute("INSERT INTO schema_version (version) VALUES (0)")
        for statements in migrations[version:]:
            for statement in statements:
                await database.execute(statement, timeout=_PATIENCE)
        await database.execute("UPDATE schema_version SET version = $1", len(migrations))


async def _schema(database: PoolConnectionProxy | asyncpg.Connection) -> int:
    """Return the version of the schema; 0 where there is none."""
    # Asked of the catalogue: `to_regclass` may remember from before the lock that there was none.
    if not await database.fetchval(_IS_THERE, ["schema_version"]):
        return 0
    return int(await database.fetchval("SELECT version FROM schema_version"))


def another_version(version: int, *, known: int) -> str:
    """Name the version that made a database; its schemas before 1.0 had numbers of their own."""
    return f"another version of amo-callback (schema {version}, known here: {known})"


class OtherSchema(ConfigurationError):
    """The database is of another version of amo-callback; of version 0, it is empty or holds something else."""

    def __init__(self, version: int, *, known: int, is_foreign: bool = False) -> None:
        what = f"is of {another_version(version, known=known)}: install that version, or restore a backup of this one"
        if version == 0:
            what = "holds something else: name one of its own" if is_foreign else "is empty"
        super().__init__(f"storage.url: the database {what}")
        self.version = version
        self.known = known
        self.is_foreign = is_foreign
        """Whether it has tables, and none of them is ours."""


def latest_schema(engine: Engine) -> int:
    """Return the version of the schema that this version of amo-callback makes."""
    return len(load_migrations(engine))


async def check_sqlite_schema(database: aiosqlite.Connection, known: int) -> None:
    version = await _number(database, _VERSION)
    if version != known:
        raise OtherSchema(version, known=known, is_foreign=version == 0)


async def check_postgres_schema(database: asyncpg.Connection, known: int) -> None:
    version = await _schema(database)
    if version != known:
        tables = "SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = current_schema())"
        raise OtherSchema(version, known=known, is_foreign=version == 0 and await database.fetchval(tables))


async def _number(database: aiosqlite.Connection, query: str) -> int:
    async with database.execute(query) as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else 0
