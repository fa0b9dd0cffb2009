"""The database, looked at from outside."""

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
    """Give a database of some connections that nobody has open."""
    cipher = Cipher([encryption_key])
    async with open_store(f"sqlite:///{NAME}", folder=tmp_path, clock=FakeClock()) as store:
        await store.check_machine(location_id(tmp_path / NAME))
        await fill(store, cipher, 3)
    return context_in(tmp_path, encryption_key)


async def test_a_good_database_is_ok_and_left_as_it_was(place: CommandContext) -> None:
    """Nothing is written, and no file beside it is left behind."""
    database = place.folder / NAME
    before = database.read_bytes()
    found = await _check(place)
    assert {name: severity for name, (severity, _) in found.items()} == dict.fromkeys(
        ("store", "keys", "frozen"), Severity.OK
    )
    assert found["keys"][1] == "decrypt all 3 pairs"
    assert database.read_bytes() == before
    assert list(place.folder.iterdir()) == [database]


async def test_beside_the_service_it_is_only_read(place: CommandContext) -> None:
    """Whoever serves it goes on writing while it is looked at, and what he wrote is seen."""
    async with open_store(f"sqlite:///{NAME}", folder=place.folder, clock=FakeClock()) as store:
        await save(store, a_connection(9))  # its pair is no sealed one
        findings = _findings(place)
        found = {finding.check: finding for finding in [await anext(findings), await anext(findings)]}
        await store.freeze_all(why="meanwhile")
        [frozen] = [finding async for finding in findings]
    assert "4 connections" in found["store"].message
    assert (found["keys"].severity, frozen.severity) == (Severity.FAIL, Severity.WARN)
    assert "no key decrypts 1 of 4 pairs: " in found["keys"].message
    assert "meanwhile" in frozen.message


async def test_no_database_is_made(tmp_path: Path, encryption_key: str) -> None:
    """Before the first start there is none, which is told; without its folder the service could not start."""
    place = context_in(tmp_path, encryption_key)
    assert (await _check(place))["store"][0] is Severity.WARN
    assert list(tmp_path.iterdir()) == []
    assert (await _check(context_in(tmp_path / "nowhere", encryption_key)))["store"][0] is Severity.FAIL


@pytest.mark.parametrize(
    ("version", "message"),
    [(0, "is not a database of amo-callback"), (99, "is of a newer amo-callback (schema 99, known here: 1)")],
)
async def test_a_schema_of_another_version_is_one_line(version: int, message: str, place: CommandContext) -> None:
    """It is not upgraded, and nothing else of the database is checked."""
    _run(place.folder, f"PRAGMA user_version = {version}")
    assert await _check(place) == {"store": (Severity.FAIL, f"{place.folder / NAME} {message}")}
    with closing(sqlite3.connect(place.folder / NAME)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (version,)


async def test_what_is_no_database_is_told_without_its_text(tmp_path: Path, encryption_key: str) -> None:
    """The error's name is enough."""
    place = context_in(tmp_path, encryption_key)
    (tmp_path / NAME).write_text("no database at all" * 100)
    assert await _check(place) == {"store": (Severity.FAIL, f"{tmp_path / NAME} cannot be used: SQLITE_NOTADB")}


async def test_a_damaged_database_is_told(place: CommandContext) -> None:
    """An index that does not fit its table is found before anything is looked up in it."""
    with closing(sqlite3.connect(place.folder / NAME)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'events_by_time') "
            "WHERE name = 'connections_by_account'"
        )
    found = await _check(place)
    assert found["store"] == (Severity.FAIL, f"{place.folder / NAME} is damaged")


async def test_other_keys_are_told_once(place: CommandContext) -> None:
    """Where no key decrypts the canary, none opens any pair."""
    found = await _check(context_in(place.folder, new_key()))
    assert found["keys"][0] is Severity.FAIL
    assert "the service does not start" in found["keys"][1]


async def test_pairs_that_no_key_opens_are_named(place: CommandContext) -> None:
    """Damaged, erased, or copied over from another connection: the first few by their ids, the rest by number."""
    _run(place.folder, "UPDATE connections SET sealed_pair = (SELECT max(sealed_pair) FROM connections)")
    severity, told = (await _check(place))["keys"]
    assert severity is Severity.FAIL
    assert told.startswith("no key decrypts 2 of 3 pairs: ")
    _run(place.folder, "UPDATE connections SET sealed_pair = NULL")
    assert (await _check(place))["keys"][1].startswith("no key decrypts 3 of 3 pairs: ")


async def test_a_disconnected_connection_has_no_pair_to_open(place: CommandContext) -> None:
    """Its tokens were erased on purpose."""
    _run(place.folder, "UPDATE connections SET sealed_pair = NULL, status = 'disconnected'")
    assert (await _check(place))["keys"] == (Severity.OK, "fit; there are no pairs yet")


async def test_an_older_key_that_is_still_needed_is_told(place: CommandContext, encryption_key: str) -> None:
    """Whoever takes it away would lose connections."""
    severity, told = (await _check(context_in(place.folder, new_key(), encryption_key)))["keys"]
    assert (severity, told) == (Severity.OK, "decrypt all 3 pairs; 3 still need an older key: keep it")


async def test_a_database_from_elsewhere_will_be_frozen(place: CommandContext) -> None:
    """It is told before the service does it, and the check itself freezes nothing."""
    _run(place.folder, "UPDATE meta SET value = CAST('elsewhere' AS BLOB) WHERE name = 'machine'")
    for _ in range(2):
        severity, told = (await _check(place))["frozen"]
        assert severity is Severity.WARN
        assert "will be frozen" in told


def test_files_in_the_rescue_folder_are_told(place: CommandContext) -> None:
    """Those that wait, and no others; the folder is not made."""
    assert by_check(check_rescue(place))["rescue"][0] is Severity.OK
    assert not place.rescue.exists()
    place.rescue.mkdir()
    (place.rescue / ".reserve").touch()
    assert by_check(check_rescue(place))["rescue"][0] is Severity.OK
    (place.rescue / "one").touch()
    assert by_check(check_rescue(place))["rescue"][0] is Severity.WARN


def test_the_room_is_told_also_before_there_is_a_folder(folder: Path) -> None:
    """The nearest folder that is there has the same disk."""
    [finding] = check_disk(context_in(folder / "no"))
    assert finding.severity in {Severity.OK, Severity.WARN}
    assert "MiB are free" in finding.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_beside_the_database_are_its_owners(folder: Path) -> None:
    """One that root has left keeps the service from writing; one that others may read tells who the accounts are."""
    place = context_in(folder)
    database = folder / "amo-callback.db"
    database.touch()
    database.chmod(0o644)
    (folder / "amo-callback.db-wal").touch()
    os.chown(database, NOBODY, NOBODY)
    first, second, _ = check_disk(place)
    assert (first.severity, second.severity) == (Severity.FAIL, Severity.WARN)
    assert "amo-callback.db-wal and" in first.message


def test_a_check_that_throws_ends_no_other() -> None:
    """What it found before is kept, and its error's text, which may quote anything, is not."""

    def throwing() -> Iterator[Finding]:
        yield ok("store", "there")
        raise RuntimeError("the-secret")

    found = [(finding.severity, finding.message) for finding in run_check("store", throwing())]
    assert found == [(Severity.OK, "there"), (Severity.FAIL, "could not be checked: RuntimeError")]
