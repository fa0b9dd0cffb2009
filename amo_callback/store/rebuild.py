"""The rebuilding of a database from the rows of an untrusted file.

Only rows are copied, never the schema, because the file's triggers and views would run inside the service. The file
itself is not opened as a database, because SQLite would follow paths in its journal. Instead, a private copy of its
bytes is opened, with limits on the size of values and on the work per read.

If the file has an earlier schema, the migrations first create empty tables with that schema. The rows are copied into
these tables, and the remaining migrations follow. Migrations therefore run on trusted tables only.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

from amo_callback.errors import BackupFailed
from amo_callback.files import open_regular, sync
from amo_callback.store.backup import (
    UNFINISHED,
    Contents,
    check_files,
    check_frozen,
    connect,
    contents,
    explained,
    freeze,
    number,
    reason_of,
    schema_of,
)
from amo_callback.store.engine import Engine, from_micros
from amo_callback.store.meta import read_amo_block, read_freeze
from amo_callback.store.migrate import load_migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
    """A function that shows a progress bar with a label and a total."""

_MIB = 1024 * 1024
_CHUNK = _MIB
_PAGE = 500
"""The number of rows per read."""
_MAGIC = b"SQLite format 3\0"
_STEPS = 1000
"""The number of SQLite instructions between checks of the instruction limit."""
_STEPS_A_PAGE = 1_000_000
"""The maximum number of instructions per read; an ordinary page of rows takes about 30,000."""
_STEPS_A_BYTE = 16
"""The number of additional instructions, per byte of the file, that the check of a table may execute.

The smallest rows take about five instructions per byte.
"""
_MAX_SCHEMA = 1000
"""The maximum number of tables, indexes, triggers and views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreLimits:
    """The limits on a file to restore."""

    file: int = 64 * 1024 * _MIB
    """The maximum size of the database and its write-ahead log together, in bytes."""
    rows: int = 50_000_000
    """The maximum number of rows per table."""
    value: int = _MIB
    """The maximum size of a value or row, in bytes; an encrypted token pair has at most 350,000 bytes."""


_LIMITS = RestoreLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """An opened file to restore: the database, and its write-ahead log if there is one."""

    path: Path
    files: Sequence[IO[bytes]]
    states: Sequence[tuple[int, int]]
    """The size and modification time of each file when it was opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """A rebuilt database, which is frozen and verified but has not replaced the current database yet."""

    file: Path
    contents: Contents
    foreign: int
    """The number of tables, indexes, triggers and views that do not belong to amo-callback and were not copied."""


@contextmanager
def open_given(path: Path, *, limits: RestoreLimits = _LIMITS) -> Iterator[Given]:
    """Open a file to restore, without blocking on a named pipe.

    Raises `BackupFailed` if the file cannot be opened, has a rollback journal, is too large, or is not a SQLite file.
    """
    with ExitStack() as stack:
        with explained(str(path)):
            database = stack.enter_context(os.fdopen(open_regular(path), "rb"))
            files = [database]
            check_files(path)
            if _has_content(log := _beside(path, "-wal")):
                files.append(stack.enter_context(os.fdopen(open_regular(log), "rb")))
            if _has_content(_beside(path, "-journal")):
                raise BackupFailed(
                    f"{path} has an unfinished transaction (-journal file): use a backup made by `amo-callback backup`"
                )
            states = _states(files)
            if sum(size for size, _ in states) > limits.file:
                raise BackupFailed(
                    f"{path} is larger than {limits.file // _MIB:,} MiB, the maximum for a backup: use another backup"
                )
            if database.read(len(_MAGIC)) != _MAGIC:
                raise BackupFailed(f"{path} is not an amo-callback database")
        yield Given(path=path, files=files, states=states)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


@contextmanager
def rebuild(
    given: Given,
    database: Path,
    *,
    now: datetime,
    progress: Progress,
    limits: RestoreLimits = _LIMITS,
    migrations: Sequence[Sequence[str]] | None = None,
) -> Iterator[Rebuilt]:
    """Rebuild a frozen database from a file's rows, in a temporary folder on the disk of `database`.

    Raises `BackupFailed` if the file is damaged, has a newer schema, or contains a row that the service could not read.
    """
    known = load_migrations(Engine.SQLITE) if migrations is None else migrations
    with ExitStack() as stack:
        with explained(str(database.parent)):
            if _is_same(given, database):
                raise BackupFailed(f"{given.path} is the current database: specify a backup")
            unfinished = TemporaryDirectory(prefix=f".{database.name}.", suffix=UNFINISHED, dir=database.parent)
            folder = Path(stack.enter_context(unfinished))
        copy, made = folder / "given", folder / database.name
        with _explained(given.path, folder=database.parent):
            _copy_bytes(given, copy)
            os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(_open_untrusted(copy, limits)) as source, closing(connect(made)) as target:
                opened = _Source(
                    database=source, path=given.path, size=copy.stat().st_size, limits=limits, migrations=known
                )
                foreign = _fill(opened, target, progress)
                _check_meta(target, given.path)
                found = contents(target)
                freeze(target, now)
        with explained(str(database.parent)):
            sync(made)
            _check_made(made)
        yield Rebuilt(file=made, contents=found, foreign=foreign)


def _is_same(given: Given, database: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(given.files[0].fileno()), database.stat())
    except FileNotFoundError:
        return False


# --- the file ------------------------------------------------------------------------------------


def _copy_bytes(given: Given, copy: Path) -> None:
    for file, suffix in zip(given.files, ("", "-wal"), strict=False):
        file.seek(0)
        left = os.fstat(file.fileno()).st_size
        descriptor = os.open(_beside(copy, suffix), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                target.write(chunk)
                left -= len(chunk)
    if _states(given.files) != given.states:
        raise BackupFailed(f"{given.path} changed while it was read: use a backup made by `amo-callback backup`")


def _states(files: Sequence[IO[bytes]]) -> list[tuple[int, int]]:
    found = [os.fstat(file.fileno()) for file in files]
    return [(status.st_size, status.st_mtime_ns) for status in found]


def _open_untrusted(path: Path, limits: RestoreLimits) -> sqlite3.Connection:
    """Open a database with the restrictions that https://sqlite.org/security.html recommends for untrusted files."""
    database = connect(path)
    for limit, most in (
        (sqlite3.SQLITE_LIMIT_LENGTH, limits.value),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 100_000),
        (sqlite3.SQLITE_LIMIT_COLUMN, 100),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 20),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 3),
        (sqlite3.SQLITE_LIMIT_VDBE_OP, 25_000),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    ):
        database.setlimit(limit, most)
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "ignore_check_constraints = ON",  # if OFF, `quick_check` would evaluate the file's own constraints
        "mmap_size = 0",
        "query_only = ON",
    ):
        database.execute(f"PRAGMA {pragma}")
    if sys.version_info >= (3, 12):
        for option, switched_on in (
            (sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True),
            (sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER, False),
            (sqlite3.SQLITE_DBCONFIG_ENABLE_VIEW, False),
        ):
            database.setconfig(option, switched_on)
    database.set_authorizer(_authorize)
    return database


_PRAGMAS = frozenset({"quick_check", "table_xinfo", "user_version"})
_READ = frozenset({"meta", "connections", "owners", "grants", "events", "webhooks", "sqlite_master"})
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_TRANSACTION})


def _authorize(action: int, one: str | None, other: str | None, _schema: str | None, inner: str | None) -> int:
    """Allow only direct reads of known tables, `count` and some pragmas; deny reads through views and triggers."""
    is_read = action == sqlite3.SQLITE_READ and inner is None and one in _READ
    is_pragma = action == sqlite3.SQLITE_PRAGMA and one in _PRAGMAS
    is_count = action == sqlite3.SQLITE_FUNCTION and other == "count"
    return sqlite3.SQLITE_OK if action in _ALLOWED or is_read or is_pragma or is_count else sqlite3.SQLITE_DENY


def _bound(database: sqlite3.Connection, steps: int) -> None:
    """Limit the number of SQLite instructions that the next reads may execute."""
    # The handler is a built-in function, because a KeyboardInterrupt in a Python function would be lost.
    turns = chain(repeat(0, steps // _STEPS), repeat(1))
    database.set_progress_handler(partial(next, turns), _STEPS)


# --- its rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    database: sqlite3.Connection
    path: Path
    size: int
    limits: RestoreLimits
    migrations: Sequence[Sequence[str]]


def _fill(source: _Source, target: sqlite3.Connection, progress: Progress) -> int:
    """Copy the rows of all known tables, and migrate the new database; return the number of foreign schema objects."""
    target.execute("PRAGMA journal_mode = OFF")  # an incomplete database is deleted anyway
    target.execute("PRAGMA synchronous = OFF")
    _bound(source.database, _STEPS_A_PAGE)
    source.database.execute("BEGIN")
    migrations = source.migrations
    version = schema_of(source.database, source.path, known=len(migrations))
    _run(target, migrations[:version])
    tables = _columns(target)
    foreign = _check_schema(source, target, tables)
    counts = {table: _check_table(source, table) for table in tables}
    target.execute("BEGIN")
    with progress("copied", sum(counts.values())) as advance:
        done = 0
        for table, columns in tables.items():
            target.execute(f"DELETE FROM {table}")  # noqa: S608 -- the name is a constant
            for copied in _copy_table(source, target, table, columns):
                done += copied
                advance(done)
    _run(target, migrations[version:])
    target.execute(f"PRAGMA user_version = {len(migrations)}")
    target.execute("COMMIT")
    return foreign


def _run(target: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    for statements in migrations:
        for statement in statements:
            target.execute(statement)


def _columns(database: sqlite3.Connection) -> Mapping[str, Sequence[str]]:
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {table: [row[1] for row in database.execute(f"PRAGMA table_info({table})")] for table in tables}


def _check_schema(source: _Source, target: sqlite3.Connection, tables: Mapping[str, Sequence[str]]) -> int:
    """Check that all known tables and columns exist; return the number of foreign schema objects."""
    found = source.database.execute("SELECT type, name, rootpage FROM sqlite_master").fetchmany(_MAX_SCHEMA + 1)
    if len(found) > _MAX_SCHEMA:
        raise BackupFailed(f"{source.path} is not an amo-callback database")
    real = {name for kind, name, rootpage in found if kind == "table" and rootpage}  # virtual tables have no root page
    for table, columns in tables.items():
        # Generated (hidden) columns are excluded, because reading one evaluates an expression from the file.
        rows_of = source.database.execute(f"PRAGMA table_xinfo({table})") if table in real else []
        plain = {row[1] for row in rows_of if row[6] == 0}
        if missing := [column for column in columns if column not in plain]:
            raise BackupFailed(f"{source.path} is not an amo-callback database: no column {table}.{missing[0]}")
    ours = {name for (name,) in target.execute("SELECT name FROM sqlite_master")}
    return sum(not str(name).startswith("sqlite_") and name not in ours for _, name, _ in found)


def _check_table(source: _Source, table: str) -> int:
    _bound(source.database, _STEPS_A_PAGE + _STEPS_A_BYTE * source.size)
    [failure] = source.database.execute(f"PRAGMA quick_check({table})").fetchone()
    if failure != "ok":
        raise BackupFailed(f"{source.path} is damaged: use another backup")
    count = number(source.database, f"SELECT count(*) FROM {table}")  # noqa: S608 -- the name is a constant
    if count > source.limits.rows:
        raise BackupFailed(
            f"{source.path} has {count:,} rows in {table}, more than the maximum of {source.limits.rows:,}: "
            "use another backup"
        )
    return count


def _copy_table(source: _Source, target: sqlite3.Connection, table: str, columns: Sequence[str]) -> Iterator[int]:
    names, places = ", ".join(columns), ", ".join("?" for _ in columns)
    reading = source.database.execute(f"SELECT {names} FROM {table}")  # noqa: S608 -- the names are constants
    _bound(source.database, _STEPS_A_PAGE)
    while page := reading.fetchmany(_PAGE):
        target.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", page)  # noqa: S608 -- as above
        yield len(page)
        _bound(source.database, _STEPS_A_PAGE)


# --- the new file --------------------------------------------------------------------------------


_META: Mapping[str, Callable[[bytes], object]] = {
    "amo_block": read_amo_block,
    "frozen": read_freeze,
    "machine": bytes.decode,
    "refused_credentials": bytes.decode,
    "seen_at": lambda value: from_micros(int(value)),
    "serial": lambda value: range(1, 2**62).index(int(value)),
}
_UNREADABLE = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)


def _check_meta(target: sqlite3.Connection, path: Path) -> None:
    """Check that the service can read the rows of `meta`; a malformed row would stop the service."""
    found = dict(target.execute("SELECT name, value FROM meta"))
    for name, value in found.items():
        try:
            _META.get(name, bytes)(value)
        except _UNREADABLE:
            raise BackupFailed(
                f"{path} contains a row in the table meta that the service cannot read: use another backup"
            ) from None
    if "serial" not in found:
        raise BackupFailed(f"{path} is not an amo-callback database: the table `meta` has no row named `serial`")


def _check_made(made: Path) -> None:
    """Open the rebuilt database and check that it is intact and frozen."""
    with closing(connect(made)) as opened:
        [failure] = opened.execute("PRAGMA integrity_check(1)").fetchone()
        if failure != "ok":
            raise BackupFailed(f"the database written to {made.parent.parent} is damaged: check the disk")
        check_frozen(opened)


# --- messages ------------------------------------------------------------------------------------

_WORDS = {
    sqlite3.SQLITE_NOTADB: "is not an amo-callback database",
    sqlite3.SQLITE_AUTH: "is not an amo-callback database",
    sqlite3.SQLITE_CORRUPT: "is damaged: use another backup",
    sqlite3.SQLITE_TOOBIG: "contains a value that is longer than amo-callback can store: use another backup",
    sqlite3.SQLITE_INTERRUPT: "takes too many SQLite instructions to read: use another backup",
    sqlite3.SQLITE_CONSTRAINT: "contains a row that the service cannot read: use another backup",
    None: "contains text that the service cannot read: use another backup",  # not UTF-8
}


@contextmanager
def _explained(path: Path, *, folder: Path) -> Iterator[None]:
    """Raise `BackupFailed` for errors in the file to restore, and for disk errors of the new database."""
    try:
        yield
    except OSError as error:
        raise BackupFailed(f"{folder}: {reason_of(error)}") from None
    except UnicodeDecodeError:  # the file's schema contains names that are not UTF-8
        raise BackupFailed(f"{path} {_WORDS[None]}") from None
    except sqlite3.Error as error:
        extended = getattr(error, "sqlite_errorcode", None)
        code = None if extended is None else extended & 0xFF
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            raise BackupFailed(f"{folder}: {reason_of(error)}") from None
        raise BackupFailed(f"{path} {_WORDS.get(code, f'cannot be read ({reason_of(error)})')}") from None
