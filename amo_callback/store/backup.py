"""Backups of a SQLite database: one file each, complete or not there, readable by its owner alone, and frozen.

A backup holds refresh tokens that work once, and the original database may be in use wherever it is put back, by
`restore` or by hand. So it spends nothing until a person thaws it.
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

_WHY = "the database is a copy: once nothing else works on its tokens, `amo-callback connections thaw --all`"
UNFINISHED = ".unfinished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a database holds, for the person who is asked about it."""

    connections: int
    made_at: datetime | None
    canary: bytes = field(repr=False)


def check_files(database: Path) -> None:
    """Raise `OSError` where one of a database's files is there and not a regular file: SQLite would wait at a pipe."""
    check_regular(database)
    for suffix in ("-wal", "-shm", "-journal"):
        beside = database.with_name(database.name + suffix)
        try:
            check_regular(beside)
        except OSError as error:
            raise OSError(error.errno, f"{beside.name}: {error.strerror}") from None


@contextmanager
def open_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database of ours as it is now, while others write; raises `BackupFailed` where it is damaged or newer."""
    with explained(str(path)):
        check_files(path)
        path.stat()  # says what is wrong where SQLite says "cannot open"
        snapshot = connect(path)
    with closing(snapshot):
        with explained(str(path)):
            snapshot.execute("BEGIN")
            _check(snapshot, path)
        yield snapshot


def contents(snapshot: sqlite3.Connection) -> Contents:
    """Read what a snapshot holds, and when it was made: when the service was last seen, or when it became a copy."""
    canary, frozen, seen = (read_meta(snapshot, name) for name in ("canary", "frozen", "seen_at"))
    times = [read_freeze(frozen).at] if frozen else []
    times += [from_micros(int(seen))] if seen else []
    return Contents(
        connections=run(snapshot, "count_connections")[0][0], made_at=max(times, default=None), canary=canary or b""
    )


def back_up(snapshot: sqlite3.Connection, target: Path, *, now: datetime) -> None:
    """Write a snapshot to a file that is not there yet; raises `BackupFailed`."""
    with explained(str(target)):
        _write_new(snapshot, target, now=now)


def back_up_before_migration(database: Path, *, version: int, now: datetime) -> None:
    """Back up a database before its schema is upgraded; the caller holds its write lock.

    Raises `BackupFailed`. The files of an earlier try are replaced, complete or not.
    """
    target = database.with_name(f"{database.name}.schema-{version}")
    with open_snapshot(database) as snapshot, explained(f"{database} is not upgraded: {target.name} cannot be written"):
        for leftover in target.parent.glob(f".{target.name}.*{UNFINISHED}"):
            shutil.rmtree(leftover)
        with _copied(snapshot, target, now=now) as made:
            _publish(made, target)


def restore(made: Path, database: Path, *, now: datetime) -> Path | None:
    """Put a database that was built for it in the place of another, all of it or nothing.

    Returns where the present one is kept. Raises `BackupFailed`, also where another process has the database open. The
    file stays the same one: a service that starts meanwhile waits for it, and finds what was restored.
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
    """Be the only one that has a database open, and stay so; fold in, or throw away, what lies beside it."""
    present.execute("PRAGMA locking_mode = EXCLUSIVE")
    present.execute("PRAGMA journal_mode = DELETE")  # refused while another connection is open
    present.execute("BEGIN EXCLUSIVE")
    present.execute("COMMIT")


def _keep_present(present: sqlite3.Connection, database: Path, *, now: datetime) -> Path | None:
    if not number(present, "SELECT count(*) FROM sqlite_master"):
        return None
    if not number(present, "PRAGMA user_version"):
        raise BackupFailed(f"{database} holds something else: it is not replaced")
    kept = database.with_name(f"{database.name}.before-restore-{now:%Y%m%dT%H%M%SZ}")
    _write_new(present, kept, now=now)
    return kept


def _replace(present: sqlite3.Connection, made: Path, *, kept: Path | None) -> None:
    try:
        with closing(connect(made)) as copy:
            copy.backup(present)
    except sqlite3.Error:
        if kept:
            kept.unlink()  # nothing was replaced
        raise


def _write_new(source: sqlite3.Connection, target: Path, *, now: datetime) -> None:
    with _copied(source, target, now=now) as made:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # so that no file is replaced
        _publish(made, target)


@contextmanager
def _copied(source: sqlite3.Connection, target: Path, *, now: datetime) -> Iterator[Path]:
    """Make a frozen copy on the disk that `target` will be on, in a folder of its own: nothing of it stays behind."""
    with TemporaryDirectory(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent) as folder:
        made = Path(folder) / target.name
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT, 0o600))
        with closing(connect(made)) as copy:
            source.backup(copy)  # in one step: a writer cannot have it begun anew for ever
            copy.execute("PRAGMA journal_mode = DELETE")  # one file
            freeze(copy, now)
        sync(made)
        yield made


def freeze(copy: sqlite3.Connection, now: datetime) -> None:
    """Freeze a copy, whatever froze the original, and check that it is frozen; raises `BackupFailed`."""
    run(copy, "drop_meta", name="frozen")
    run(copy, "save_event", at=now, connection_id=None, name="service.copied", process="copy", details="{}")
    run(copy, "add_meta", name="frozen", value=freeze_value(Freeze(at=now, why=_WHY, elsewhere=True)))
    check_frozen(copy)


def check_frozen(database: sqlite3.Connection) -> None:
    """Check that a database is frozen as the service reads that; raises `BackupFailed`."""
    frozen = read_meta(database, "frozen")
    if frozen is None or not read_freeze(frozen).elsewhere:
        raise BackupFailed("the copy is not frozen: something in it undoes that. It must not be used")


def _publish(made: Path, target: Path) -> None:
    made.replace(target)
    sync(target.parent)


def schema_of(database: sqlite3.Connection, path: Path, *, known: int) -> int:
    """Return the version of a file's schema; raises `BackupFailed` where it is none of ours, or newer."""
    version = number(database, "PRAGMA user_version")
    if version <= 0:
        raise BackupFailed(f"{path} is no database of amo-callback")
    if version > known:
        raise BackupFailed(f"{path} is of {another_version(version, known=known)}: install that version")
    return version


def _check(snapshot: sqlite3.Connection, path: Path) -> None:
    schema_of(snapshot, path, known=latest_schema(Engine.SQLITE))
    [result] = snapshot.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise BackupFailed(f"{path} is damaged")


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
    """Turn errors of files and of SQLite into `BackupFailed`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(f"{what}: {reason_of(error)}") from None


@contextmanager
def _kept(database: Path) -> Iterator[None]:
    """Explain why a database is not replaced, and what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = reason_of(error)
        if reason.startswith("SQLITE_BUSY"):
            raise BackupFailed(f"{database} is in use: stop the service first") from None
        raise BackupFailed(
            f"{database} cannot be kept ({reason}): move it away with what lies beside it, and restore again"
        ) from None


def error_name(error: BaseException) -> str:
    """Name an error without SQLite's text, which may quote values."""
    return str(getattr(error, "sqlite_errorname", type(error).__name__))


def reason_of(error: Exception) -> str:
    """Name an error of SQLite's or of a file's."""
    return str(getattr(error, "sqlite_errorname", None) or getattr(error, "strerror", None) or type(error).__name__)
