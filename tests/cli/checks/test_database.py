"""Checks of the SQLite database, its disk and the rescue folder."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.cli.checks.database import check_disk, check_rescue, check_sqlite
from amo_callback.cli.checks.finding import Severity, ok, run_check, run_check_async
from amo_callback.crypto import Cipher, new_key
from amo_callback.files import location_id
from amo_callback.store import open_store
from tests.builders import a_connection, save
from tests.cli.harness import by_check, context_in, fill
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from amo_callback.cli.checks.finding import Finding
    from amo_callback.cli.context import CommandContext

NAME = "amo-callback.db"
NOBODY = 65534


async def _check(place: CommandContext) -> dict[str, tuple[Severity, str]]:
    return by_check(await run_check_async("store", _findings(place)))


def _findings(place: CommandContext) -> AsyncIterator[Finding]:
    opening = open_store(f"sqlite:///{NAME}", folder=place.folder, clock=FakeClock(), read_only=True)
    return check_sqlite(place, place.folder / NAME, opening)


def _run(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / NAME)) as database:
        database.execute(statement, values)
        database.commit()


@pytest.fixture
async def place(tmp_path: Path, encryption_key: str) -> CommandContext:
    """Return the context of a database with three connections, not in use."""
    cipher = Cipher([encryption_key])
    async with open_store(f"sqlite:///{NAME}", folder=tmp_path, clock=FakeClock()) as store:
        await store.check_machine(location_id(tmp_path / NAME))
        await fill(store, cipher, 3)
    return context_in(tmp_path, encryption_key)


async def test_check_sqlite_valid_database_is_ok_and_unchanged(place: CommandContext) -> None:
    """A valid database is OK, is not written, and gets no further file."""
    database = place.folder / NAME
    before = database.read_bytes()
    found = await _check(place)
    assert {name: severity for name, (severity, _) in found.items()} == dict.fromkeys(
        ("store", "keys", "frozen"), Severity.OK
    )
    assert found["keys"][1] == "the keys decrypt all 3 token pairs"
    assert database.read_bytes() == before
    assert list(place.folder.iterdir()) == [database]


async def test_check_sqlite_beside_running_service_reads_only(place: CommandContext) -> None:
    """A running service continues to write during the check, which sees its writes."""
    async with open_store(f"sqlite:///{NAME}", folder=place.folder, clock=FakeClock()) as store:
        await save(store, a_connection(9))  # its pair is not encrypted
        findings = _findings(place)
        found = {finding.check: finding for finding in [await anext(findings), await anext(findings)]}
        await store.freeze_all(why="meanwhile")
        [frozen] = [finding async for finding in findings]
    assert "4 connections" in found["store"].message
    assert (found["keys"].severity, frozen.severity) == (Severity.FAIL, Severity.WARN)
    assert "no key decrypts 1 of 4 token pairs; their connections: " in found["keys"].message
    assert "meanwhile" in frozen.message


async def test_check_sqlite_missing_database_is_not_created(tmp_path: Path, encryption_key: str) -> None:
    """A missing database is a warning before the first start, and a missing folder fails; nothing is created."""
    place = context_in(tmp_path, encryption_key)
    assert (await _check(place))["store"][0] is Severity.WARN
    assert list(tmp_path.iterdir()) == []
    assert (await _check(context_in(tmp_path / "nowhere", encryption_key)))["store"][0] is Severity.FAIL


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (0, "is not an amo-callback database"),
        (99, "was written by a newer amo-callback (schema 99; this version uses schema 1)"),
    ],
)
async def test_check_sqlite_other_schema_is_one_finding(version: int, message: str, place: CommandContext) -> None:
    """A database with another schema is one finding and is not upgraded."""
    _run(place.folder, f"PRAGMA user_version = {version}")
    assert await _check(place) == {"store": (Severity.FAIL, f"{place.folder / NAME} {message}")}
    with closing(sqlite3.connect(place.folder / NAME)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (version,)


async def test_check_sqlite_empty_file_is_a_warning(tmp_path: Path, encryption_key: str) -> None:
    """An empty file is a warning and is not taken for another program's database."""
    place = context_in(tmp_path, encryption_key)
    (tmp_path / NAME).touch()
    assert await _check(place) == {"store": (Severity.WARN, f"{tmp_path / NAME} is empty")}


async def test_check_sqlite_other_file_names_error_only(tmp_path: Path, encryption_key: str) -> None:
    """A file that is not a database is reported by the error's name."""
    place = context_in(tmp_path, encryption_key)
    (tmp_path / NAME).write_text("no database at all" * 100)
    assert await _check(place) == {"store": (Severity.FAIL, f"{tmp_path / NAME} cannot be used: SQLITE_NOTADB")}


async def test_check_sqlite_damaged_database_fails(place: CommandContext) -> None:
    """An index that does not match its table is found before the other checks."""
    with closing(sqlite3.connect(place.folder / NAME)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'events_by_time') "
            "WHERE name = 'connections_by_account'"
        )
    found = await _check(place)
    assert found["store"] == (Severity.FAIL, f"{place.folder / NAME} is damaged")


async def test_check_sqlite_wrong_keys_are_one_finding(place: CommandContext) -> None:
    """If no key decrypts the canary, the keys are one finding."""
    found = await _check(context_in(place.folder, new_key()))
    assert found["keys"][0] is Severity.FAIL
    assert "the service does not start" in found["keys"][1]


async def test_check_sqlite_undecryptable_pairs_are_listed(place: CommandContext) -> None:
    """Pairs that no key decrypts are listed by id, up to a few, and counted."""
    _run(place.folder, "UPDATE connections SET sealed_pair = (SELECT max(sealed_pair) FROM connections)")
    severity, result = (await _check(place))["keys"]
    assert severity is Severity.FAIL
    assert result.startswith("no key decrypts 2 of 3 token pairs; their connections: ")
    _run(place.folder, "UPDATE connections SET sealed_pair = NULL")
    assert (await _check(place))["keys"][1].startswith("no key decrypts 3 of 3 token pairs; their connections: ")


async def test_check_sqlite_disconnected_connection_needs_no_pair(place: CommandContext) -> None:
    """A disconnected connection has no pair, because its tokens were erased."""
    _run(place.folder, "UPDATE connections SET sealed_pair = NULL, status = 'disconnected'")
    assert (await _check(place))["keys"] == (Severity.OK, "the database has no token pairs yet")


async def test_check_sqlite_older_key_in_use_is_reported(place: CommandContext, encryption_key: str) -> None:
    """An older key that pairs still need is reported, so that the operator keeps it."""
    severity, result = (await _check(context_in(place.folder, new_key(), encryption_key)))["keys"]
    assert (severity, result) == (
        Severity.OK,
        "the keys decrypt all 3 token pairs; 3 of them need an older key: do not remove it",
    )


async def test_check_sqlite_moved_database_warns_of_freeze(place: CommandContext) -> None:
    """A database from another machine is a warning, and the check itself does not freeze it."""
    _run(place.folder, "UPDATE meta SET value = CAST('elsewhere' AS BLOB) WHERE name = 'machine'")
    for _ in range(2):
        severity, result = (await _check(place))["frozen"]
        assert severity is Severity.WARN
        assert "will be frozen" in result


def test_check_rescue_counts_pending_files(place: CommandContext) -> None:
    """Pending files in the rescue folder are a warning and the reserve file is not; the check creates no folder."""
    assert by_check(check_rescue(place))["rescue"][0] is Severity.OK
    assert not place.rescue.exists()
    place.rescue.mkdir()
    (place.rescue / ".reserve").touch()
    assert by_check(check_rescue(place))["rescue"][0] is Severity.OK
    (place.rescue / "one").touch()
    assert by_check(check_rescue(place))["rescue"][0] is Severity.WARN


def test_check_disk_missing_folder_uses_nearest_parent(folder: Path) -> None:
    """Free space is measured in the nearest existing folder."""
    [finding] = check_disk(context_in(folder / "no"))
    assert finding.severity in {Severity.OK, Severity.WARN}
    assert "MiB of free space" in finding.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_check_disk_foreign_owner_or_open_mode_is_reported(folder: Path) -> None:
    """A file owned by root beside the database fails, and a database readable by others warns."""
    place = context_in(folder)
    database = folder / "amo-callback.db"
    database.touch()
    database.chmod(0o644)
    (folder / "amo-callback.db-wal").touch()
    os.chown(database, NOBODY, NOBODY)
    first, second, _ = check_disk(place)
    assert (first.severity, second.severity) == (Severity.FAIL, Severity.WARN)
    assert "amo-callback.db-wal and" in first.message


def test_run_check_exception_keeps_other_findings() -> None:
    """An exception keeps earlier findings and is reported without its text, which may contain a secret."""

    def throwing() -> Iterator[Finding]:
        yield ok("store", "there")
        raise RuntimeError("the-secret")

    found = [(finding.severity, finding.message) for finding in run_check("store", throwing())]
    assert found == [(Severity.OK, "there"), (Severity.FAIL, "the check could not be completed: RuntimeError")]
