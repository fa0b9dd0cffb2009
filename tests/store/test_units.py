"""What every store promises of its transactions: whole or not at all, whoever is cancelled, however many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from amo_callback.errors import StoreUnavailable
from tests.builders import a_claim, a_connection, a_refreshed, a_verdict, now, save
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.store import Store
    from tests.store.conftest import Beside


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


async def test_tasks_at_once_do_not_undo_each_others_work(store: Store) -> None:
    """A hundred units on one connection, some refused: every accepted one is there."""
    connections = [await save(store, a_connection(number)) for number in range(20)]

    async def work(number: int) -> None:
        connection = connections[number]
        assert await store.claim(a_claim(connection))
        assert not await store.save_verdict(a_verdict(connection, attempt="not mine"))
        assert await store.save_refreshed(a_refreshed(connection))

    await asyncio.gather(*(work(number) for number in range(20)))
    for connection in connections:
        stored = await store.connection(connection.id)
        assert stored is not None
        assert stored.pair_version == 2


async def test_a_unit_that_fails_is_rolled_back_whole(store: Store) -> None:
    """A grant whose connection cannot be written is not ended, and the store works on."""
    stored = await save(store, a_connection(), code="first")
    broken = a_connection(2, account_id=None)
    with pytest.raises(StoreUnavailable) as raised:
        await save(store, broken, code="second")
    assert raised.value.detail in {"SQLITE_CONSTRAINT_NOTNULL", "NotNullViolationError"}
    assert await store.connection(broken.id) is None
    assert await store.claim(a_claim(stored)) is not None


async def test_a_closed_store_says_that_it_is_away(beside: Beside) -> None:
    """After its end every call fails with the one error that callers know."""
    async with beside("one") as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.count()
    with pytest.raises(StoreUnavailable):
        await store.release(connection_id="a", attempt="b")


async def test_two_processes_share_a_database_and_its_claims(beside: Beside) -> None:
    """Each sees the other's claims."""
    async with beside("one") as one, beside("other") as other:
        stored = await save(one, a_connection())
        assert await one.claim(a_claim(stored)) is not None
        assert await other.claim(a_claim(stored, attempt="2")) is None


async def test_time_is_stored_exactly(store: Store) -> None:
    """Years from now and to the microsecond."""
    far = START.replace(year=2199, microsecond=999_999)
    assert (await save(store, a_connection(access_expires_at=far))).access_expires_at == far


async def test_what_was_stored_is_there_after_a_restart(beside: Beside) -> None:
    """Closed and opened again, the store is the same."""
    async with beside("one") as store:
        stored = await save(store, a_connection())
    async with beside("one") as store:
        assert await store.connection(stored.id) == stored
