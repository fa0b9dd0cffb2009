"""Disconnecting: whatever happens to a connection meanwhile, it is forgotten, or somebody hears why not."""

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


async def test_a_row_that_changes_is_read_again(store: Store, clock: FakeClock, witness: RecordingObserver) -> None:
    """A refresh writes between our look and our write: the next look holds."""
    store.observe(witness)
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)

    async def change(*_: object, **__: object) -> None:
        if faulty.asked["disconnect"] < 3:
            assert await store.schedule_recheck(await now(store, stored), at=START)

    faulty.before["disconnect"] = change
    forgotten = await _disconnect(stored, faulty)
    assert (faulty.asked["disconnect"], forgotten.status, forgotten.sealed_pair) == (3, Status.DISCONNECTED, None)
    assert [event.name for event in witness.events] == ["connection.disconnected"]


async def test_a_row_that_never_rests_is_told(store: Store, clock: FakeClock, witness: RecordingObserver) -> None:
    """It does not go on for ever."""
    store.observe(witness)
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)
    faulty.answers["disconnect"] = False
    with pytest.raises(StoreUnavailable):
        await _disconnect(stored, faulty)
    assert witness.events == []


async def test_what_is_gone_or_frozen_is_said(store: Store, witness: RecordingObserver) -> None:
    """Somebody else was faster; or it may live elsewhere."""
    store.observe(witness)
    stored = await save(store, a_connection())
    await store.freeze(stored.id, at=START)
    with pytest.raises(Frozen):
        await _disconnect(stored, store)
    await store.freeze(stored.id, at=None)
    await _disconnect(stored, store)
    with pytest.raises(NotFound):
        await _disconnect(stored, store)
