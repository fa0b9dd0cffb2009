"""SQLite's errors, and the size of its write-ahead log."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import stat
import threading
from contextlib import AsyncExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.events import Event
from amo_callback.model import ConnectionFilter, Reason, Status
from amo_callback.store import open_store
from amo_callback.store.engine import Engine, load_statements
from amo_callback.store.sqlite import SqliteStore, open_sqlite
from amo_callback.store.sqlite_connection import WAL_LIMIT
from tests.builders import a_connection, save
from tests.fakes import START, FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from amo_callback.store import Store

URL = "sqlite:///amo-callback.db"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(URL, folder=tmp_path, clock=FakeClock()) as opened:
        yield opened


async def _fails(url: str, folder: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        async with open_store(url, folder=folder, clock=SystemClock()):
            pass
    return str(raised.value)


async def test_files_have_mode_600(store: Store, tmp_path: Path) -> None:
    """The database and its WAL files have mode 600."""
    await save(store, a_connection())
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["amo-callback.db", "amo-callback.db-shm", "amo-callback.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("url", ["mysql://x", "amo-callback.db", "sqlite://x"])
async def test_open_other_engine_is_refused(url: str, tmp_path: Path) -> None:
    """A URL of another engine is refused with the accepted form."""
    assert (await _fails(url, tmp_path)).startswith("storage.url must begin with sqlite:///")


async def test_open_unusable_file_names_file_and_reason(tmp_path: Path) -> None:
    """The error of a missing or foreign file names the file and the reason."""
    assert "nowhere/x.db cannot be opened: No such file or directory" in await _fails(
        "sqlite:///nowhere/x.db", tmp_path
    )
    (tmp_path / "junk.db").write_bytes(b"no database at all, but text" * 99)
    assert "junk.db cannot be used: SQLITE_NOTADB" in await _fails("sqlite:///junk.db", tmp_path)


async def test_migration_failure_is_rolled_back(tmp_path: Path) -> None:
    """A failed migration is rolled back as a whole, and the next start continues from there."""
    import aiosqlite  # noqa: PLC0415 -- only this test uses the driver

    from amo_callback.store.migrate import migrate_sqlite  # noqa: PLC0415 -- likewise

    kept: list[int] = []
    async with aiosqlite.connect(tmp_path / "x.db", isolation_level=None) as database:
        await migrate_sqlite(database, [["CREATE TABLE a (x)"]], back_up=kept.append)
        with pytest.raises(sqlite3.OperationalError):
            await migrate_sqlite(
                database, [["CREATE TABLE a (x)"], ["CREATE TABLE b (x)", "broken"]], back_up=kept.append
            )
        await migrate_sqlite(database, [["CREATE TABLE a (x)"], ["CREATE TABLE b (x)"]], back_up=kept.append)
        tables = await database.execute_fetchall("SELECT name FROM sqlite_master ORDER BY name")
        assert [row[0] for row in tables] == ["a", "b"]
    assert kept == [1, 1]


async def test_failed_statement_does_not_mark_store_unavailable(store: Store, tmp_path: Path) -> None:
    """A missing table fails its statement, but does not mark the store unavailable."""
    other = sqlite3.connect(tmp_path / "amo-callback.db")
    other.execute("DROP TABLE webhooks")
    other.close()
    with pytest.raises(StoreUnavailable):
        await store.forget(now=START)
    assert store.failed_at is None


async def test_full_disk_marks_store_unavailable(tmp_path: Path) -> None:
    """A full disk marks the store unavailable, because no process can write."""
    async with open_sqlite(tmp_path / "amo-callback.db", clock=SystemClock()) as database:
        await database._writer.execute("PRAGMA max_page_count = 1")  # noqa: SLF001 -- no disk is as small
        event = {"at": 0, "connection_id": "x" * 2**20, "name": "n", "process": "p", "details": "{}"}
        with pytest.raises(StoreUnavailable) as raised:
            await database.write("save_event", **event)
        assert raised.value.detail == "SQLITE_FULL"
        assert database.failed_at is not None


async def test_locked_file_marks_store_unavailable_for_writes_only(tmp_path: Path) -> None:
    """A file locked by another process can be read, and its failed write marks the store unavailable."""
    path = tmp_path / "amo-callback.db"
    async with open_sqlite(path, clock=SystemClock()) as database:
        await database._writer.execute("PRAGMA busy_timeout = 0")  # noqa: SLF001 -- without a wait
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert await database.read("count_connections")
        read_at = database.failed_at
        with pytest.raises(StoreUnavailable, match="cannot be read or written"):
            await database.write("next_serial")
        assert (read_at, database.failed_at is None) == (None, False)
        other.close()


async def test_writes_are_synchronous(tmp_path: Path) -> None:
    """Writes use `synchronous=FULL`, so that a power failure loses no committed data."""
    async with open_sqlite(tmp_path / "amo-callback.db", clock=SystemClock()) as store:
        [row] = await store._writer.execute_fetchall("PRAGMA synchronous")  # noqa: SLF001 -- invisible from outside
    assert row[0] == 2


async def test_open_new_file_waits_for_other_process(tmp_path: Path) -> None:
    """A new file that another process is creating is opened after its lock is released."""
    other = sqlite3.connect(tmp_path / "amo-callback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(open_store(URL, folder=tmp_path, clock=clock)))
        await clock.until_sleeping()
        other.execute("ROLLBACK")
        other.close()
        clock.advance(1)
        await (await opening).count()


async def test_open_locked_file_fails_after_wait(tmp_path: Path) -> None:
    """A new file that stays locked fails the start after a limited wait."""
    other = sqlite3.connect(tmp_path / "amo-callback.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(open_store(URL, folder=tmp_path, clock=clock)))
        await clock.until_sleeping()
        clock.advance(5)
        with pytest.raises(StoreUnavailable) as raised:
            await opening
    other.close()
    assert raised.value.detail == "SQLITE_BUSY"


async def test_malformed_rows_are_read_with_safe_values(tmp_path: Path) -> None:
    """Unknown words, times beyond the calendar and invalid JSON are read as safe values, and other rows as usual."""
    clock = FakeClock()
    async with open_store(URL, folder=tmp_path, clock=clock) as store:
        for number in (1, 2, 3):
            await save(store, a_connection(number))
        await store.record(Event(name="something"))
        with closing(sqlite3.connect(tmp_path / "amo-callback.db")) as database, database:
            database.execute("PRAGMA ignore_check_constraints = ON")
            database.execute("UPDATE connections SET reason = 'whim' WHERE account_id = '1'")
            database.execute(
                "UPDATE connections SET access_issued_at = ?, refreshed_at = ? WHERE account_id = '2'",
                (2**63 - 1, -(2**63)),
            )
            database.execute("UPDATE connections SET status = 'odd', suspended_reason = 'odd' WHERE account_id = '3'")
            database.executemany(
                "INSERT INTO events (at, name, process, details) VALUES (?, '', '', ?)",
                [(2**63 - 1, "{"), (0, "[" * 100_000), (0, "1")],
            )
        found = {one.account_id: one for one in await store.page(after="", limit=9, only=ConnectionFilter())}
        due = (await store.due(now=clock.now(), limit=9, exclude=())).refreshes
        events = await store.events(limit=9)
        with closing(sqlite3.connect(tmp_path / "amo-callback.db")) as database, database:
            database.execute("INSERT INTO meta VALUES ('frozen', x'78'), ('amo_block', x'78')")
        frozen, block = await store.frozen(), await store.amo_block()
        assert await store.thaw_all(machine="here")
        await store.end_amo_block()
    assert frozen is not None
    assert frozen.may_be_copy
    assert frozen.why == "the freeze stored in the database is malformed, so its reason is unknown"
    assert block is not None
    assert block.probe_at < clock.now()
    assert [found[name].reason for name in "123"] == [Reason.UNREADABLE, None, None]
    assert found["3"].status is Status.NEEDS_REAUTH
    assert "2" in {one.account_id for one in due}
    assert [event.details for event in events] == [{}, {}, {}, {}]


NAME = "amo-callback.db"
LARGE = 128 * 1024
"""Bytes of one event."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with open_sqlite(tmp_path / NAME, clock=SystemClock()) as opened:
        yield opened


def _size(folder: Path) -> int:
    return (folder / f"{NAME}-wal").stat().st_size


async def _write(database: SqliteStore, size: int) -> None:
    """Write a number of bytes, one event per commit."""
    for _ in range(size // LARGE):
        details = secrets.token_hex(LARGE // 2)
        await database.write("save_event", at=0, connection_id=None, name="n", process="p", details=details)


@contextmanager
def _reader(folder: Path) -> Iterator[sqlite3.Connection]:
    """Keep a read transaction open."""
    with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        yield reader


async def test_wal_is_truncated_after_long_reader(database: SqliteStore, tmp_path: Path) -> None:
    """A reader's snapshot keeps the WAL large; the first writes after it truncate the file."""
    with _reader(tmp_path):
        await _write(database, 6 * WAL_LIMIT)
        assert _size(tmp_path) > 6 * WAL_LIMIT
    await _write(database, 2 * LARGE)
    assert _size(tmp_path) <= WAL_LIMIT


async def test_wal_is_truncated_after_large_transaction(database: SqliteStore, tmp_path: Path) -> None:
    """A transaction larger than the WAL limit is followed by a truncation, without another write."""
    details = secrets.token_hex(2 * WAL_LIMIT)
    await database.write("save_event", at=0, connection_id=None, name="n", process="p", details=details)
    assert _size(tmp_path) <= WAL_LIMIT


class _Overlapping(threading.Thread):
    """A reader whose transaction ends only after another reader's next one has begun."""

    def __init__(self, folder: Path, *, begun: threading.Semaphore, other_begun: threading.Semaphore) -> None:
        super().__init__()
        self._folder, self._begun, self._other_begun = folder, begun, other_begun
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            with _reader(self._folder):
                self._begun.release()
                self.wait()

    def wait(self) -> None:
        while not self.stopping and not self._other_begun.acquire(timeout=0.1):
            pass


class _Second(_Overlapping):
    def run(self) -> None:
        self.wait()
        super().run()


async def test_wal_stays_bounded_with_overlapping_readers(database: SqliteStore, tmp_path: Path) -> None:
    """The WAL stays bounded while a reader is always active, although SQLite itself then never restarts it."""
    first, second = threading.Semaphore(0), threading.Semaphore(0)
    readers = [
        _Overlapping(tmp_path, begun=first, other_begun=second),
        _Second(tmp_path, begun=second, other_begun=first),
    ]
    for reader in readers:
        reader.start()
    try:
        shortened = written = 0
        while shortened < 3:
            before = _size(tmp_path)
            await _write(database, LARGE)
            written += LARGE
            shortened += _size(tmp_path) < before
            assert written < 64 * WAL_LIMIT, "it was never shortened"
    finally:
        for reader in readers:
            reader.stopping = True
        for reader in readers:
            reader.join()


async def test_due_query_uses_indexes(store: Store, tmp_path: Path) -> None:
    """The due query searches indexes only, and never scans all connections."""
    del store
    due = load_statements(Engine.SQLITE)["due"]
    with closing(sqlite3.connect(tmp_path / "amo-callback.db")) as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN {due.text}", ["[]"] * len(due.parameters)).fetchall()
    assert {step[3].partition(" (")[0] for step in plan if "connections USING" in step[3]} == {
        "SEARCH connections USING INDEX connections_by_issue",
        "SCAN connections USING INDEX connections_due_too_late",
        "SEARCH connections USING INDEX connections_by_due",
        "SEARCH connections USING INDEX connections_by_recheck",
        "SEARCH connections USING INDEX sqlite_autoindex_connections_1",
    }
