"""Backups of a SQLite database: frozen single files with mode 0600, each written completely or not at all.

A backup contains single-use refresh tokens, and the original database may still be in use when the backup is restored,
with `restore` or by hand. A backup is therefore frozen until an operator thaws it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from amo_callback.errors import BackupFailed
from amo_callback.files import check_regular, open_regular, sync
from amo_callback.model import Freeze
from amo_callback.store.engine import Engine, arguments, from_micros, load_statements
from amo_callback.store.meta import freeze_value, read_freeze
from amo_callback.store.migrate import another_version, latest_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_WHY = "the database is a copy, and another host may still use its tokens"
UNFINISHED = ".unfinished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """A summary of a database's content, shown to the operator."""

    connections: int
    made_at: datetime | None
    canary: bytes = field(repr=False)


def check_files(database: Path) -> None:
    """Raise `OSError` if the database or one of its journal files exists but is not a regular file.

    SQLite would block when opening a named pipe.
    """
    check_regular(database)
    for suffix in ("-wal", "-shm", "-journal"):
        beside = database.with_name(database.name + suffix)
        try:
            check_regular(beside)
        except OSError as error:
            raise OSError(error.errno, f"{beside.name}: {error.strerror}") from None


@contextmanager
def open_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a consistent snapshot of a database to which other processes may be writing.

    Raises `BackupFailed`, for example if the database is damaged or has a newer schema.
    """
    with explained(str(path)):
        check_files(path)
        path.stat()  # raises a clearer error than SQLite's "cannot open"
        snapshot = connect(path)
    with closing(snapshot):
        with explained(str(path)):
            snapshot.execute("BEGIN")
            _check(snapshot, path)
        yield snapshot


def contents(snapshot: sqlite3.Connection) -> Contents:
    """Summarize a snapshot; `made_at` is its freeze time or its last recorded time, whichever is later."""
    canary, frozen, seen = (read_meta(snapshot, name) for name in ("canary", "frozen", "seen_at"))
    times = [read_freeze(frozen).at] if frozen else []
    times += [from_micros(int(seen))] if seen else []
    return Contents(
        connections=run(snapshot, "count_connections")[0][0], made_at=max(times, default=None), canary=canary or b""
    )


def back_up(snapshot: sqlite3.Connection, target: Path, *, now: datetime) -> None:
    """Write a frozen copy of a snapshot to a new file; raises `BackupFailed`, for example if the file exists."""
    with explained(str(target)):
        _write_new(snapshot, target, now=now)


def back_up_before_migration(database: Path, *, version: int, now: datetime) -> None:
    """Back up a database before its schema is upgraded; the caller must hold the database's write lock.

    The files of an earlier try are replaced. Raises `BackupFailed` if the backup cannot be made.
    """
    target = database.with_name(f"{database.name}.schema-{version}")
    with (
        open_snapshot(database) as snapshot,
        explained(f"{database} is not upgraded, because its backup {target.name} cannot be written"),
    ):
        for leftover in target.parent.glob(f".{target.name}.*{UNFINISHED}"):
            shutil.rmtree(leftover)
        with _copied(snapshot, target, now=now) as made:
            _publish(made, target)


def restore(made: Path, database: Path, *, now: datetime) -> Path | None:
    """Replace a database with a rebuilt one, completely or not at all.

    Returns the file to which the previous database was copied, or `None` if there was no previous database. Raises
    `BackupFailed`, for example if another process uses the database. The database's inode does not change, so a
    service that starts during the restore waits, and then reads the restored data.
    """
    with explained(str(database)):
        check_files(database)
        os.close(open_regular(database, os.O_WRONLY | os.O_CREAT))
        with closing(connect(database, timeout=0)) as present:
            with _kept(database):
                _lock(present)
                kept = _keep_present(present, database, now=now)
            _replace(present, made, kept=kept)
            check_frozen(present)
    return kept


def _lock(present: sqlite3.Connection) -> None:
    """Acquire exclusive access to a database, and apply or discard its journal files."""
    present.execute("PRAGMA locking_mode = EXCLUSIVE")
    present.execute("PRAGMA journal_mode = DELETE")  # fails if another connection is open
    present.execute("BEGIN EXCLUSIVE")
    present.execute("COMMIT")


def _keep_present(present: sqlite3.Connection, database: Path, *, now: datetime) -> Path | None:
    if not number(present, "SELECT count(*) FROM sqlite_master"):
        return None
    if not number(present, "PRAGMA user_version"):
        raise BackupFailed(f"{database} is not an amo-callback database and was not replaced: check storage.url")
    kept = database.with_name(f"{database.name}.before-restore-{now:%Y%m%dT%H%M%SZ}")
    _write_new(present, kept, now=now)
    return kept


def _replace(present: sqlite3.Connection, made: Path, *, kept: Path | None) -> None:
    try:
        with closing(connect(made)) as copy:
            copy.backup(present)
    except sqlite3.Error:
        if kept:
            kept.unlink()  # the copy is not needed, because the previous database is still in place
        raise


def _write_new(source: sqlite3.Connection, target: Path, *, now: datetime) -> None:
    with _copied(source, target, now=now) as made:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # fails if the file exists
        _publish(made, target)


@contextmanager
def _copied(source: sqlite3.Connection, target: Path, *, now: datetime) -> Iterator[Path]:
    """Make a frozen copy in a temporary folder on the same disk as `target`."""
    with TemporaryDirectory(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent) as folder:
        made = Path(folder) / target.name
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT, 0o600))
        with closing(connect(made)) as copy:
            source.backup(copy)  # in one step, because a write between steps restarts the copying
            copy.execute("PRAGMA journal_mode = DELETE")  # so that the copy is a single file
            freeze(copy, now)
        sync(made)
        yield made


def freeze(copy: sqlite3.Connection, now: datetime) -> None:
    """Freeze a copy, even if the original is frozen; raises `BackupFailed` if the copy is not frozen afterwards."""
    run(copy, "drop_meta", name="frozen")
    run(copy, "save_event", at=now, connection_id=None, name="service.copied", process="copy", details="{}")
    run(copy, "add_meta", name="frozen", value=freeze_value(Freeze(at=now, why=_WHY, may_be_copy=True)))
    check_frozen(copy)


def check_frozen(database: sqlite3.Connection) -> None:
    """Raise `BackupFailed` unless the service would treat a database as a frozen copy."""
    frozen = read_meta(database, "frozen")
    if frozen is None or not read_freeze(frozen).may_be_copy:
        raise BackupFailed("the copy could not be frozen and must not be used: check the database for triggers")


def _publish(made: Path, target: Path) -> None:
    made.replace(target)
    sync(target.parent)


def schema_of(database: sqlite3.Connection, path: Path, *, known: int) -> int:
    """Return a database's schema version.

    Raises `BackupFailed` if it is not an amo-callback database, or if its schema is newer than `known`.
    """
    version = number(database, "PRAGMA user_version")
    if version <= 0:
        raise BackupFailed(f"{path} is not an amo-callback database")
    if version > known:
        raise BackupFailed(f"{path} was written by {another_version(version, known=known)}: install that version")
    return version


def _check(snapshot: sqlite3.Connection, path: Path) -> None:
    schema_of(snapshot, path, known=latest_schema(Engine.SQLITE))
    [result] = snapshot.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise BackupFailed(f"{path} is damaged: stop the service, and restore a backup with `amo-callback restore`")


def connect(path: Path, *, timeout: float = 5.0) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None)


def run(database: sqlite3.Connection, statement: str, **values: object) -> list[Any]:
    sql = load_statements(Engine.SQLITE)[statement]
    return database.execute(sql.text, arguments(sql, values)).fetchall()


def read_meta(database: sqlite3.Connection, name: str) -> bytes | None:
    found = run(database, "get_meta", name=name)
    return bytes(found[0][0]) if found else None


def number(database: sqlite3.Connection, query: str) -> int:
    [number] = database.execute(query).fetchone()
    return int(number)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Convert file and SQLite errors to `BackupFailed`; the message begins with `what`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(f"{what}: {reason_of(error)}") from None


@contextmanager
def _kept(database: Path) -> Iterator[None]:
    """Raise `BackupFailed`, whose text suggests a fix, for errors that occur while the current database is copied."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = reason_of(error)
        if reason.startswith("SQLITE_BUSY"):
            raise BackupFailed(f"{database} is in use: stop the service first") from None
        raise BackupFailed(
            f"{database} is not replaced, because it cannot be copied beforehand ({reason}): move it and its -wal and "
            "-journal files away, and run the command again"
        ) from None


def error_name(error: BaseException) -> str:
    """Return an error's name. SQLite's message is omitted, because it may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def reason_of(error: Exception) -> str:
    """Return SQLite's error name, the system's text for a file error, or the exception's type."""
    return str(getattr(error, "sqlite_errorname", None) or getattr(error, "strerror", None) or type(error).__name__)
