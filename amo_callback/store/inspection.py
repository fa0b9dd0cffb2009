"""A database looked at from outside, whoever works on it: nothing is made, upgraded or written."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable
from amo_callback.store.backup import check_files, error_name, number, read_meta, run
from amo_callback.store.engine import Engine, load_migrations
from amo_callback.store.meta import read_freeze

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from amo_callback.model import Freeze

PAGE = 500
_BUSY_TIMEOUT = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedPair:
    """A connection that is not disconnected, and its pair as it is stored."""

    connection_id: str
    sealed: bytes | None = field(repr=False)


@contextmanager
def open_inspection(path: Path) -> Iterator[Inspection]:
    """Open a database file that is there; raises `StoreUnavailable`, and so does whoever looks into it.

    Where the service runs it is opened for reading. Where none does, a reader would make the files of the write-ahead
    log and could not remove them; one that may write, and does not, takes them away with itself.
    """
    served = path.with_name(f"{path.name}-wal").exists()
    address = f"{path.absolute().as_uri()}?mode={'ro' if served else 'rw'}"
    with _told():
        check_files(path)
        database = sqlite3.connect(address, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None)
    with closing(database):
        with _told():
            database.execute("PRAGMA query_only = ON")
        yield Inspection(database)


class Inspection:
    """What a database holds. Nothing but pages is kept in memory."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.known_schema = len(load_migrations(Engine.SQLITE))

    def schema(self) -> int:
        """Return the version of its schema; 0 where it is no database of ours."""
        return self._number("PRAGMA user_version")

    def is_whole(self) -> bool:
        """Tell whether SQLite finds no damage."""
        with _told():
            [[told]] = self._database.execute("PRAGMA quick_check(1)").fetchall()
        return bool(told == "ok")

    def canary(self) -> bytes | None:
        """Return the record by which keys are told to be the right ones; `None` before the first start."""
        return self._mark("canary")

    def machine(self) -> str | None:
        """Return the name of the place where it was last served."""
        found = self._mark("machine")
        return None if found is None else found.decode()

    def frozen(self) -> Freeze | None:
        """Return since when nothing is spent, and why."""
        found = self._mark("frozen")
        return None if found is None else read_freeze(found)

    def count(self) -> int:
        """Count the connections that are not disconnected."""
        with _told():
            return int(run(self._database, "count_connections")[0][0])

    def pairs(self) -> Iterator[SealedPair]:
        """Go through the connections that are not disconnected, page by page: nobody's checkpoint waits for it."""
        after = ""
        while page := self._page(after):
            yield from page
            after = page[-1].connection_id

    def _page(self, after: str) -> list[SealedPair]:
        with _told():
            found = run(self._database, "sealed_pairs", after=after, limit=PAGE)
        return [SealedPair(connection_id=name, sealed=sealed) for name, sealed in found]

    def _mark(self, name: str) -> bytes | None:
        with _told():
            return read_meta(self._database, name)

    def _number(self, query: str) -> int:
        with _told():
            return number(self._database, query)


@contextmanager
def _told() -> Iterator[None]:
    """Name SQLite's errors without their texts, which may quote values."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(str(error.strerror)) from None
    except sqlite3.Error as error:
        raise StoreUnavailable(error_name(error)) from None
