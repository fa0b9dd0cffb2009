"""Stores opened read-only, and databases that cannot be opened."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.model import ConnectionFilter
from amo_callback.store import open_store
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import OtherSchema, latest_schema
from tests.builders import a_connection, save
from tests.postgres import connected

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.store import Store
    from tests.postgres import WrittenClock
    from tests.store.conftest import OpenAs

    Reading = AbstractAsyncContextManager[Store]

NAME = "amo-callback.db"


@pytest.fixture
def reading(database_url: str, tmp_path: Path, clock: WrittenClock) -> Reading:
    """Return the read-only store, not yet opened."""
    return open_store(database_url, folder=tmp_path, clock=clock, read_only=True)


async def _run(database_url: str, folder: Path, on_sqlite: str, on_postgres: str) -> None:
    if database_url.startswith("sqlite:"):
        with closing(sqlite3.connect(folder / NAME)) as database, database:
            database.execute(on_sqlite)
        return
    async with connected(database_url) as connection:
        await connection.execute(on_postgres)


async def test_read_only_store_reads_and_refuses_writes(
    open_as: OpenAs, reading: AbstractAsyncContextManager[Store]
) -> None:
    """A read-only store reads everything and fails each write."""
    async with open_as("one") as store:
        stored = await save(store, a_connection())
        await store.canary(b"canary")
        await store.check_machine("here")
    async with reading as store:
        assert await store.page(after="", limit=9, only=ConnectionFilter()) == [stored]
        assert await store.stored_canary() == b"canary"
        assert await store.is_whole()
        assert not await store.is_elsewhere("here")
        for writing in (store.freeze_all(why="a test"), store.release(connection_id=stored.id, attempt="a")):
            with pytest.raises(StoreUnavailable):
                await writing
        assert await store.frozen() is None


async def test_read_only_store_sees_writes_of_running_service(
    store: Store, reading: AbstractAsyncContextManager[Store]
) -> None:
    """A read-only store beside a running service reads what the service writes."""
    async with reading as other:
        stored = await save(store, a_connection())
        assert await other.connection(stored.id) == stored


async def test_read_only_store_leaves_no_file(
    open_as: OpenAs, reading: Reading, database_url: str, tmp_path: Path
) -> None:
    """A read-only store leaves no WAL files, because no service would remove them."""
    if not database_url.startswith("sqlite:"):
        pytest.skip("a server has files of its own")
    async with open_as("one") as store:
        await save(store, a_connection())
    before = (tmp_path / NAME).read_bytes()
    async with reading as store:
        await store.count()
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize(("step", "read_only"), [(-2, True), (1, True), (1, False)])
async def test_open_other_schema_is_refused(
    open_as: OpenAs, database_url: str, tmp_path: Path, clock: WrittenClock, step: int, *, read_only: bool
) -> None:
    """The error names both schema versions, and nothing is upgraded; read-only, an older schema is refused, too."""
    async with open_as("one"):
        pass
    known = latest_schema(Engine.SQLITE if database_url.startswith("sqlite:") else Engine.POSTGRES)
    version = known + step
    on_postgres = f"UPDATE schema_version SET version = {version}"  # noqa: S608 -- a number
    await _run(database_url, tmp_path, f"PRAGMA user_version = {version}", on_postgres)
    with pytest.raises(OtherSchema, match=rf"\(schema {version}; this version uses schema {known}\)"):
        async with open_store(database_url, folder=tmp_path, clock=clock, read_only=read_only):
            pass


@pytest.mark.parametrize("read_only", [True, False])
async def test_open_foreign_database_is_refused(
    database_url: str, tmp_path: Path, clock: WrittenClock, *, read_only: bool
) -> None:
    """A database with another program's tables is refused and not migrated, whatever their names."""
    await _run(database_url, tmp_path, *["CREATE TABLE connections (id INTEGER)"] * 2)
    with pytest.raises(ConfigurationError, match="contains other tables"):
        async with open_store(database_url, folder=tmp_path, clock=clock, read_only=read_only):
            pass


async def test_read_only_store_creates_no_database(reading: Reading, tmp_path: Path) -> None:
    """A read-only store creates neither a file nor tables."""
    with pytest.raises(ConfigurationError):
        async with reading:
            pass
    assert list(tmp_path.iterdir()) == []
