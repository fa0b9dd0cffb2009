"""The files of a SQLite database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.disk import check_regular

if TYPE_CHECKING:
    from pathlib import Path

_BESIDE = ("-wal", "-shm", "-journal")


def check_files(database: Path) -> None:
    """Raise `OSError` where one of them is there and not a regular file: SQLite would wait at a pipe for ever."""
    check_regular(database)
    for suffix in _BESIDE:
        beside = database.with_name(database.name + suffix)
        try:
            check_regular(beside)
        except OSError as error:
            raise OSError(error.errno, f"{beside.name}: {error.strerror}") from None
