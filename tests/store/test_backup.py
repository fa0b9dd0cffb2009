"""Backup and restore of the SQLite database, and the copies made before an upgrade."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import BackupFailed, Frozen
from amo_callback.store import backup, open_store
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import load_migrations
from amo_callback.store.rebuild import open_given, rebuild
from amo_callback.store.sqlite import open_sqlite
from tests.builders import a_claim, a_connection, a_grant, present, save
from tests.fakes import START, unseen
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from amo_callback.model import Connection, Freeze

NAME = "amo-callback.db"
URL = f"sqlite:///{NAME}"
_BALLAST = '{"x": "%s"}' % ("x" * 2000)
KEPT = f"{NAME}.before-restore-20261123T120000Z"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "active"
    folder.mkdir()
    return folder / NAME


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder / "copy"


async def _make(database: Path, *numbers: int) -> list[Connection]:
    async with open_store(URL, folder=database.parent, clock=SystemClock()) as store:
        await store.canary(b"canary")
        return [await save(store, a_connection(number)) for number in numbers]


async def _read(database: Path) -> tuple[list[str], Freeze | None]:
    """Open a database as the service does and return its account ids and its freeze."""
    url = f"sqlite:///{database.name}"
    async with open_store(url, folder=database.parent, clock=SystemClock()) as store:
        found = [await store.connections_of(str(number)) for number in range(10)]
        return [one.account_id for some in found for one in some], await store.frozen()


def _back_up(database: Path, target: Path) -> None:
    with backup.open_snapshot(database) as snapshot:
        backup.back_up(snapshot, target, now=START)


def _restore(copy: Path, database: Path, *, now: datetime = START) -> Path | None:
    with open_given(copy) as given, rebuild(given, database, now=now, progress=unseen) as made:
        return backup.restore(made.file, database, now=now)


def _refused(copy: Path, database: Path) -> str:
    """Return the error of a restore and check that no file has changed."""
    before = _files(database.parent)
    with pytest.raises(BackupFailed) as raised:
        _restore(copy, database)
    assert _files(database.parent) == before
    return str(raised.value)


def _files(folder: Path) -> dict[str, bytes]:
    """Return a folder's files without SQLite's shared-memory file."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    """Limit this process's file size, which has the effect of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _leave_wal(database: Path) -> None:
    """Leave a write-ahead log beside the database, as a killed process does."""
    script = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "database.execute('PRAGMA journal_mode = WAL'); "
        'database.execute("UPDATE connections SET failures = 7"); os._exit(0)'
    )
    subprocess.run([sys.executable, "-c", script, database], check=True)  # noqa: S603 -- a constant script
    assert database.with_name(f"{NAME}-wal").stat().st_size > 0


def _failures(database: Path) -> set[int]:
    with closing(sqlite3.connect(database)) as opened:
        return {row[0] for row in opened.execute("SELECT failures FROM connections")}


# --- backup --------------------------------------------------------------------------------------


async def test_backup_opened_in_place_is_frozen_and_allows_no_claim(database: Path, target: Path) -> None:
    """A backup opened in its folder is frozen: it refuses claims and grants, and its history names the copy."""
    [stored] = await _make(database, 1)
    _back_up(database, target)
    assert await _read(database) == (["1"], None)  # the original is not frozen
    async with open_store("sqlite:///copy", folder=target.parent, clock=SystemClock()) as store:
        frozen = present(await store.frozen())
        assert frozen.at == START
        assert frozen.why == "the database is a copy, and another host may still use its tokens"
        assert await store.claim(a_claim(stored)) is None
        assert (await store.due(now=START.replace(year=2030), limit=9, exclude=[])).refreshes == []
        with pytest.raises(Frozen):
            await store.claim_grant(a_grant("another"), now=START)
        assert [event.name for event in await store.events(limit=9)] == ["service.copied"]
        assert await store.thaw_all(machine=None)
        assert await store.claim(a_claim(stored)) is not None


async def test_backup_with_open_umask_is_one_file_of_mode_600(database: Path, target: Path) -> None:
    """A backup is one file without a WAL and with mode 600, for any umask of the process."""
    before = os.umask(0)
    try:
        await _make(database, 1)
        _back_up(database, target)
    finally:
        os.umask(before)
    assert [file.name for file in target.parent.iterdir()] == ["copy"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)


async def test_backup_during_writes_is_consistent(database: Path, target: Path) -> None:
    """A backup made during constant writes contains whole transactions and passes the integrity check."""
    await _make(database, *range(1, 10))
    with _writing(database):
        for number in range(10):
            _back_up(database, target.with_name(str(number)))
    seen: list[tuple[int, int]] = []
    for number in range(10):
        with closing(sqlite3.connect(target.with_name(str(number)))) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            seen.append(_two_marks(copy))
    assert {one - other for one, other in seen} == {0}
    assert len(set(seen)) > 1


@contextmanager
def _writing(database: Path) -> Iterator[None]:
    """Write in a loop: each transaction sets one number in two tables and adds a large event."""
    begun, ended = Event(), Event()

    def write() -> None:
        with closing(sqlite3.connect(database, isolation_level=None)) as writer:
            writer.execute("PRAGMA synchronous = OFF")
            number = 0
            while not ended.is_set():
                number += 1
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('one', CAST(? AS BLOB))", [number])
                writer.execute("INSERT INTO events (at, name, process, details) VALUES (0, 'x', 'x', ?)", [_BALLAST])
                writer.execute("UPDATE connections SET failures = ?", [number])
                writer.execute("COMMIT")
                begun.set()

    thread = Thread(target=write)
    thread.start()
    try:
        assert begun.wait(WAIT_LIMIT)
        yield
    finally:
        ended.set()
        thread.join()


def _two_marks(database: sqlite3.Connection) -> tuple[int, int]:
    [one] = database.execute("SELECT value FROM meta WHERE name = 'one'").fetchone() or [b"0"]
    [other] = database.execute("SELECT max(failures) FROM connections").fetchone()
    return int(one), int(other)


async def test_backup_onto_existing_file_is_refused(database: Path, target: Path) -> None:
    """A backup never overwrites a file: the caller must give another name."""
    await _make(database, 1)
    target.write_text("somebody's")
    with pytest.raises(BackupFailed, match="copy: File exists"):
        _back_up(database, target)
    assert _files(target.parent) == {"copy": b"somebody's"}


async def test_backup_full_disk_leaves_no_partial_file(database: Path, target: Path) -> None:
    """A full disk at any point of a backup leaves no file; a backup with enough space succeeds."""
    await _make(database, *range(1, 10))
    whole = database.stat().st_size
    with backup.open_snapshot(database) as snapshot:
        for size in range(0, whole, whole // 10):
            with _files_limited_to(size), pytest.raises(BackupFailed, match="copy: "):
                backup.back_up(snapshot, target, now=START)
            assert list(target.parent.iterdir()) == []
        with _files_limited_to(2 * whole):
            backup.back_up(snapshot, target, now=START)
    assert (await _read(target))[0] == [str(number) for number in range(1, 10)]


async def test_backup_into_missing_folder_names_file_and_reason(database: Path, tmp_path: Path) -> None:
    """The error of a backup into a missing folder names the file and the reason."""
    await _make(database, 1)
    with pytest.raises(BackupFailed, match=r"nowhere/copy: No such file or directory"):
        _back_up(database, tmp_path / "nowhere" / "copy")


async def test_backup_of_frozen_database_has_its_own_freeze_reason(database: Path, target: Path) -> None:
    """The backup of a frozen database has its own freeze reason and its own time."""
    await _make(database, 1)
    async with open_store(URL, folder=database.parent, clock=SystemClock()) as store:
        await store.freeze_all(why="moving to another host")
    _back_up(database, target)
    _, frozen = await _read(target)
    assert frozen is not None
    assert frozen.why.startswith("the database is a copy")
    with backup.open_snapshot(target) as snapshot:
        found = backup.contents(snapshot)
    assert (found.connections, found.made_at, found.canary) == (1, START, b"canary")


# --- restore -------------------------------------------------------------------------------------


async def test_restore_replaces_database_and_keeps_previous_file(database: Path, target: Path) -> None:
    """A restore keeps the previous database beside the restored one; both are frozen and have mode 600."""
    [stored] = await _make(database, 1)
    _back_up(database, target)
    await _make(database, 2)
    assert _restore(target, database) == database.with_name(KEPT)
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, KEPT]
    assert {stat.S_IMODE(file.stat().st_mode) for file in database.parent.iterdir()} == {0o600}
    for file, accounts in ((database, ["1"]), (database.with_name(KEPT), ["1", "2"])):
        found, frozen = await _read(file)
        assert found == accounts
        assert frozen is not None
    async with open_store(URL, folder=database.parent, clock=SystemClock()) as store:
        assert await store.claim(a_claim(stored)) is None


async def test_restore_of_manual_copy_freezes_database_and_leaves_copy_unchanged(database: Path, target: Path) -> None:
    """A manual copy with its WAL is restored with the WAL's content, frozen, and is itself not changed."""
    await _make(database, 1)
    _leave_wal(database)
    shutil.copy(database, target)
    shutil.copy(database.with_name(f"{NAME}-wal"), target.with_name("copy-wal"))
    database.unlink()
    assert _restore(target, database) is None
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert _failures(database) == {7}
    found, frozen = await _read(database)
    assert (found, frozen is not None) == (["1"], True)
    assert _failures(target) == {7}


async def test_restore_without_database_ignores_leftover_wal(database: Path, target: Path) -> None:
    """A WAL left by a deleted database is not applied to the restored one."""
    await _make(database, 1)
    _back_up(database, target)
    _leave_wal(database)
    database.unlink()
    assert _restore(target, database) is None
    assert _failures(database) == {0}
    assert (await _read(database))[0] == ["1"]


async def test_restore_assigns_wal_to_kept_database(database: Path, target: Path) -> None:
    """The WAL of a killed service becomes part of the kept database, not of the restored one."""
    await _make(database, 1)
    _back_up(database, target)
    _leave_wal(database)
    _restore(target, database)
    assert (_failures(database), _failures(database.with_name(KEPT))) == ({0}, {7})


async def test_restore_over_database_in_use_is_refused(database: Path, target: Path) -> None:
    """A restore is refused while an idle service or another writer has the database open."""
    [stored] = await _make(database, 1)
    _back_up(database, target)
    async with open_store(URL, folder=database.parent, clock=SystemClock()) as store:
        assert _refused(target, database) == f"{database} is in use: stop the service first"
        assert await store.claim(a_claim(stored)) is not None
    _restore(target, database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert _refused(target, database) == f"{database} is in use: stop the service first"


async def test_restore_onto_itself_is_refused(database: Path) -> None:
    """The database's own file is refused as a backup."""
    await _make(database, 1)
    assert _refused(database, database) == f"{database} is the current database: specify a backup"


async def test_restore_concurrent_open_reads_old_or_new_database(database: Path, target: Path) -> None:
    """A process that opens the database during restores reads one whole version, and loses no write."""
    await _make(database, *range(1, 10))
    with _writing(database):
        await asyncio.sleep(0.1)
    _back_up(database, target)
    odd, even = target, target.with_name("even")
    with closing(sqlite3.connect(database)) as writer, writer:
        writer.execute("UPDATE meta SET value = CAST('0' AS BLOB) WHERE name = 'one'")
        writer.execute("UPDATE connections SET failures = 0")
    _back_up(database, even)
    seen: list[tuple[int, int]] = []
    files = [database]
    with _opening_repeatedly(database, seen):
        while len(files) <= 10 or len(set(seen)) < 2:
            try:
                kept = _restore((odd, even)[len(files) % 2], database, now=START + timedelta(seconds=len(files)))
            except BackupFailed as error:
                assert "is in use" in str(error)  # noqa: PT017 -- the other thread uses the database
            else:
                assert kept is not None
                files.append(kept)
    assert {one - other for one, other in seen} == {0}
    assert len(set(seen)) == 2
    assert {number for file in files for number in _written(file)} == set(range(len(seen)))


@contextmanager
def _opening_repeatedly(database: Path, seen: list[tuple[int, int]]) -> Iterator[None]:
    """Open the database in a loop as a starting service does, read both marks and write an event."""
    ended = Event()

    def start() -> None:
        while not ended.is_set():
            with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as service:
                try:
                    service.execute("PRAGMA journal_mode = WAL")
                    service.execute("BEGIN IMMEDIATE")
                    marks = _two_marks(service)
                    service.execute(
                        "INSERT INTO events (at, name, process, details) VALUES (?, 'start', '', '{}')", [len(seen)]
                    )
                    service.execute("COMMIT")
                except sqlite3.OperationalError:
                    continue  # the database is locked
                seen.append(marks)
            time.sleep(0.004)

    thread = Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _written(database: Path) -> list[int]:
    with closing(sqlite3.connect(database)) as opened:
        return [row[0] for row in opened.execute("SELECT at FROM events WHERE name = 'start'")]


async def test_restore_full_disk_leaves_database_unchanged(database: Path, target: Path) -> None:
    """A full disk at any point of a restore leaves the database unchanged."""
    await _make(database, 1)
    with _writing(database):
        await asyncio.sleep(0.1)
    _back_up(database, target)
    await _make(database, 2)
    whole = target.stat().st_size
    for size in range(0, whole, whole // 10):
        with _files_limited_to(size), pytest.raises(BackupFailed):
            _restore(target, database)
        assert [file.name for file in database.parent.iterdir()] == [NAME]
    assert await _read(database) == (["1", "2"], None)


async def test_restore_full_disk_at_last_step_leaves_database_unchanged(database: Path, target: Path) -> None:
    """A disk that is full only at the final copy leaves the database unchanged and no kept copy."""
    await _make(database, *range(1, 10))
    _back_up(database, target)
    with (
        _files_limited_to(target.stat().st_size),  # SQLite's journal is slightly larger than its pages
        pytest.raises(BackupFailed, match=f"{NAME}: SQLITE_IOERR_WRITE"),
    ):
        _restore(target, database)
    assert (await _read(database))[1] is None
    assert [file.name for file in database.parent.iterdir()] == [NAME]


async def test_restore_of_damaged_copy_is_refused(database: Path, target: Path) -> None:
    """A copy that is truncated or has an overwritten page is refused."""
    await _make(database, *range(1, 10))
    _back_up(database, target)
    whole = target.read_bytes()
    for size in range(4096, len(whole), 4096):
        target.write_bytes(whole[:size])
        assert str(target) in _refused(target, database)
    for page in range(4096, len(whole), 4096):
        target.write_bytes(whole[:page] + os.urandom(4096) + whole[page + 4096 :])
        assert str(target) in _refused(target, database)


async def test_restore_of_foreign_database_is_refused(database: Path, target: Path) -> None:
    """Another program's database is refused as a backup, and is not replaced by one."""
    await _make(database, 1)
    with closing(sqlite3.connect(target)) as other:
        other.execute("CREATE TABLE theirs (x)")
    assert "is not an amo-callback database" in _refused(target, database)
    theirs = target.rename(target.with_name("theirs"))
    _back_up(database, target)
    assert _refused(target, theirs) == (
        f"{theirs} is not an amo-callback database and was not replaced: check storage.url"
    )


async def test_restore_over_newer_schema_keeps_newer_database(database: Path, target: Path) -> None:
    """A database with a newer schema can be replaced for a downgrade, and is kept."""
    await _make(database, 1)
    _back_up(database, target)
    with closing(sqlite3.connect(database)) as newer:
        newer.execute("PRAGMA user_version = 99")
    assert _restore(target, database) == database.with_name(KEPT)
    assert (await _read(database))[0] == ["1"]


async def test_restore_over_damaged_database_asks_to_move_it(database: Path, target: Path) -> None:
    """A damaged database cannot be kept, so it is not replaced and the error says what to do."""
    await _make(database, 1)
    _back_up(database, target)
    database.write_bytes(b"this was a database" * 999)
    result = _refused(target, database)
    assert result == (
        f"{database} is not replaced, because it cannot be copied beforehand (SQLITE_NOTADB): move it and its -wal and "
        "-journal files away, and run the command again"
    )
    database.rename(database.with_name("damaged"))
    _restore(target, database)
    assert (await _read(database))[0] == ["1"]


# --- upgrades ------------------------------------------------------------------------------------


LATER = [*load_migrations(Engine.SQLITE), ["CREATE TABLE later (x)"]]


async def _upgrade(database: Path) -> list[str]:
    """Open a database as a later version does and return its account ids."""
    async with open_sqlite(database, clock=SystemClock(), migrations=LATER) as opened:
        return [row["account_id"] for row in await opened.read("attempts")]


def _make_old(database: Path) -> None:
    """Create a database with this version's schema and one connection."""
    with closing(sqlite3.connect(database, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        for statement in LATER[0]:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO connections (id, account_id, user_id, domain, client_id, status, connected_at, attempt) "
            "VALUES ('a-connection', '1', '1', 'a.amocrm.ru', 'c619', 'active', 0, 'x')"
        )


def _version(database: Path) -> int:
    with closing(sqlite3.connect(database)) as opened:
        return int(opened.execute("PRAGMA user_version").fetchone()[0])


async def test_upgrade_keeps_copy_with_old_schema(database: Path) -> None:
    """An upgrade leaves a whole, frozen copy with the old schema and mode 600 beside the database."""
    _make_old(database)
    assert await _upgrade(database) == ["1"]
    kept = database.with_name(f"{NAME}.schema-1")
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, kept.name]
    assert (_version(database), _version(kept)) == (2, 1)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with backup.open_snapshot(kept) as snapshot:
        assert backup.contents(snapshot).connections == 1
    found, frozen = await _read(kept)
    assert (found, frozen is not None) == (["1"], True)


async def test_open_without_upgrade_makes_no_copy(database: Path) -> None:
    """A new or current database is opened without a copy."""
    await _make(database, 1)
    await _make(database, 2)
    assert [file.name for file in database.parent.iterdir()] == [NAME]


async def test_upgrade_full_disk_fails_and_changes_nothing(database: Path) -> None:
    """An upgrade that cannot write its copy fails and changes nothing; it succeeds once there is space."""
    _make_old(database)
    with _files_limited_to(40_000), pytest.raises(BackupFailed) as raised:
        await _upgrade(database)
    assert str(raised.value).startswith(
        f"{database} is not upgraded, because its backup {NAME}.schema-1 cannot be written: "
    )
    assert [file.name for file in database.parent.iterdir()] == [NAME]
    assert _version(database) == 1
    assert await _upgrade(database) == ["1"]


async def test_upgrade_replaces_files_of_killed_upgrade(database: Path) -> None:
    """Files left by a killed upgrade are removed or replaced, and do not block the next upgrade."""
    _make_old(database)
    leftover = database.with_name(f".{NAME}.schema-1.abc.unfinished")
    leftover.mkdir()
    (leftover / "half").write_bytes(b"half of a copy")
    database.with_name(f"{NAME}.schema-1").write_bytes(b"of an earlier try")
    assert await _upgrade(database) == ["1"]
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, f"{NAME}.schema-1"]
    assert _version(database.with_name(f"{NAME}.schema-1")) == 1


async def test_upgrade_concurrent_processes_keep_one_copy(database: Path) -> None:
    """Of several processes that upgrade at once, one keeps the old schema and the others change nothing."""
    _make_old(database)
    await asyncio.gather(*(_upgrade(database) for _ in range(4)))
    kept = database.with_name(f"{NAME}.schema-1")
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, kept.name]
    assert (_version(database), _version(kept)) == (2, 1)
