"""Statements as each engine runs them, and what they declare; rows as the values that they are read into."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from amo_callback.model import ChangeNotice
from amo_callback.store.engine import ANY, CHANGES, Engine, json_object, load_statements, row_reader
from tests.builders import a_claim, a_connection, a_refreshed, now, save
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.store import Store

STATEMENTS = load_statements(Engine.SQLITE)
OTHERS = load_statements(Engine.POSTGRES)
WRITE = r"\b(UPDATE|INSERT INTO|DELETE FROM|REPLACE INTO)\s+(connections|owners)\b"
WRITES = sorted(name for name, statement in STATEMENTS.items() if re.search(WRITE, statement.text))


@pytest.mark.parametrize("name", WRITES)
def test_every_write_of_connections_or_owners_is_declared(name: str) -> None:
    """A change that is not declared would leave the cache as it was; each names its connections, or any of them."""
    statement = STATEMENTS[name]
    assert statement.notes & CHANGES
    assert OTHERS[name].notes == statement.notes
    named = {"id", "connection_id"} & {*statement.parameters}
    assert "changes all" in statement.notes or named or re.search(r"RETURNING (\*|id)", statement.text)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_of_owners_or_of_a_new_connection_declares_that_it_changes_owners(name: str) -> None:
    """The connections of an account or an owner are others after it; after a refresh they are the same."""
    is_new = re.search(r"INSERT INTO connections|\b(UPDATE|INSERT INTO|DELETE FROM) owners", STATEMENTS[name].text)
    assert ("changes owners" in STATEMENTS[name].notes) is (is_new is not None)


def test_a_statement_that_writes_no_connection_declares_no_change() -> None:
    """Else every grant and every event would empty the cache."""
    declared = {name for name, statement in STATEMENTS.items() if statement.notes & CHANGES}
    assert declared == {*WRITES}


def test_comments_and_the_other_engine_s_lines_are_not_sent() -> None:
    """Each engine gets its own lines; a statement that has none for it is empty and is not run."""
    assert not any("--" in each.text for statements in (STATEMENTS, OTHERS) for each in statements.values())
    assert STATEMENTS["lock_connection"].text == ""
    assert OTHERS["lock_connection"].text == "SELECT 1 FROM connections WHERE id = $1 FOR UPDATE;"
    assert STATEMENTS.keys() == OTHERS.keys()
    assert STATEMENTS["get_meta"].text == "SELECT value FROM meta WHERE name = ?1;"


async def test_a_commit_notifies_of_what_its_statements_declare(store: Store) -> None:
    """By the ids in their parameters, or in what they return; where nothing has changed, of nothing."""
    heard: list[ChangeNotice] = []
    store.subscribe(heard.append)

    def said() -> list[ChangeNotice]:
        found = [dataclasses.replace(one) for one in heard]
        heard.clear()
        return found

    stored = await save(store, a_connection())
    assert said() == [ChangeNotice(connections=frozenset({stored.id}), membership_changed=True)]
    assert await store.claim(a_claim(stored)) is not None
    assert await store.claim(a_claim(stored)) is None
    assert await store.save_refreshed(a_refreshed(stored)) is not None
    assert said() == [ChangeNotice(connections=frozenset({stored.id}), membership_changed=False)] * 2
    assert await store.record_disabled_hook(stored.account_id, shortest=START - START, quiet=START - START) == [
        stored.id
    ]
    assert {id_ for one in said() for id_ in one.connections or ()} == {stored.id}
    await store.retry_hosts(now=START)
    assert said() == [ANY]
    assert await store.freeze_all(why="test")
    assert not await store.freeze_all(why="test")
    assert await store.thaw_all(machine=None)
    assert said() == [ANY, ANY]
    current = await now(store, stored)
    assert await store.disconnect(current, on_request=True)
    assert ChangeNotice(connections=frozenset({stored.id}), membership_changed=False, erased=True) in said()


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    at: datetime | None


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (None, None),
        (1, datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)),
        (2**62, datetime.max.replace(tzinfo=UTC)),
        (-(2**62), datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_a_time_beyond_the_calendar_is_read_as_the_nearest(stored: int | None, read: datetime | None) -> None:
    """It was written by hand, and must not stop what reads many rows."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        row = database.execute("SELECT 'one' AS name, ? AS at", [stored]).fetchone()
    assert row_reader(Named)(row) == Named(name="one", at=read)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
def test_broken_json_is_read_as_an_empty_object(text: str) -> None:
    """It was written by hand, and must not stop what reads many rows."""
    assert json_object(text) == {}
