"""The commands `backup` and `restore`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import stat
import sys
from contextlib import closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest

import amo_callback
from amo_callback.clock import SystemClock, rfc3339
from amo_callback.crypto import Cipher, new_key
from amo_callback.store import backup, open_store
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import load_migrations
from tests.builders import a_connection, save
from tests.cli.harness import typed
from tests.e2e.process import command, process_environment, serving
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Craft = Callable[[Path], object]

# ruff: noqa: S608 -- the values are constants

NAME = "amo-callback.db"
KEY = "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS"
NOBODY = 65534


@pytest.fixture
async def base(tmp_path: Path, environ: dict[str, str]) -> Path:
    """Return a folder with a database of two connections."""
    folder = tmp_path / "base"
    folder.mkdir()
    await _store(folder, environ, 1, 2)
    return folder


@pytest.fixture
async def copy(base: Path, environ: dict[str, str], tmp_path: Path) -> Path:
    """Back up the database, add a third connection to it, and return the backup's path."""
    path = tmp_path / "copy"
    with backup.open_snapshot(base / NAME) as snapshot:
        backup.back_up(snapshot, path, now=SystemClock().now())
    await _store(base, environ, 3)
    return path


async def _store(folder: Path, environ: dict[str, str], *numbers: int) -> None:
    async with open_store(f"sqlite:///{NAME}", folder=folder, clock=SystemClock()) as store:
        await store.canary(Cipher([environ[KEY]]).seal_canary())
        for number in numbers:
            await save(store, a_connection(number))


def _counted(database: Path) -> tuple[int, bool]:
    """Return the number of connections in a database, and whether it is frozen."""
    with closing(sqlite3.connect(database)) as opened:
        [number] = opened.execute("SELECT count(*) FROM connections").fetchone()
        return int(number), opened.execute("SELECT 1 FROM meta WHERE name = 'frozen'").fetchone() is not None


async def test_backup_reports_contents(base: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """The backup is named, counted and frozen; the database is not frozen."""
    result = await command("backup", "../copy", folder=base, environ=environ)
    assert result == (0, "../copy contains 2 connections; a database restored from it starts frozen\n", "")
    assert _counted(tmp_path / "copy") == (2, True)
    assert _counted(base / NAME) == (2, False)


async def test_restore_with_yes_reports_result_and_next_step(base: Path, environ: dict[str, str], copy: Path) -> None:
    """With `--yes` the database is replaced and frozen, and the previous database is named."""
    status, out, err = await command("restore", str(copy), "--yes", folder=base, environ=environ)
    [kept] = base.glob(f"{NAME}.before-restore-*")
    assert (status, err) == (0, "")
    assert out == (
        "restored 2 connections; no token is refreshed until you run `amo-callback connections thaw --all`\n"
        f"the previous database is kept as {kept}\n"
    )
    assert (_counted(base / NAME), _counted(kept)) == ((2, True), (3, True))


async def test_restore_without_terminal_requires_yes(base: Path, environ: dict[str, str], copy: Path) -> None:
    """Without a terminal and `--yes` nothing is replaced."""
    status, out, err = await command("restore", str(copy), folder=base, environ=environ)
    assert (status, out) == (2, "")
    assert err == "amo-callback: cannot ask for confirmation without a terminal: use --yes\n"
    assert _counted(base / NAME) == (3, False)


@pytest.mark.parametrize(("answer", "restored"), [("y\n", True), ("n\n", False), ("\n", False), ("\x04", False)])
async def test_restore_on_terminal_asks_for_confirmation(
    answer: str, restored: bool, base: Path, environ: dict[str, str], copy: Path  # noqa: FBT001 -- pytest passes it
) -> None:  # fmt: skip
    """The question names the backup's contents, its time and the consequence; only yes confirms."""
    made_at = rfc3339(FakeClock().now())
    with closing(sqlite3.connect(copy)) as opened:
        opened.execute("DELETE FROM meta WHERE name = 'frozen'")
        opened.execute("INSERT INTO meta VALUES ('seen_at', CAST('1795435200000000' AS BLOB))")
        opened.commit()
    status, shown = await typed(
        "restore", str(copy), folder=base, environ=environ, answers=[("Restore this backup?", answer)]
    )
    assert (
        f"{copy} contains 2 connections, as they were at {made_at}.\n"
        f"This backup replaces {base / NAME}; a copy of the replaced database is kept in the same folder.\n"
        "The restored database is frozen: no token is refreshed until you run\n"
        "`amo-callback connections thaw --all`. If a connection was refreshed after the backup, its user has to\n"
        "connect again.\n"
        "Restore this backup? [y/N]: "
    ) in shown
    assert status == (0 if restored else 1)
    assert shown.endswith("nothing was changed\n") is not restored
    assert _counted(base / NAME) == ((2, True) if restored else (3, False))


async def test_restore_undecryptable_copy_is_refused(base: Path, environ: dict[str, str], copy: Path) -> None:
    """A backup that no configured key decrypts is refused, and nothing is changed."""
    status, out, err = await command("restore", str(copy), "--yes", folder=base, environ={**environ, KEY: new_key()})
    assert (status, out) == (78, "")
    assert err.startswith(f"amo-callback: storage.encryption_keys: no configured key decrypts {copy}; configure ")
    assert _counted(base / NAME) == (3, False)


async def test_restore_into_missing_folder_names_setting(base: Path, environ: dict[str, str], copy: Path) -> None:
    """The error of a missing folder names the setting."""
    missing = {**environ, "AMO_CALLBACK_STORAGE__URL": "sqlite:///nowhere/x.db"}
    result = await command("restore", str(copy), "--yes", folder=base, environ=missing)
    assert result == (
        78,
        "",
        f"amo-callback: storage.url: the folder {base / 'nowhere'} does not exist; create it, or correct the path\n",
    )


async def test_restore_while_service_runs_is_refused_and_backup_allowed(
    base: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """A running service can be backed up, and the error of a restore says to stop it."""
    async with serving(environ, base) as service:
        await service.until("service.started")
        assert (await command("backup", "../copy", folder=base, environ=environ))[0] == 0
        status, _, err = await command("restore", "../copy", "--yes", folder=base, environ=environ)
        assert status == 1
        assert err.startswith(f"amo-callback: {base / NAME} is in use: stop the service first")
        service.signal(signal.SIGTERM)
        assert await service.ended() == 0
    assert (await command("restore", "../copy", "--yes", folder=base, environ=environ))[0] == 0
    assert _counted(tmp_path / "copy")[1]


async def test_backup_stopped_by_sigterm_leaves_no_partial_file(
    base: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """After SIGTERM at any time, the target is a whole backup or missing."""
    with closing(sqlite3.connect(base / NAME)) as large, large:
        large.execute("CREATE TABLE ballast AS SELECT randomblob(40000000) AS x")
    target = tmp_path / "backups" / "copy"
    target.parent.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "amo_callback.cli.main",
        "backup",
        target,
        cwd=base,
        env=process_environment(environ),
    )
    while process.returncode is None and not list(target.parent.iterdir()):  # noqa: ASYNC110 -- another process creates it
        await asyncio.sleep(0.001)
    with suppress(ProcessLookupError):
        process.terminate()
    assert await process.wait() in {130, 0}
    assert [file.name for file in target.parent.iterdir() if not file.name.startswith(".")] in ([], ["copy"])
    assert not target.exists() or _counted(target) == (2, True)


# --- crafted files -------------------------------------------------------------------------------


def sql(*statements: str) -> Craft:
    def craft(copy: Path) -> None:
        with closing(sqlite3.connect(copy, isolation_level=None)) as crafted:
            for statement in statements:
                crafted.execute(statement)

    return craft


def with_table(table: str, schema: str, *more: str) -> Craft:
    """Replace one of the schema's tables by another table or a view; `more` may copy its rows."""
    return sql(f"ALTER TABLE {table} RENAME TO old_{table}", schema, *more)


def content(made: Callable[[bytes], bytes]) -> Craft:
    return lambda copy: copy.write_bytes(made(copy.read_bytes()))


def recreated(make: Craft) -> Craft:
    def craft(copy: Path) -> None:
        copy.unlink()
        make(copy)

    return craft


def beside(suffix: str, make: Craft) -> Craft:
    return lambda copy: make(copy.with_name(copy.name + suffix))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()  # noqa: PTH109 -- a socket's path has to be short
        os.chdir(path.parent)
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def moved_and_linked(copy: Path) -> None:
    copy.symlink_to(copy.rename(copy.with_name("moved")))


def overwrite_page(whole: bytes) -> bytes:
    """Overwrite the first page of the connections' table."""
    at = whole.rindex(b"a1.amocrm.ru") // 4096 * 4096
    return whole[:at] + b"\xa5" * 4096 + whole[at + 4096 :]


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
UNFREEZE = "BEGIN DELETE FROM meta WHERE name = 'frozen'; END"
COLUMNS = "SELECT * FROM old_connections"


def without_constraints(*changes: str) -> Craft:
    """Remove the constraints of the connections' table and change its rows."""
    return with_table("connections", f"CREATE TABLE connections AS {COLUMNS}", *changes)


REFUSED: dict[str, dict[str, Craft]] = {
    "is not an amo-callback database": {
        "schema -1": sql("PRAGMA user_version = -1"),
        "schema 0": sql("PRAGMA user_version = 0"),
        "an endless view": with_table("meta", f"CREATE VIEW meta AS {ENDLESS} SELECT x AS name, x AS value FROM c"),
        "an endless view that counts": with_table(
            "connections", f"CREATE VIEW connections AS {ENDLESS} SELECT x AS id FROM c WHERE x < 0"
        ),
        "a generated column": with_table(
            "meta",
            "CREATE TABLE meta (name TEXT, value BLOB GENERATED ALWAYS AS (replace(name, 'a', hex(zeroblob(99)))))",
            "INSERT INTO meta (name) VALUES ('canary')",
        ),
        "a virtual table": with_table("meta", "CREATE VIRTUAL TABLE meta USING fts5(name, value)"),
        "a table that is missing": sql("DROP TABLE webhooks"),
        "a column that is missing": sql("ALTER TABLE owners DROP COLUMN left_no"),
        "a thousand tables": sql(*(f"CREATE TABLE t{number} (x)" for number in range(1000))),
        "cut off in its head": content(lambda whole: whole[:50]),
        "empty": content(lambda _: b""),
        "a text": content(lambda _: b"no database at all" * 999),
        "encrypted": content(lambda whole: os.urandom(len(whole))),
    },
    "that the service cannot read: use another backup": {
        "a text where a number should be": without_constraints("UPDATE connections SET failures = 'many'"),
        "nothing where something must be": without_constraints("UPDATE connections SET connected_at = NULL"),
        "a text that is none": without_constraints("UPDATE connections SET domain = CAST(x'ff' AS TEXT)"),
        "the same row twice": without_constraints(f"INSERT INTO connections {COLUMNS}"),
        "a canary that is a text": with_table(
            "meta", "CREATE TABLE meta (name, value)", "INSERT INTO meta VALUES ('canary', 'x')"
        ),
        "a counter that could not be incremented": sql(
            f"UPDATE meta SET value = CAST('{2**63 - 1}' AS BLOB) WHERE name = 'serial'"
        ),
        "a last time that is no number": sql("INSERT INTO meta VALUES ('seen_at', x'ff')"),
    },
    "is damaged: use another backup": {
        "a schema of half a mebibyte": sql(f"CREATE TABLE t (x CHECK (x IN ({','.join(['1'] * 250_000)})))"),
        "a damaged page": content(overwrite_page),
        "cut off": content(lambda whole: whole[: len(whole) // 2]),
    },
    f"schema 99; this version uses schema {len(load_migrations(Engine.SQLITE))}): install that version": {
        "schema of the future": sql("PRAGMA user_version = 99")
    },
    "contains text that the service cannot read": {
        "a name that is not text": sql(
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT) WHERE name = 'events_by_time'",
        )
    },
    "the table `meta` has no row named": {"no counter": sql("DELETE FROM meta WHERE name = 'serial'")},
    "a value that is longer than amo-callback can store": {
        "a huge value": sql("INSERT INTO meta VALUES ('x', zeroblob(2097152))"),
    },
    "takes too many SQLite instructions to read": {
        "rows of little but defaults": with_table(
            "owners",
            "CREATE TABLE owners (owner)",
            f"{ENDLESS} INSERT INTO owners (owner) SELECT NULL FROM c LIMIT 200000",
            *(f"ALTER TABLE owners ADD COLUMN {name}" for name in ("connection_id", "bound_no", "left_no", "hook_no")),
            *(f"ALTER TABLE owners ADD COLUMN c{number} INTEGER NOT NULL DEFAULT 1" for number in range(95)),
        )
    },
    "Is a directory": {"a folder": recreated(lambda copy: copy.mkdir())},
    "Not a regular file": {
        "a pipe": recreated(os.mkfifo),
        "a socket": recreated(make_socket),
        "a link to a device": recreated(lambda copy: copy.symlink_to("/dev/zero")),
    },
    "symbolic link": {"a link to itself": recreated(lambda copy: copy.symlink_to(copy.name))},
    "No such file": {"nothing": recreated(lambda _: None)},
    "copy-wal: Not a regular file": {"a pipe as its log": beside("-wal", os.mkfifo)},
    "copy-journal: Not a regular file": {"a pipe as its journal": beside("-journal", os.mkfifo)},
    "has an unfinished transaction": {
        "a journal": beside("-journal", lambda journal: journal.write_bytes(b"/etc/passwd")),
    },
}
CRAFTED = [(name, craft, why) for why, crafts in REFUSED.items() for name, craft in crafts.items()]

TAKEN: dict[str, dict[str, Craft]] = {
    "": {
        "as it was made": lambda _: None,
        "what ANALYZE leaves": sql("ANALYZE"),
        "a column more": sql("ALTER TABLE connections ADD COLUMN more TEXT DEFAULT 'x'"),
        "not frozen": sql("DELETE FROM meta WHERE name = 'frozen'"),
        "a link": moved_and_linked,
    },
    "contains 2 tables, indexes, triggers or views that do not belong to amo-callback": {
        "triggers that end the freeze": sql(
            f"CREATE TRIGGER one AFTER INSERT ON meta {UNFREEZE}",
            f"CREATE TRIGGER other AFTER INSERT ON events {UNFREEZE}",
        ),
        "a table and an index more": sql(
            "CREATE TABLE theirs AS SELECT 1 AS x", "CREATE INDEX more ON connections (lower(domain))"
        ),
    },
    "that do not belong to amo-callback": {
        "a table without row ids": with_table(
            "meta",
            "CREATE TABLE meta (value, name PRIMARY KEY) WITHOUT ROWID",
            "INSERT INTO meta (name, value) SELECT name, value FROM old_meta",
        ),
    },
}
CHANGED = [(name, craft, warning) for warning, crafts in TAKEN.items() for name, craft in crafts.items()]


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _schema(database: Path) -> list[tuple[str, str, str | None]]:
    with closing(sqlite3.connect(database)) as opened:
        return sorted(opened.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"))


@pytest.mark.parametrize(("craft", "why"), [case[1:] for case in CRAFTED], ids=[name for name, *_ in CRAFTED])
async def test_restore_crafted_file_is_refused(
    craft: Craft, why: str, base: Path, environ: dict[str, str], copy: Path
) -> None:
    """A crafted file is refused in one line, and the database and its folder are unchanged."""
    craft(copy)
    before = _files(base)
    status, out, err = await command("restore", str(copy), "--yes", folder=base, environ=environ)
    assert (status, out) == (1, "")
    assert err.startswith("amo-callback: ")
    assert err.count("\n") == 1
    assert why in err
    assert _files(base) == before


@pytest.mark.parametrize(("craft", "warning"), [case[1:] for case in CHANGED], ids=[name for name, *_ in CHANGED])
async def test_restore_takes_only_rows_of_file(
    craft: Craft, warning: str, base: Path, environ: dict[str, str], copy: Path
) -> None:
    """The restored database has the service's own schema, is frozen, and opens."""
    ours = _schema(base / NAME)
    craft(copy)
    status, out, err = await command("restore", str(copy), "--yes", folder=base, environ=environ)
    assert (status, out.splitlines()[0]) == (
        0,
        "restored 2 connections; no token is refreshed until you run `amo-callback connections thaw --all`",
    )
    assert (warning in err) if warning else (err == "")
    assert _schema(base / NAME) == ours
    async with open_store(f"sqlite:///{NAME}", folder=base, clock=SystemClock()) as store:
        frozen = await store.frozen()
        assert frozen is not None
        assert frozen.may_be_copy
        assert await store.count() == 2


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
@pytest.mark.parametrize(
    "arguments",
    [["restore", "../copy", "--yes"], ["backup", "../another"], ["check"], ["serve"], ["connections", "list"]],
)
async def test_command_with_database_that_is_no_file_fails(
    make: Craft, arguments: list[str], base: Path, environ: dict[str, str], copy: Path
) -> None:
    """A database setting that names a pipe, a device or a folder blocks no command, and the error names it."""
    assert copy.exists()
    (base / NAME).unlink()
    make(base / NAME)
    status, out, err = await command(*arguments, folder=base, environ=environ)
    assert status in {1, 78}
    assert "Traceback" not in err
    assert NAME in out + err


# --- as root -------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return a folder for the service's user, and one that only root may enter."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(amo_callback.__file__).parents):
        pytest.skip("needs a package that the service's user may read")
    folder = Path(mkdtemp())  # the service's user may enter it, unlike the tests' folder
    folder.chmod(0o755)
    services, admins = folder / "services", tmp_path / "admins"
    services.mkdir()
    admins.mkdir(mode=0o700)
    yield services, admins
    shutil.rmtree(folder)


async def test_backup_and_restore_as_root_keep_service_owner(roots: tuple[Path, Path], environ: dict[str, str]) -> None:
    """Backups belong to root, and every file beside the database to the service's user."""
    services, admins = roots
    await _store(services, environ, 1)
    _give_away(services)
    assert (await command("backup", str(admins / "copy"), folder=services, environ=environ))[0] == 0
    assert _owners(services) == {NOBODY}
    assert (await command("restore", str(admins / "copy"), "--yes", folder=services, environ=environ))[0] == 0
    assert (_owners(services), len(list(services.iterdir()))) == ({NOBODY}, 2)
    (services / NAME).unlink()
    assert (await command("restore", str(admins / "copy"), "--yes", folder=services, environ=environ))[0] == 0
    assert (_owners(services), _counted(services / NAME)) == ({NOBODY}, (1, True))
    assert {stat.S_IMODE(file.stat().st_mode) for file in services.iterdir()} == {0o600}
    assert (_owners(admins), [file.name for file in admins.iterdir()]) == ({0}, ["copy"])


def _give_away(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)


def _owners(folder: Path) -> set[int]:
    return {file.stat().st_uid for file in folder.iterdir()}
