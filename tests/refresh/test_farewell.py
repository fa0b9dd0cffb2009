"""Disconnecting: whatever happens to a connection meanwhile, it is forgotten, or somebody hears why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.model import Status
from amo_callback.refresh.disconnection import Disconnector
from tests.builders import a_connection, now, save
from tests.fakes import START, FaultyStore

if TYPE_CHECKING:
    from amo_callback.store import Store
    from tests.fakes import FakeClock, RecordingObserver


def _disconnector(store: object, clock: FakeClock, witness: RecordingObserver) -> Disconnector:
    return Disconnector(store=cast("Store", store), clock=clock, observer=witness)


async def test_a_row_that_changes_meanwhile_is_read_again(
    store: Store, clock: FakeClock, witness: RecordingObserver
) -> None:
    """A refresh writes between our look and our write: the next look holds."""
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)

    async def change(*_: object, **__: object) -> None:
        if faulty.asked["disconnect"] < 3:
            assert await store.schedule_recheck(await now(store, stored), at=START)

    faulty.before["disconnect"] = change
    forgotten = await _disconnector(faulty, clock, witness).disconnect(stored, why="a test")
    assert (faulty.asked["disconnect"], forgotten.status, forgotten.sealed_pair) == (3, Status.DISCONNECTED, None)
    assert [event.name for event in witness.events] == ["connection.disconnected"]


async def test_a_row_that_never_rests_is_told(store: Store, clock: FakeClock, witness: RecordingObserver) -> None:
    """It does not go on for ever."""
    stored = await save(store, a_connection())
    faulty = FaultyStore(store, clock)
    faulty.answers["disconnect"] = False
    with pytest.raises(StoreUnavailable):
        await _disconnector(faulty, clock, witness).disconnect(stored, why="a test")
    assert witness.events == []


async def test_what_is_gone_or_frozen_is_said(store: Store, clock: FakeClock, witness: RecordingObserver) -> None:
    """Somebody else was faster; or it may live elsewhere."""
    stored = await save(store, a_connection())
    await store.freeze(stored.id, at=START)
    with pytest.raises(Frozen):
        await _disconnector(store, clock, witness).disconnect(stored, why="a test")
    await store.freeze(stored.id, at=None)
    await _disconnector(store, clock, witness).disconnect(stored, why="a test")
    with pytest.raises(NotFound):
        await _disconnector(store, clock, witness).disconnect(stored, why="a test")
