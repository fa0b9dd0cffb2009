"""Transactions: whole or not at all, whoever is cancelled, however many are committed together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import StoreUnavailable
from amo_callback.store.sqlite import open_sqlite
from amo_callback.store.sqlite_connection import Batcher
from tests.builders import a_claim, a_connection, now, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from amo_callback.store import Store
    from amo_callback.store.engine import Transaction
    from tests.store.conftest import Beside


class Thread:
    """Works that take until the test lets them end."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.free = asyncio.Event()

    async def __call__(self, works: Sequence[str]) -> Sequence[object]:
        self.groups.append(list(works))
        await self.free.wait()
        if "bad" in works:
            raise ValueError
        return [KeyError(work) if work == "wrong" else work.upper() for work in works]


async def test_who_comes_while_a_group_is_under_way_goes_with_all_who_came_meanwhile() -> None:
    """The first one goes alone and at once; the next hundred go together, 64 at most."""
    thread = Thread()
    groups = Batcher(thread, name="test")
    first = groups.submit("first")
    await asyncio.sleep(0)
    others = [groups.submit(f"n{number}") for number in range(100)]
    thread.free.set()
    assert await asyncio.gather(first, *others) == ["FIRST", *(f"N{number}" for number in range(100))]
    assert [len(group) for group in thread.groups] == [1, 64, 36]


async def test_each_hears_of_its_own_outcome() -> None:
    """What goes wrong with one of a group is raised to whoever brought it, and to nobody else."""
    thread = Thread()
    thread.free.set()
    groups = Batcher(thread, name="test")
    good, wrong = groups.submit("good"), groups.submit("wrong")
    assert await good == "GOOD"
    with pytest.raises(KeyError):
        await wrong


async def test_a_thread_that_fails_fails_for_all_and_the_next_group_goes() -> None:
    """Nobody waits for ever."""
    thread = Thread()
    thread.free.set()
    groups = Batcher(thread, name="test")
    failed = groups.submit("good"), groups.submit("bad")
    for one in failed:
        with pytest.raises(ValueError, match=r"^$"):
            await one
    assert await groups.submit("good") == "GOOD"


async def test_one_who_goes_away_takes_nothing_from_the_others() -> None:
    """His work is done, and nobody is told."""
    thread = Thread()
    groups = Batcher(thread, name="test")
    gone, stays = groups.submit("gone"), groups.submit("stays")
    gone.cancel()
    thread.free.set()
    assert await stays == "STAYS"
    assert thread.groups == [["gone", "stays"]]


@pytest.mark.parametrize("begun", [True, False])
async def test_at_the_end_of_the_loop_whoever_waits_is_cancelled(begun: bool) -> None:  # noqa: FBT001 -- because pytest passes it
    """A group that is cut off, or never begins, ends the wait of those who had not yet gone, too."""
    thread = Thread()
    groups = Batcher(thread, name="test")
    going = groups.submit("going")
    if begun:
        await asyncio.sleep(0)
    waits = groups.submit("waits")
    [running] = [task for task in asyncio.all_tasks() if task.get_name() == "test"]
    running.cancel()
    for one in (going, waits):
        with pytest.raises(asyncio.CancelledError):
            await one


async def test_one_of_a_group_that_fails_is_rolled_back_alone(store: Store) -> None:
    """Of ten who save at the same moment one cannot be stored: the nine others are, each whole."""
    connections = [a_connection(number, account_id=None if number == 4 else str(number)) for number in range(10)]
    saving = [save(store, connection, code=str(number)) for number, connection in enumerate(connections)]
    outcomes = await asyncio.gather(*saving, return_exceptions=True)
    failed = {number: one.detail for number, one in enumerate(outcomes) if isinstance(one, StoreUnavailable)}
    assert failed.keys() == {4}
    assert failed[4] in {"SQLITE_CONSTRAINT_NOTNULL", "NotNullViolationError"}
    for number, connection in enumerate(connections):
        stored = await store.connection(connection.id)
        assert (stored is None) is (number == 4)
        if stored is not None:
            assert stored.row_version == 1
            assert await store.claim(a_claim(await now(store, stored))) is not None


async def test_a_transaction_awaits_only_itself(tmp_path: Path) -> None:
    """On the writer's thread there is no loop: waiting for one is refused, and the next transaction works."""
    async with open_sqlite(tmp_path / "x.db", clock=SystemClock()) as database:

        async def waits(transaction: Transaction) -> None:
            await transaction.run("get_meta", name="frozen")
            await asyncio.sleep(0)

        with pytest.raises(RuntimeError, match="only its transaction"):
            await database.transact(waits)
        assert await database.transact(lambda transaction: transaction.run("get_meta", name="frozen")) == []


async def test_a_cancelled_write_is_whole_and_leaves_the_next_one_alone(store: Store) -> None:
    """Whoever is cancelled in the middle of a write has written all of it, and no transaction stays open."""
    stored = await save(store, a_connection())
    for number in range(50):
        stored = await now(store, stored)
        writing = asyncio.create_task(store.claim(a_claim(stored, attempt=f"attempt-{number}")))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await store.release(connection_id=stored.id, attempt=f"attempt-{number}")
        assert await store.claim(a_claim(await now(store, stored))) is not None
        await store.release(connection_id=stored.id, attempt="attempt-1")


async def test_a_closed_store_says_that_it_is_away(beside: Beside) -> None:
    """After its end every call fails with the one error that callers know."""
    async with beside("one") as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.count()
    with pytest.raises(StoreUnavailable):
        await store.release(connection_id="a", attempt="b")
