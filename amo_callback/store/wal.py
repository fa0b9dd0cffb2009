"""The size of SQLite's write-ahead log while the process runs.

SQLite writes each commit to the log and copies it into the database file from time to time (a checkpoint, each 1,000
pages). It begins the log anew only at a commit that finds everything copied and no reader that uses the log; and only
then does `journal_size_limit` shorten the file. So two things keep it long: readers that overlap, since there is never
a moment without one, and a reader that stays. Against the first, the writer waits for the readers once the log is too
long: those that begin meanwhile read the database file alone, so the wait ends with the readers that are there.
Against the second nothing helps but its end, so the wait is short, and is not repeated for every commit.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 4 * 1024 * 1024
"""Bytes of the log that are kept when it begins anew: about what SQLite writes between two checkpoints."""
_PATIENCE = 0.1
"""Seconds that a checkpoint waits for the readers; no commit is possible meanwhile."""


class WriteAheadLog:
    """Bound the log of one database file; every call is made on the writer's thread."""

    def __init__(self, database: Path, *, busy_timeout: float) -> None:
        self._file = database.with_name(f"{database.name}-wal")
        self._busy_timeout = busy_timeout
        self._again_at = LIMIT

    def bound(self, writer: sqlite3.Connection) -> None:
        """Shorten the log after a commit where it is too long; the commit stands, whatever becomes of that."""
        with suppress(OSError, sqlite3.Error):
            size = self._file.stat().st_size
            if size <= LIMIT:
                self._again_at = LIMIT
            elif size > self._again_at:
                self._again_at = size + LIMIT
                self._shorten(writer)

    def _shorten(self, writer: sqlite3.Connection) -> None:
        try:
            writer.execute(f"PRAGMA busy_timeout = {_PATIENCE * 1000:.0f}")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            writer.execute(f"PRAGMA busy_timeout = {self._busy_timeout * 1000:.0f}")
