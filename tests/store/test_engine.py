"""SQL statements and their declarations per engine, and rows read into values."""

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
def test_statement_that_writes_connections_declares_change(name: str) -> None:
    """Every statement that writes connections or owners declares the change, so that caches are invalidated."""
    statement = STATEMENTS[name]
    assert statement.notes & CHANGES
    assert OTHERS[name].notes == statement.notes
    named = {"id", "connection_id"} & {*statement.parameters}
    returned = re.search(r"RETURNING (\*|id|connection_id AS id)", statement.text)
    assert "changes all" in statement.notes or named or returned


@pytest.mark.parametrize("name", WRITES)
def test_statement_that_changes_membership_declares_changes_owners(name: str) -> None:
    """Only statements that write owners or insert connections declare that owners change."""
    is_new = re.search(r"INSERT INTO connections|\b(UPDATE|INSERT INTO|DELETE FROM) owners", STATEMENTS[name].text)
    assert ("changes owners" in STATEMENTS[name].notes) is (is_new is not None)


def test_statement_without_connection_write_declares_no_change() -> None:
    """Other statements declare no change, because each grant or event would otherwise clear the cache."""
    declared = {name for name, statement in STATEMENTS.items() if statement.notes & CHANGES}
    assert declared == {*WRITES}


def test_statement_contains_no_comment_or_other_engine_line() -> None:
    """Each engine gets only its own lines; a statement without any for it is empty."""
    assert not any("--" in each.text for statements in (STATEMENTS, OTHERS) for each in statements.values())
    assert STATEMENTS["lock_connection"].text == ""
    assert OTHERS["lock_connection"].text == "SELECT 1 FROM connections WHERE id = $1 FOR UPDATE;"
    assert STATEMENTS.keys() == OTHERS.keys()
    assert STATEMENTS["get_meta"].text == "SELECT value FROM meta WHERE name = ?1;"


async def test_commit_publishes_declared_changes(store: Store) -> None:
    """A commit publishes the ids in its parameters or results, and nothing if no row has changed."""
    notices: list[ChangeNotice] = []
    store.subscribe(notices.append)

    def published() -> list[ChangeNotice]:
        found = [dataclasses.replace(one) for one in notices]
        notices.clear()
        return found

    stored = await save(store, a_connection())
    assert published() == [ChangeNotice(connections=frozenset({stored.id}), membership_changed=True)]
    assert await store.claim(a_claim(stored)) is not None
    assert await store.claim(a_claim(stored)) is None
    assert await store.save_refreshed(a_refreshed(stored)) is not None
    assert published() == [ChangeNotice(connections=frozenset({stored.id}), membership_changed=False)] * 2
    assert await store.record_disabled_hook(stored.account_id, shortest=START - START, quiet=START - START) == [
        stored.id
    ]
    assert {id_ for one in published() for id_ in one.connections or ()} == {stored.id}
    await store.retry_hosts(now=START)
    assert published() == [ANY]
    assert await store.freeze_all(why="test")
    assert not await store.freeze_all(why="test")
    assert await store.thaw_all(machine=None)
    assert published() == [ANY, ANY]
    current = await now(store, stored)
    assert await store.disconnect(current, on_request=True)
    assert ChangeNotice(connections=frozenset({stored.id}), membership_changed=False, erased=True) in published()


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
def test_time_out_of_range_is_read_as_nearest(stored: int | None, read: datetime | None) -> None:
    """A time beyond the calendar is clamped, so that one bad row does not break a query of many."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.row_factory = sqlite3.Row
        row = database.execute("SELECT 'one' AS name, ? AS at", [stored]).fetchone()
    assert row_reader(Named)(row) == Named(name="one", at=read)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
def test_json_invalid_text_is_read_as_empty_object(text: str) -> None:
    """Invalid JSON is read as an empty object, so that one bad row does not break a query of many."""
    assert json_object(text) == {}
