"""A store that is opened to be read alone."""

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
    from tests.store.conftest import Beside

    Reading = AbstractAsyncContextManager[Store]

NAME = "amo-callback.db"


@pytest.fixture
def reading(either: str, tmp_path: Path, clock: WrittenClock) -> Reading:
    """Return the database, to be opened read-only."""
    return open_store(either, folder=tmp_path, clock=clock, read_only=True)


async def _run(either: str, folder: Path, on_sqlite: str, on_postgres: str) -> None:
    if either.startswith("sqlite:"):
        with closing(sqlite3.connect(folder / NAME)) as database, database:
            database.execute(on_sqlite)
        return
    async with connected(either) as connection:
        await connection.execute(on_postgres)


async def test_what_is_stored_can_be_read_and_not_written(
    beside: Beside, reading: AbstractAsyncContextManager[Store]
) -> None:
    """Each write fails, whatever it would do."""
    async with beside("one") as store:
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


async def test_beside_a_service_what_that_writes_is_read(
    store: Store, reading: AbstractAsyncContextManager[Store]
) -> None:
    """The service goes on writing."""
    async with reading as other:
        stored = await save(store, a_connection())
        assert await other.connection(stored.id) == stored


async def test_no_file_is_left_behind(beside: Beside, reading: Reading, either: str, tmp_path: Path) -> None:
    """Where no service runs, nothing would remove the files of the write-ahead log."""
    if not either.startswith("sqlite:"):
        pytest.skip("a server has files of its own")
    async with beside("one") as store:
        await save(store, a_connection())
    before = (tmp_path / NAME).read_bytes()
    async with reading as store:
        await store.count()
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize(("step", "read_only"), [(-2, True), (1, True), (1, False)])
async def test_another_schema_is_refused(
    beside: Beside, either: str, tmp_path: Path, clock: WrittenClock, step: int, *, read_only: bool
) -> None:
    """The error names both versions, and nothing is upgraded; only for reading, an older one is refused, too."""
    async with beside("one"):
        pass
    known = latest_schema(Engine.SQLITE if either.startswith("sqlite:") else Engine.POSTGRES)
    version = known + step
    await _run(either, tmp_path, f"PRAGMA user_version = {version}", f"UPDATE schema_version SET version = {version}")  # noqa: S608 -- because it is a number
    with pytest.raises(OtherSchema, match=rf"\(schema {version}, known here: {known}\)"):
        async with open_store(either, folder=tmp_path, clock=clock, read_only=read_only):
            pass


@pytest.mark.parametrize("read_only", [True, False])
async def test_somebody_elses_database_is_refused(
    either: str, tmp_path: Path, clock: WrittenClock, *, read_only: bool
) -> None:
    """Whatever its tables are named, they are not ours to migrate."""
    await _run(either, tmp_path, *["CREATE TABLE connections (id INTEGER)"] * 2)
    with pytest.raises(ConfigurationError, match="contains something else"):
        async with open_store(either, folder=tmp_path, clock=clock, read_only=read_only):
            pass


async def test_no_database_is_made(reading: Reading, tmp_path: Path) -> None:
    """Not where there is no file, and no tables in an empty database."""
    with pytest.raises(ConfigurationError):
        async with reading:
            pass
    assert list(tmp_path.iterdir()) == []
