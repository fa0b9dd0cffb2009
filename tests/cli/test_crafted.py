"""`restore` with files that somebody has crafted: each is refused in clear words, or only its rows are taken."""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher
from amo_callback.store import backup, open_store
from tests.builders import a_connection, save
from tests.e2e.process import command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Craft = Callable[[Path], object]

NAME = "amo-callback.db"
NO_BACKUP = "is no database of amo-callback"
DAMAGED = "is damaged: take another backup"
NONE_OF_OURS = "none of ours: take another backup"
CHANGED = "that are none of ours: somebody has changed it"
_MEBIBYTE = 1024 * 1024


@pytest.fixture
async def living(tmp_path: Path, environ: dict[str, str]) -> Path:
    """Give a folder with a database of two connections, and a backup of it in the folder above."""
    folder = tmp_path / "living"
    folder.mkdir()
    async with open_store(f"sqlite:///{NAME}", folder=folder, clock=SystemClock()) as store:
        await store.canary(Cipher([environ["AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS"]]).seal_canary())
        for number in (1, 2):
            await save(store, a_connection(number))
    with backup.open_snapshot(folder / NAME) as snapshot:
        backup.back_up(snapshot, tmp_path / "copy", now=SystemClock().now())
    return folder


# ruff: noqa: S608 -- because a test says what a file holds

# --- crafts --------------------------------------------------------------------------------------


def sql(*statements: str) -> Craft:
    """Run statements on a backup."""

    def craft(copy: Path) -> None:
        with closing(sqlite3.connect(copy, isolation_level=None)) as crafted:
            for statement in statements:
                crafted.execute(statement)

    return craft


def remade(table: str, schema: str, *more: str) -> Craft:
    """Put another table, or a view, in the place of one of ours, with its rows where `more` copies them."""
    return sql(f"ALTER TABLE {table} RENAME TO old_{table}", schema, *more)


def content(made: Callable[[bytes], bytes]) -> Craft:
    """Change a backup's bytes."""
    return lambda copy: copy.write_bytes(made(copy.read_bytes()))


def instead(make: Craft) -> Craft:
    """Put something else in a backup's place."""

    def craft(copy: Path) -> None:
        copy.unlink()
        make(copy)

    return craft


def beside(suffix: str, make: Craft) -> Craft:
    """Put something beside a backup."""
    return lambda copy: make(copy.with_name(copy.name + suffix))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()  # noqa: PTH109 -- because a socket's path has to be short
        os.chdir(path.parent)
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def moved_and_linked(copy: Path) -> None:
    copy.symlink_to(copy.rename(copy.with_name("elsewhere")))


def a_page_overwritten(whole: bytes) -> bytes:
    """Overwrite the first page of the table with the connections."""
    at = whole.rindex(b"a1.amocrm.ru") // 4096 * 4096
    return whole[:at] + b"\xa5" * 4096 + whole[at + 4096 :]


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
UNFREEZE = "BEGIN DELETE FROM meta WHERE name = 'frozen'; END"
COLUMNS = "SELECT * FROM old_connections"

REFUSED: dict[str, tuple[Craft, str]] = {
    "schema -1": (sql("PRAGMA user_version = -1"), NO_BACKUP),
    "schema 0": (sql("PRAGMA user_version = 0"), NO_BACKUP),
    "schema of the future": (sql("PRAGMA user_version = 2147483647"), "is of another version of amo-callback"),
    "a name that is no text": (
        sql(
            "PRAGMA writable_schema = ON",
            "UPDATE sqlite_master SET name = CAST(x'ff' AS TEXT) WHERE name = 'events_by_time'",
        ),
        "holds a text that is none of ours",
    ),
    "an endless view": (
        remade("meta", f"CREATE VIEW meta AS {ENDLESS} SELECT x AS name, x AS value FROM c"),
        NO_BACKUP,
    ),
    "an endless view that counts": (
        remade("connections", f"CREATE VIEW connections AS {ENDLESS} SELECT x AS id FROM c WHERE x < 0"),
        NO_BACKUP,
    ),
    "a generated column": (
        remade(
            "meta",
            "CREATE TABLE meta (name TEXT, value BLOB GENERATED ALWAYS AS (replace(name, 'a', hex(zeroblob(99)))))",
            "INSERT INTO meta (name) VALUES ('canary')",
        ),
        NO_BACKUP,
    ),
    "a virtual table": (remade("meta", "CREATE VIRTUAL TABLE meta USING fts5(name, value)"), NO_BACKUP),
    "a table that is missing": (sql("DROP TABLE outbox"), NO_BACKUP),
    "a column that is missing": (sql("ALTER TABLE owners DROP COLUMN left_no"), NO_BACKUP),
    "no counter": (sql("DELETE FROM meta WHERE name = 'serial'"), "has no counter"),
    "a counter that could not be incremented": (
        sql(f"UPDATE meta SET value = CAST('{2**63 - 1}' AS BLOB) WHERE name = 'serial'"),
        NONE_OF_OURS,
    ),
    "a text where a number should be": (
        remade(
            "connections",
            f"CREATE TABLE connections AS {COLUMNS}",
            "UPDATE connections SET failures = 'many'",
        ),
        NONE_OF_OURS,
    ),
    "nothing where something must be": (
        remade(
            "connections",
            f"CREATE TABLE connections AS {COLUMNS}",
            "UPDATE connections SET connected_at = NULL",
        ),
        NONE_OF_OURS,
    ),
    "the same row twice": (
        remade("connections", f"CREATE TABLE connections AS {COLUMNS} UNION ALL {COLUMNS}"),
        NONE_OF_OURS,
    ),
    "a text that is none": (
        remade(
            "connections",
            f"CREATE TABLE connections AS {COLUMNS}",
            "UPDATE connections SET domain = CAST(x'ff' AS TEXT)",
        ),
        NONE_OF_OURS,
    ),
    "a canary that is a text": (
        remade("meta", "CREATE TABLE meta (name, value)", "INSERT INTO meta VALUES ('canary', 'x')"),
        NONE_OF_OURS,
    ),
    "a last time that is no number": (sql("INSERT INTO meta VALUES ('seen_at', x'ff')"), NONE_OF_OURS),
    "a huge value": (
        sql(f"INSERT INTO meta VALUES ('x', zeroblob({2 * _MEBIBYTE}))"),
        "a value longer than any of ours",
    ),
    "a thousand tables": (sql(*(f"CREATE TABLE t{number} (x)" for number in range(1000))), NO_BACKUP),
    "a schema of half a mebibyte": (
        sql(f"CREATE TABLE t (x CHECK (x IN ({','.join(['1'] * 250_000)})))"),
        DAMAGED,
    ),
    "rows of little but defaults": (
        remade(
            "owners",
            "CREATE TABLE owners (owner)",
            f"{ENDLESS} INSERT INTO owners (owner) SELECT NULL FROM c LIMIT 200000",
            *(f"ALTER TABLE owners ADD COLUMN {name}" for name in ("connection_id", "bound_no", "left_no")),
            *(f"ALTER TABLE owners ADD COLUMN c{number} INTEGER NOT NULL DEFAULT 1" for number in range(96)),
        ),
        "takes more work to read",
    ),
    "a damaged page": (content(a_page_overwritten), DAMAGED),
    "cut off": (content(lambda whole: whole[: len(whole) // 2]), DAMAGED),
    "cut off in its head": (content(lambda whole: whole[:50]), NO_BACKUP),
    "empty": (content(lambda _: b""), NO_BACKUP),
    "a text": (content(lambda _: b"no database at all" * 999), NO_BACKUP),
    "encrypted": (content(lambda whole: os.urandom(len(whole))), NO_BACKUP),
    "a folder": (instead(lambda copy: copy.mkdir()), "Is a directory"),
    "a pipe": (instead(os.mkfifo), "Not a regular file"),
    "a socket": (instead(a_socket), "Not a regular file"),
    "a link to a device": (instead(lambda copy: copy.symlink_to("/dev/zero")), "Not a regular file"),
    "a link to itself": (instead(lambda copy: copy.symlink_to(copy.name)), "symbolic link"),
    "nothing": (instead(lambda _: None), "No such file"),
    "a pipe as its log": (beside("-wal", os.mkfifo), "copy-wal: Not a regular file"),
    "a journal": (beside("-journal", lambda journal: journal.write_bytes(b"/etc/passwd")), "in the middle of a change"),
    "a pipe as its journal": (beside("-journal", os.mkfifo), "copy-journal: Not a regular file"),
}

TAKEN: dict[str, tuple[Craft, str]] = {
    "as it was made": (lambda _: None, ""),
    "triggers that end the freeze": (
        sql(
            f"CREATE TRIGGER one AFTER INSERT ON meta {UNFREEZE}",
            f"CREATE TRIGGER other AFTER INSERT ON events {UNFREEZE}",
        ),
        f"has 2 tables, indexes, triggers or views {CHANGED}",
    ),
    "a table and an index more": (
        sql("CREATE TABLE theirs AS SELECT 1 AS x", "CREATE INDEX more ON connections (lower(domain))"),
        f"has 2 tables, indexes, triggers or views {CHANGED}",
    ),
    "what ANALYZE leaves": (sql("ANALYZE"), ""),
    "a column more": (sql("ALTER TABLE connections ADD COLUMN more TEXT DEFAULT 'x'"), ""),
    "a table without row ids": (
        remade(
            "meta",
            "CREATE TABLE meta (value, name PRIMARY KEY) WITHOUT ROWID",
            "INSERT INTO meta (name, value) SELECT name, value FROM old_meta",
        ),
        CHANGED,
    ),
    "not frozen": (sql("DELETE FROM meta WHERE name = 'frozen'"), ""),
    "a link": (moved_and_linked, ""),
}


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _schema(database: Path) -> list[tuple[str, str, str | None]]:
    with closing(sqlite3.connect(database)) as opened:
        return sorted(opened.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"))


@pytest.mark.parametrize("name", REFUSED)
async def test_a_crafted_file_is_refused_and_replaces_nothing(
    name: str, living: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """One line says what is wrong; the good database stays as it is, and nothing lies beside it."""
    craft, why = REFUSED[name]
    craft(tmp_path / "copy")
    before = _files(living)
    status, out, err = await command("restore", "../copy", "--yes", folder=living, environ=environ)
    assert (status, out) == (1, "")
    assert err.startswith("amo-callback: ")
    assert err.count("\n") == 1
    assert why in err
    assert _files(living) == before


@pytest.mark.parametrize("name", TAKEN)
async def test_only_the_rows_of_a_file_are_taken(
    name: str, living: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """What is restored has our schema alone, is frozen as the command says, and opens."""
    ours = _schema(living / NAME)
    craft, warning = TAKEN[name]
    craft(tmp_path / "copy")
    status, out, err = await command("restore", "../copy", "--yes", folder=living, environ=environ)
    assert (status, out.splitlines()[0]) == (
        0,
        "2 connections are restored; no token is refreshed until `amo-callback connections thaw --all`",
    )
    assert (warning in err) if warning else (err == "")
    assert _schema(living / NAME) == ours
    async with open_store(f"sqlite:///{NAME}", folder=living, clock=SystemClock()) as store:
        frozen = await store.frozen()
        assert frozen is not None
        assert frozen.elsewhere
        assert await store.count() == 2


async def test_a_device_is_not_restored(living: Path, environ: dict[str, str]) -> None:
    """It would be read for ever."""
    for device in ("/dev/zero", "/dev/null"):
        told = await command("restore", device, "--yes", folder=living, environ=environ)
        assert told == (1, "", f"amo-callback: {device}: Not a regular file\n")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
@pytest.mark.parametrize(
    "arguments",
    [["restore", "../copy", "--yes"], ["backup", "../another"], ["check"], ["serve"], ["connections", "list"]],
)
async def test_a_database_that_is_no_file_hangs_no_command(
    make: Craft, arguments: list[str], living: Path, environ: dict[str, str]
) -> None:
    """What the setting names is never waited for: the message names it."""
    (living / NAME).unlink()
    make(living / NAME)
    status, out, err = await command(*arguments, folder=living, environ=environ)
    assert status in {1, 78}
    assert "Traceback" not in err
    assert NAME in out + err
