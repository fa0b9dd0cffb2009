"""Transactions: atomicity, cancellation and batches."""

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
    from tests.store.conftest import OpenAs


class FakeBatch:
    """A batch function that waits until the test releases it."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.free = asyncio.Event()

    async def __call__(self, works: Sequence[str]) -> Sequence[object]:
        self.groups.append(list(works))
        await self.free.wait()
        if "bad" in works:
            raise ValueError
        return [KeyError(work) if work == "wrong" else work.upper() for work in works]


async def test_batcher_runs_waiting_jobs_in_next_batch() -> None:
    """The first job runs alone at once; jobs submitted meanwhile run in batches of up to 64."""
    thread = FakeBatch()
    groups = Batcher(thread, name="test")
    first = groups.submit("first")
    await asyncio.sleep(0)
    others = [groups.submit(f"n{number}") for number in range(100)]
    thread.free.set()
    assert await asyncio.gather(first, *others) == ["FIRST", *(f"N{number}" for number in range(100))]
    assert [len(group) for group in thread.groups] == [1, 64, 36]


async def test_batcher_raises_error_only_to_its_caller() -> None:
    """A job's error is raised only to the caller that submitted it."""
    thread = FakeBatch()
    thread.free.set()
    groups = Batcher(thread, name="test")
    good, wrong = groups.submit("good"), groups.submit("wrong")
    assert await good == "GOOD"
    with pytest.raises(KeyError):
        await wrong


async def test_batcher_failed_batch_fails_its_jobs_only() -> None:
    """A failed batch fails all its jobs, and the next batch runs."""
    thread = FakeBatch()
    thread.free.set()
    groups = Batcher(thread, name="test")
    failed = groups.submit("good"), groups.submit("bad")
    for one in failed:
        with pytest.raises(ValueError, match=r"^$"):
            await one
    assert await groups.submit("good") == "GOOD"


async def test_batcher_cancelled_caller_does_not_affect_others() -> None:
    """A cancelled caller's job still runs, and the other jobs of its batch return."""
    thread = FakeBatch()
    groups = Batcher(thread, name="test")
    gone, stays = groups.submit("gone"), groups.submit("stays")
    gone.cancel()
    thread.free.set()
    assert await stays == "STAYS"
    assert thread.groups == [["gone", "stays"]]


@pytest.mark.parametrize("begun", [True, False])
async def test_batcher_cancelled_task_cancels_waiting_jobs(begun: bool) -> None:  # noqa: FBT001 -- pytest passes it
    """If the batch task is cancelled, every job in it or waiting for the next batch is cancelled."""
    thread = FakeBatch()
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


async def test_batched_transaction_failure_is_rolled_back_alone(store: Store) -> None:
    """Of ten concurrent transactions the failing one is rolled back, and the nine others are stored."""
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


async def test_transaction_awaiting_other_future_is_refused(tmp_path: Path) -> None:
    """A transaction may await only its own methods; the transaction after the refused one succeeds."""
    async with open_sqlite(tmp_path / "x.db", clock=SystemClock()) as database:

        async def waits(transaction: Transaction) -> None:
            await transaction.run("get_meta", name="frozen")
            await asyncio.sleep(0)

        with pytest.raises(RuntimeError, match="must await only the transaction's own methods"):
            await database.transact(waits)
        assert await database.transact(lambda transaction: transaction.run("get_meta", name="frozen")) == []


async def test_cancelled_write_is_complete(store: Store) -> None:
    """A cancelled write is stored as a whole and leaves no open transaction."""
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


async def test_closed_store_raises_store_unavailable(open_as: OpenAs) -> None:
    """Every call of a closed store raises `StoreUnavailable`."""
    async with open_as("one") as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.count()
    with pytest.raises(StoreUnavailable):
        await store.release(connection_id="a", attempt="b")
