"""What a store promises a move: every column travels, only over what was read, and only where the move was begun."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import CommandFailed
from amo_callback.event import Event
from amo_callback.model import Freeze
from amo_callback.moving import Record, Step, Table, Target, compare
from amo_callback.store.tables import LAYOUTS
from tests.builders import a_claim, a_connection, a_refreshed, now, save
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from amo_callback.store import Store
    from tests.store.conftest import Beside

OLD = "the place of the old one"
STAYS = {"schema_version", "turns", "slots", "places"}
"""Tables that tell of the place where they are."""


async def _schema(url: str, folder: Path) -> Mapping[str, set[str]]:
    """Return each table's columns, as the database knows them."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(folder / "amo-callback.db")) as database:
            found = database.execute(
                "SELECT m.name, p.name FROM sqlite_master AS m, pragma_table_info(m.name) AS p WHERE m.type = 'table'"
            ).fetchall()
    else:
        import asyncpg  # noqa: PLC0415 -- because it is an extra

        connection = await asyncpg.connect(url)
        found = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        )
        await connection.close()
    tables: dict[str, set[str]] = {}
    for table, column in found:
        tables.setdefault(table, set()).add(column)
    return tables


async def _all(store: Store, table: Table) -> list[Record]:
    return list(await store.records(table, after=None, limit=1000))


async def _one(store: Store) -> Record:
    [record] = await _all(store, Table.CONNECTIONS)
    return record


def _pair(record: Record, sealed: bytes, version: int) -> Record:
    values = {**record.values, "sealed_pair": sealed, "pair_version": version}
    return Record(key=record.key, values=values)


async def test_every_table_and_column_of_the_schema_is_known(store: Store, either: str, tmp_path: Path) -> None:
    """One that is added tomorrow is not left behind in silence."""
    await store.count()
    schema = await _schema(either, tmp_path)
    assert set(schema) - STAYS == set(Table)
    assert {table: set(LAYOUTS[table].columns) for table in Table} == {table: schema[table] for table in Table}


async def test_rows_are_read_by_their_keys(store: Store) -> None:
    """Page by page, each once, where a key has two columns as well."""
    for number in range(5):
        stored = await save(store, a_connection(number))
        for owner in ("17", "42"):
            await store.bind(stored.id, owner=owner, grant_no=1, first_only=False)
    found: list[Record] = []
    while page := await store.records(Table.OWNERS, after=found[-1].key if found else None, limit=3):
        found += page
    assert [record.key for record in found] == sorted(
        (a_connection(number).id, owner) for number in range(5) for owner in ("17", "42")
    )
    counts = await store.count_records()
    assert (counts[Table.CONNECTIONS], counts[Table.OWNERS], counts[Table.GRANTS]) == (5, 10, 5)


async def test_only_a_new_store_becomes_a_target(store: Store) -> None:
    """Once begun it is that of one move, and frozen; who has thawed it is told so."""
    assert await store.target(OLD) is Target.NEW
    assert (await store.frozen(), await store.coming()) == (None, False)
    assert await store.begin_coming(OLD) is Target.NEW
    assert await store.begin_coming(OLD) is Target.BEGUN
    assert await store.begin_coming("another place") is Target.TAKEN
    frozen = await store.frozen()
    assert frozen is not None
    assert (frozen.elsewhere, await store.coming()) == (True, True)
    await store.thaw_all(machine=None)
    assert await store.begin_coming(OLD) is Target.THAWED
    await store.freeze_all(why="again")
    assert await store.begin_coming(OLD) is Target.THAWED


async def test_a_store_that_holds_anything_is_none(store: Store) -> None:
    """It stays as it was."""
    await save(store, a_connection())
    assert await store.begin_coming(OLD) is Target.TAKEN
    assert (await store.frozen(), await store.coming()) == (None, False)


async def test_a_move_that_has_ended_does_not_begin_again(store: Store) -> None:
    """The store lives in its own place from then on, wherever it was looked at before, and is nobody's target."""
    await store.check_machine("where somebody tried it")
    await store.begin_coming(OLD)
    await store.end_coming(source=OLD, machine="here", frozen=None)
    assert (await store.frozen(), await store.coming()) == (None, False)
    assert await store.begin_coming(OLD) is Target.DONE
    assert await store.begin_coming("another place") is Target.TAKEN
    assert await store.check_machine("here") is None


async def test_what_was_frozen_by_itself_stays_so(store: Store) -> None:
    """With the same words."""
    frozen = Freeze(at=START, why="somebody wanted it", elsewhere=True)
    await store.begin_coming(OLD)
    await store.end_coming(source=OLD, machine="here", frozen=frozen)
    assert await store.frozen() == frozen


async def test_a_pair_is_replaced_only_where_it_is_the_one_that_was_read(store: Store) -> None:
    """And by no earlier one, whatever was read: that would have been spent."""
    await store.begin_coming(OLD)
    other = await _brought(store)
    there = await _one(store)
    second, third = _pair(other, b"second", 2), _pair(other, b"third", 3)
    assert await store.take_over(Step(table=Table.CONNECTIONS, changed=[(there, second)]), source=OLD) == []
    assert (await _one(store)).values == second.values
    others = [there, _pair(there, b"second", 1), _pair(there, b"another", 2)]
    for read, here in [*((read, third) for read in others), (second, _pair(other, b"first", 1))]:
        step = Step(table=Table.CONNECTIONS, changed=[(read, here)])
        assert await store.take_over(step, source=OLD) == [here]
        assert (await _one(store)).values == second.values
    again = Step(table=Table.CONNECTIONS, new=[_pair(other, b"another", 9)])
    assert await store.take_over(again, source=OLD) == []
    assert (await _one(store)).values == second.values


async def _brought(store: Store) -> Record:
    """Have a connection come, and return it."""
    values = dict.fromkeys(LAYOUTS[Table.CONNECTIONS].columns) | {
        "id": "one", "account_id": "1", "user_id": "1", "domain": "a.amocrm.ru", "client_id": "c", "status": "active",
        "sealed_pair": b"first", "failures": 0, "refusals": 0, "connected_at": 1, "pair_version": 1, "row_version": 1,
    }  # fmt: skip
    record = Record(key=("one",), values=values)
    assert await store.take_over(Step(table=Table.CONNECTIONS, new=[record]), source=OLD) == []
    return record


async def test_who_is_not_the_target_takes_nothing(store: Store) -> None:
    """Neither a store where no move was begun, nor one that was thawed, nor one whose move has ended."""
    event = Record(
        key=(1,), values={"id": 1, "at": 1, "connection_id": None, "name": "n", "process": "p", "details": ""}
    )
    step = Step(table=Table.EVENTS, new=[event])

    async def is_refused() -> None:
        with pytest.raises(CommandFailed):
            await store.take_over(step, source=OLD)
        with pytest.raises(CommandFailed):
            await store.end_coming(source=OLD, machine="here", frozen=None)

    await is_refused()
    await store.begin_coming(OLD)
    await store.take_over(step, source=OLD)
    await store.end_coming(source=OLD, machine="here", frozen=None)
    assert [record.values["name"] for record in await _all(store, Table.EVENTS)] == ["n", "service.moved"]
    await is_refused()


async def test_what_is_written_next_gets_the_next_number(store: Store) -> None:
    """Events and notices are told in their order by their numbers."""
    await store.begin_coming(OLD)
    event = {"id": 7, "at": 1, "connection_id": None, "name": "n", "process": "p", "details": "{}"}
    notice = {
        "number": 9, "id": "a", "at": 1, "type": "t", "connection_id": "one", "data": "{}", "tries": 0,
        "next_try_at": 1, "last_error": None, "lease": None, "lease_until": None, "parked_at": None,
    }  # fmt: skip
    await store.take_over(Step(table=Table.EVENTS, new=[Record(key=(7,), values=event)]), source=OLD)
    await store.take_over(Step(table=Table.OUTBOX, new=[Record(key=(9,), values=notice)]), source=OLD)
    await store.end_coming(source=OLD, machine="here", frozen=None)
    stored = await save(store, a_connection())
    happened = Event(name="connection.disconnected", connection_id=stored.id)
    assert await store.disconnect(stored, on_request=True, events=[happened])
    assert [record.key for record in await _all(store, Table.EVENTS)] == [(7,), (8,), (9,)]
    assert [record.key for record in await _all(store, Table.OUTBOX)] == [(9,), (10,)]


async def test_a_lease_that_another_clock_has_written_is_over(store: Store, beside: Beside) -> None:
    """It was waited for; an hour more, by a clock that was ahead, nobody has to wait."""
    await store.begin_coming(OLD)
    record = await _brought(store)
    later = Record(key=record.key, values={**record.values, "attempt": "dead", "lease_until": 2**60})
    await store.take_over(Step(table=Table.CONNECTIONS, changed=[(record, later)]), source=OLD)
    await store.end_coming(source=OLD, machine="here", frozen=None)
    stored = await store.connection("one")
    assert stored is not None
    assert stored.attempt == "dead"
    async with beside("other") as other:
        assert await other.claim(a_claim(stored, attempt="mine")) is not None


async def test_a_frozen_store_is_told_to_live_elsewhere(store: Store) -> None:
    """Whoever froze it, and why, stays; one that was thawed at that moment is not left."""
    await store.freeze_all(why="somebody wanted it")
    frozen = await store.frozen()
    assert frozen is not None
    left = await store.leave(frozen)
    assert left == await store.frozen() == Freeze(at=frozen.at, why=frozen.why, elsewhere=True)
    assert await store.leave(left) == left
    await store.thaw_all(machine=None)
    with pytest.raises(CommandFailed, match="thawed"):
        await store.leave(frozen)


async def test_a_late_pair_in_the_new_store_is_not_lost(store: Store) -> None:
    """A refresh that is stored there between the look and the write keeps what it has stored."""
    await store.begin_coming(OLD)
    there = await _brought(store)
    stored = await store.connection("one")
    assert stored is not None
    assert await store.save_refreshed(a_refreshed(stored, sealed_pair=b"late"), events=()) is not None
    changed = _pair(there, b"second", 2)
    assert await store.take_over(Step(table=Table.CONNECTIONS, changed=[(there, changed)]), source=OLD) == [changed]
    assert (await now(store, stored)).sealed_pair == b"late"


# --- pages ---------------------------------------------------------------------------------------


def _rows(*keys: int, text: str = "") -> list[Record]:
    return [Record(key=(key,), values={"id": key, "text": text}) for key in keys]


def test_pages_are_compared_as_far_as_both_reach() -> None:
    """After the last row of a full page there may be more: what lies behind it is judged with the next one."""
    step, compared, until = compare(Table.EVENTS, _rows(1, 2, 9), _rows(2, 3, 4), limit=3)
    assert [record.key for record in compared] == [(1,), (2,)]
    assert ([record.key for record in step.new], [record.key for record in step.gone]) == ([(1,)], [(3,), (4,)])
    assert until == (4,)
    step, compared, until = compare(Table.EVENTS, _rows(9), [], limit=3)
    assert ([record.key for record in step.new], len(compared), until) == ([(9,)], 1, None)


def test_what_differs_is_told_as_it_was_and_as_it_is_to_be() -> None:
    """What is the same is left alone."""
    [there], here = _rows(1, text="old"), [*_rows(1, text="new"), *_rows(2)]
    step, _, _ = compare(Table.EVENTS, here, [there, *_rows(2)], limit=3)
    assert (step.new, step.changed, step.gone, len(step)) == ([], [(there, here[0])], [], 1)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_however_long_the_pages_are_all_is_compared_once(limit: int) -> None:
    """Nothing is missed, told twice, or taken for gone because the other page was longer."""
    ours, theirs = {1, 2, 3, 5, 8, 13, 14, 15}, {2, 3, 4, 6, 7, 8, 9, 10, 11, 15, 16}
    after, new, gone = 0, [], []
    while True:
        pages = [_rows(*sorted(key for key in side if key > after)[:limit]) for side in (ours, theirs)]
        step, _, until = compare(Table.EVENTS, *pages, limit=limit)
        new += [record.key[0] for record in step.new]
        gone += [record.key[0] for record in step.gone]
        if until is None:
            break
        after = int(until[0])
    assert (new, gone) == (sorted(ours - theirs), sorted(theirs - ours))
