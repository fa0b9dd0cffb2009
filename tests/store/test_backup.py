"""Copies of the database: whole or not there, and frozen wherever they are put back."""

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
    """Open a database as the service does, and return the accounts in it, and whether it is frozen."""
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
    """Return why a copy is not restored, and see that nothing was changed by the attempt."""
    before = _files(database.parent)
    with pytest.raises(BackupFailed) as raised:
        _restore(copy, database)
    assert _files(database.parent) == before
    return str(raised.value)


def _files(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, but for the file by which SQLite's processes share a log."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process become longer: to SQLite and to us, a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _write_ahead(database: Path) -> None:
    """Let a process die that has written ahead; what it wrote waits beside the database."""
    script = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "database.execute('PRAGMA journal_mode = WAL'); "
        'database.execute("UPDATE connections SET failures = 7"); os._exit(0)'
    )
    subprocess.run([sys.executable, "-c", script, database], check=True)  # noqa: S603 -- because the script is ours
    assert database.with_name(f"{NAME}-wal").stat().st_size > 0


def _failures(database: Path) -> set[int]:
    with closing(sqlite3.connect(database)) as opened:
        return {row[0] for row in opened.execute("SELECT failures FROM connections")}


# --- backup --------------------------------------------------------------------------------------


async def test_a_copy_spends_nothing_wherever_it_is_put(database: Path, target: Path) -> None:
    """Put in a folder by hand it is frozen, and says what to do: no claim, no grant, nothing due; its history tells."""
    [stored] = await _make(database, 1)
    _back_up(database, target)
    assert await _read(database) == (["1"], None)  # the original is not frozen
    async with open_store("sqlite:///copy", folder=target.parent, clock=SystemClock()) as store:
        frozen = present(await store.frozen())
        assert frozen.at == START
        assert frozen.why.endswith("once no other host uses its tokens, run `amo-callback connections thaw --all`")
        assert await store.claim(a_claim(stored)) is None
        assert (await store.due(now=START.replace(year=2030), limit=9, exclude=[])).refreshes == []
        with pytest.raises(Frozen):
            await store.claim_grant(a_grant("another"), now=START)
        assert [event.name for event in await store.events(limit=9)] == ["service.copied"]
        assert await store.thaw_all(machine=None)
        assert await store.claim(a_claim(stored)) is not None


async def test_a_copy_is_one_file_and_its_owners_alone(database: Path, target: Path) -> None:
    """Nothing lies beside it, and nobody else may read it, whatever the process's umask."""
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


async def test_a_copy_made_while_somebody_writes_all_the_time_is_consistent(database: Path, target: Path) -> None:
    """Of what is written together a copy holds all or nothing, and no writer holds it up."""
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
    """Write two marks far from each other in one transaction, and some ballast, as fast as can be."""
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


async def test_a_file_that_is_there_is_never_overwritten(database: Path, target: Path) -> None:
    """Another name has to be given, and what was there stays."""
    await _make(database, 1)
    target.write_text("somebody's")
    with pytest.raises(BackupFailed, match="copy: File exists"):
        _back_up(database, target)
    assert _files(target.parent) == {"copy": b"somebody's"}


async def test_a_full_disk_leaves_nothing_half_made(database: Path, target: Path) -> None:
    """However much of the copy there is room for, there is no copy but a whole one."""
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


async def test_a_folder_that_is_not_there_is_told(database: Path, tmp_path: Path) -> None:
    """The message names the file and the reason."""
    await _make(database, 1)
    with pytest.raises(BackupFailed, match=r"nowhere/copy: No such file or directory"):
        _back_up(database, tmp_path / "nowhere" / "copy")


async def test_what_was_frozen_for_another_reason_is_a_copy_from_now_on(database: Path, target: Path) -> None:
    """The reason that a copy gives is its own, not that of the original, and it tells when it was made."""
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


async def test_what_is_restored_is_frozen_and_what_was_there_is_kept(database: Path, target: Path) -> None:
    """The copy's content takes the place of the database, whose own is beside it: both frozen, both the owner's."""
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


async def test_a_copy_made_by_hand_is_frozen_by_restoring_it(database: Path, target: Path) -> None:
    """A plain copy of the files of a service that died is taken with what was written ahead, and is left as it is."""
    await _make(database, 1)
    _write_ahead(database)
    shutil.copy(database, target)
    shutil.copy(database.with_name(f"{NAME}-wal"), target.with_name("copy-wal"))
    database.unlink()
    assert _restore(target, database) is None
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert _failures(database) == {7}
    found, frozen = await _read(database)
    assert (found, frozen is not None) == (["1"], True)
    assert _failures(target) == {7}


async def test_what_an_earlier_database_of_that_name_has_left_is_not_applied(database: Path, target: Path) -> None:
    """A log that lies beside no database any more does not get into the restored one."""
    await _make(database, 1)
    _back_up(database, target)
    _write_ahead(database)
    database.unlink()
    assert _restore(target, database) is None
    assert _failures(database) == {0}
    assert (await _read(database))[0] == ["1"]


async def test_what_was_written_ahead_belongs_to_what_is_kept(database: Path, target: Path) -> None:
    """The log of a service that died is part of the database that is kept, and not of the restored one."""
    await _make(database, 1)
    _back_up(database, target)
    _write_ahead(database)
    _restore(target, database)
    assert (_failures(database), _failures(database.with_name(KEPT))) == ({0}, {7})


async def test_a_database_that_is_in_use_is_not_replaced(database: Path, target: Path) -> None:
    """While a service has it open, also an idle one, or where a restored one is written by hand, nothing is changed."""
    [stored] = await _make(database, 1)
    _back_up(database, target)
    async with open_store(URL, folder=database.parent, clock=SystemClock()) as store:
        assert _refused(target, database) == f"{database} is in use: stop the service first"
        assert await store.claim(a_claim(stored)) is not None
    _restore(target, database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert _refused(target, database) == f"{database} is in use: stop the service first"


async def test_a_database_is_not_restored_onto_itself(database: Path) -> None:
    """Whoever names the living database as the copy is refused, too."""
    await _make(database, 1)
    assert _refused(database, database) == f"{database} is the database itself: name a backup"


async def test_whoever_opens_it_meanwhile_finds_the_old_or_the_new_one(database: Path, target: Path) -> None:
    """Nobody reads a part of what is being restored, and what anybody writes gets lost in no gap."""
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
    with _starting(database, seen):
        while len(files) <= 10 or len(set(seen)) < 2:
            try:
                kept = _restore((odd, even)[len(files) % 2], database, now=START + timedelta(seconds=len(files)))
            except BackupFailed as error:
                assert "is in use" in str(error)  # noqa: PT017 -- because it is the other one that uses it
            else:
                assert kept is not None
                files.append(kept)
    assert {one - other for one, other in seen} == {0}
    assert len(set(seen)) == 2
    assert {number for file in files for number in _written(file)} == set(range(len(seen)))


@contextmanager
def _starting(database: Path, seen: list[tuple[int, int]]) -> Iterator[None]:
    """Open the database again and again as a service that starts, read the two marks, and write their number."""
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
                    continue  # it is locked
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


async def test_a_full_disk_replaces_nothing(database: Path, target: Path) -> None:
    """However much there is room for, either the whole copy is restored or the database is what it was."""
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


async def test_a_disk_that_is_full_at_the_last_step_replaces_nothing(database: Path, target: Path) -> None:
    """Where there was room for all but the way back, the database is what it was, and no copy of it stays."""
    await _make(database, *range(1, 10))
    _back_up(database, target)
    with (
        _files_limited_to(target.stat().st_size),  # SQLite's journal is a little longer than the pages in it
        pytest.raises(BackupFailed, match=f"{NAME}: SQLITE_IOERR_WRITE"),
    ):
        _restore(target, database)
    assert (await _read(database))[1] is None
    assert [file.name for file in database.parent.iterdir()] == [NAME]


async def test_a_damaged_copy_is_not_restored(database: Path, target: Path) -> None:
    """Cut off anywhere, or with a page overwritten, it is refused."""
    await _make(database, *range(1, 10))
    _back_up(database, target)
    whole = target.read_bytes()
    for size in range(4096, len(whole), 4096):
        target.write_bytes(whole[:size])
        assert str(target) in _refused(target, database)
    for page in range(4096, len(whole), 4096):
        target.write_bytes(whole[:page] + os.urandom(4096) + whole[page + 4096 :])
        assert str(target) in _refused(target, database)


async def test_somebody_elses_database_is_not_restored(database: Path, target: Path) -> None:
    """A database of another program is refused, and so it is to put anything in its place."""
    await _make(database, 1)
    with closing(sqlite3.connect(target)) as other:
        other.execute("CREATE TABLE theirs (x)")
    assert "is not a database of amo-callback" in _refused(target, database)
    theirs = target.rename(target.with_name("theirs"))
    _back_up(database, target)
    assert _refused(target, theirs) == f"{theirs} is not a database of amo-callback, and is not replaced"


async def test_a_database_with_a_newer_schema_may_be_replaced(database: Path, target: Path) -> None:
    """That is the way back to an older program: the newer one's database is kept."""
    await _make(database, 1)
    _back_up(database, target)
    with closing(sqlite3.connect(database)) as newer:
        newer.execute("PRAGMA user_version = 99")
    assert _restore(target, database) == database.with_name(KEPT)
    assert (await _read(database))[0] == ["1"]


async def test_a_damaged_database_has_to_be_moved_away(database: Path, target: Path) -> None:
    """What cannot be kept is not replaced, and the message says what to do."""
    await _make(database, 1)
    _back_up(database, target)
    database.write_bytes(b"this was a database" * 999)
    told = _refused(target, database)
    assert told == (
        f"{database} cannot be kept (SQLITE_NOTADB): move it and its -wal and -journal files away, and restore again"
    )
    database.rename(database.with_name("damaged"))
    _restore(target, database)
    assert (await _read(database))[0] == ["1"]


# --- upgrades ------------------------------------------------------------------------------------


LATER = [*load_migrations(Engine.SQLITE), ["CREATE TABLE later (x)"]]


async def _upgrade(database: Path) -> list[str]:
    """Open a database as a later version does, and return the accounts in it."""
    async with open_sqlite(database, clock=SystemClock(), migrations=LATER) as opened:
        return [row["account_id"] for row in await opened.read("attempts")]


def _make_old(database: Path) -> None:
    """Make a database as this version has left it, one connection in it."""
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


async def test_an_upgrade_keeps_the_database_as_it_was(database: Path) -> None:
    """A copy with the old schema is beside it, whole, frozen and the owner's alone."""
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


async def test_a_new_database_is_no_upgrade(database: Path) -> None:
    """Nor is a start that has nothing to upgrade: no copy is made."""
    await _make(database, 1)
    await _make(database, 2)
    assert [file.name for file in database.parent.iterdir()] == [NAME]


async def test_an_upgrade_that_cannot_keep_a_copy_does_not_happen(database: Path) -> None:
    """On a full disk the start fails in clear words and leaves all as it was; with room again it succeeds."""
    _make_old(database)
    with _files_limited_to(40_000), pytest.raises(BackupFailed) as raised:
        await _upgrade(database)
    assert str(raised.value).startswith(f"{database} is not upgraded: {NAME}.schema-1 cannot be written: ")
    assert [file.name for file in database.parent.iterdir()] == [NAME]
    assert _version(database) == 1
    assert await _upgrade(database) == ["1"]


async def test_what_a_killed_upgrade_has_left_is_replaced(database: Path) -> None:
    """Starts that are killed in the middle of an upgrade do not fill the disk, nor hold the next one up."""
    _make_old(database)
    leftover = database.with_name(f".{NAME}.schema-1.abc.unfinished")
    leftover.mkdir()
    (leftover / "half").write_bytes(b"half of a copy")
    database.with_name(f"{NAME}.schema-1").write_bytes(b"of an earlier try")
    assert await _upgrade(database) == ["1"]
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, f"{NAME}.schema-1"]
    assert _version(database.with_name(f"{NAME}.schema-1")) == 1


async def test_processes_that_upgrade_at_once_keep_one_copy(database: Path) -> None:
    """The first one keeps the old schema, and the others find nothing to do."""
    _make_old(database)
    await asyncio.gather(*(_upgrade(database) for _ in range(4)))
    kept = database.with_name(f"{NAME}.schema-1")
    assert sorted(file.name for file in database.parent.iterdir()) == [NAME, kept.name]
    assert (_version(database), _version(kept)) == (2, 1)
