"""Disconnecting: whatever happens to a connection meanwhile, it is forgotten, or somebody hears why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.model import Status
from amo_callback.refresh.disconnection import disconnect
from tests.builders import a_connection, now, save
from tests.fakes import START, Instead

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store
    from tests.fakes import Witness


async def _disconnect(connection: Connection, store: object) -> Connection:
    return await disconnect(connection.id, reason="a test", store=cast("Store", store))


async def test_a_row_that_changes_meanwhile_is_read_again(store: Store, witness: Witness) -> None:
    """A refresh writes between our look and our write: the next look holds."""
    store.observe(witness)
    stored = await save(store, a_connection())
    looks = 0

    async def write(connection: Connection, **more: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks < 3:
            assert await store.schedule_recheck(await now(store, stored), at=START)
        return await store.disconnect(connection, **more)

    forgotten = await _disconnect(stored, Instead(store, disconnect=write))
    assert (looks, forgotten.status, forgotten.sealed_pair) == (3, Status.DISCONNECTED, None)
    assert [event.name for event in witness.events] == ["connection.disconnected"]


async def test_a_row_that_never_rests_is_told(store: Store, witness: Witness) -> None:
    """It does not go on for ever."""
    store.observe(witness)
    stored = await save(store, a_connection())

    async def write(_connection: Connection, **_more: Any) -> bool:
        return False

    with pytest.raises(StoreUnavailable):
        await _disconnect(stored, Instead(store, disconnect=write))
    assert witness.events == []


async def test_what_is_gone_or_frozen_is_said(store: Store, witness: Witness) -> None:
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
