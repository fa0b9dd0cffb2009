"""The write-ahead log while the process runs: it is shortened again, whoever reads."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.store.sqlite import SqliteDatabase, open_sqlite
from amo_callback.store.wal import LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

NAME = "amo-callback.db"
LARGE = 128 * 1024
"""Bytes of one event."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    async with open_sqlite(tmp_path / NAME, clock=SystemClock()) as opened:
        yield opened


def _size(folder: Path) -> int:
    return (folder / f"{NAME}-wal").stat().st_size


async def _write(database: SqliteDatabase, size: int) -> None:
    """Write so many bytes, one commit for each event."""
    for _ in range(size // LARGE):
        details = secrets.token_hex(LARGE // 2)
        await database.write("save_event", at=0, connection_id=None, name="n", process="p", details=details)


@contextmanager
def _reader(folder: Path) -> Iterator[sqlite3.Connection]:
    """Read in a transaction meanwhile."""
    with closing(sqlite3.connect(folder / NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        yield reader


async def test_the_log_is_short_again_after_a_reader_that_has_kept_it_long(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    """While a snapshot is read nothing of it can be taken away; with the writes after that the file shrinks."""
    with _reader(tmp_path):
        await _write(database, 6 * LIMIT)
        assert _size(tmp_path) > 6 * LIMIT
    await _write(database, 2 * LARGE)
    assert _size(tmp_path) <= LIMIT


async def test_the_log_is_short_again_after_one_large_transaction(database: SqliteDatabase, tmp_path: Path) -> None:
    """A transaction may be larger than the log's limit; nobody need write after it for the file to shrink."""
    details = secrets.token_hex(2 * LIMIT)
    await database.write("save_event", at=0, connection_id=None, name="n", process="p", details=details)
    assert _size(tmp_path) <= LIMIT


class _Overlapping(threading.Thread):
    """A reader that ends its transaction only when the other one has begun the next."""

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
        """Wait until the other one has begun."""
        while not self.stopping and not self._other_begun.acquire(timeout=0.1):
            pass


class _Second(_Overlapping):
    """The one that begins second."""

    def run(self) -> None:
        self.wait()
        super().run()


async def test_the_log_stays_bounded_though_one_reader_or_another_is_always_there(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    """There is no moment without a reader at which SQLite would begin the log anew by itself."""
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
            assert written < 64 * LIMIT, "it was never shortened"
    finally:
        for reader in readers:
            reader.stopping = True
        for reader in readers:
            reader.join()
