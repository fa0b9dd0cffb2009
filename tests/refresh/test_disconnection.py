"""Disconnects: concurrent changes of the row, and connections that cannot be disconnected."""

from typing import cast

import pytest

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.model import Connection, Status
from amo_callback.refresh.disconnection import disconnect
from amo_callback.store import Store
from tests.builders import a_connection, now, save
from tests.fakes import START, FakeClock, FaultyStore, RecordingObserver


async def _disconnect(connection: Connection, store: object) -> Connection:
    return await disconnect(connection.id, reason="a test", store=cast("Store", store))


async def test_disconnect_row_changed_meanwhile_is_retried(
    store: Store, clock: FakeClock, witness: RecordingObserver
) -> None:
    """A disconnect whose row has changed since it was read is retried with the current row."""
    store.observe(witness)
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)

    async def change(*_: object, **__: object) -> None:
        if faulty.asked["disconnect"] < 3:
            assert await store.schedule_recheck(await now(store, stored), at=START)

    faulty.before["disconnect"] = change
    disconnected = await _disconnect(stored, faulty)
    assert (faulty.asked["disconnect"], disconnected.status, disconnected.sealed_pair) == (3, Status.DISCONNECTED, None)
    assert [event.name for event in witness.events] == ["connection.disconnected"]


async def test_disconnect_row_always_changed_raises_store_unavailable(
    store: Store, clock: FakeClock, witness: RecordingObserver
) -> None:
    """A disconnect raises `StoreUnavailable` if the row changes before every write."""
    store.observe(witness)
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)
    faulty.answers["disconnect"] = False
    with pytest.raises(StoreUnavailable):
        await _disconnect(stored, faulty)
    assert witness.events == []


async def test_disconnect_missing_or_frozen_connection_raises(store: Store, witness: RecordingObserver) -> None:
    """A disconnect raises `NotFound` for a disconnected connection and `Frozen` for a frozen one."""
    store.observe(witness)
    stored = await save(store, a_connection())
    await store.freeze(stored.id, at=START)
    with pytest.raises(Frozen):
        await _disconnect(stored, store)
    await store.freeze(stored.id, at=None)
    await _disconnect(stored, store)
    with pytest.raises(NotFound):
        await _disconnect(stored, store)
