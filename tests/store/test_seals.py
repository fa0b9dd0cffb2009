"""What lies sealed in a store: read page by page, replaced byte for byte."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.errors import StoreUnavailable
from amo_callback.grant import IssuedState
from amo_callback.sealing import Kind, Resealed, Sealed
from tests.builders import DAY, a_connection, a_refreshed, now, save
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.model import Changed
    from amo_callback.store import Store
    from tests.store.conftest import Beside

STORED = [Kind.CONNECTION, Kind.GRANT, Kind.STATE, Kind.CANARY]


async def _fill(store: Store) -> None:
    """Have one of each kind."""
    await save(store, a_connection())
    await store.issue_state(IssuedState(state_hash="state", sealed=b"sealed", expires_at=START + timedelta(minutes=30)))
    await store.canary(b"sealed")


async def _one(store: Store, kind: Kind) -> Sealed:
    [found] = await store.sealed(kind, after="", limit=10)
    return found


@pytest.mark.parametrize("kind", STORED)
async def test_the_bytes_that_were_read_are_replaced_and_no_others(store: Store, kind: Kind) -> None:
    """Once: whoever read the same before is told that his are gone."""
    await _fill(store)
    read = await _one(store, kind)
    assert read.content == b"sealed"
    assert await store.reseal([Resealed(read=read, content=b"another")]) == []
    assert (await _one(store, kind)).content == b"another"
    assert await store.reseal([Resealed(read=read, content=b"late")]) == [read]
    assert (await _one(store, kind)).content == b"another"


async def test_all_that_is_sealed_is_counted_and_read_page_by_page(store: Store) -> None:
    """Each once, by its name; what holds nothing sealed is not among it."""
    await _fill(store)
    for number in range(2, 6):
        await save(store, a_connection(number))
    gone = await now(store, a_connection(5))
    assert await store.disconnect(gone, on_request=True)
    found: list[Sealed] = []
    while page := await store.sealed(Kind.CONNECTION, after=found[-1].name if found else "", limit=3):
        found += page
    assert [one.name for one in found] == sorted(a_connection(number).id for number in range(1, 5))
    assert await store.count_sealed() == 4 + 5 + 1 + 1  # the disconnected one's grant is known yet
    await store.prune(now=START + DAY, keep=10 * DAY.total_seconds())
    assert await store.count_sealed() == 4 + 1
    assert [await store.sealed(kind, after="", limit=10) for kind in (Kind.GRANT, Kind.STATE)] == [[], []]


async def test_a_pair_under_another_key_is_the_same_pair(store: Store) -> None:
    """Its version stays, so a refresh that is on its way is stored over it; that the row is another one is told."""
    stored = await save(store, a_connection())
    heard: list[Changed] = []
    store.watch(heard.append)
    await store.reseal([Resealed(read=await _one(store, Kind.CONNECTION), content=b"another")])
    resealed = await now(store, stored)
    assert (resealed.pair_version, resealed.row_version) == (stored.pair_version, stored.row_version + 1)
    assert [changed.connections for changed in heard] == [frozenset({stored.id})]
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert refreshed is not None
    assert refreshed.sealed_pair == b"sealed again"


async def test_a_page_is_replaced_as_one_and_what_changed_is_left(store: Store) -> None:
    """Of a page, all but what somebody has written meanwhile."""
    for number in (1, 2, 3):
        await save(store, a_connection(number))
    page = await store.sealed(Kind.CONNECTION, after="", limit=10)
    other = next(a_connection(number) for number in (1, 2, 3) if a_connection(number).id == page[1].name)
    refreshed = await store.save_refreshed(a_refreshed(await now(store, other)))
    assert await store.reseal([Resealed(read=one, content=b"another") for one in page]) == [page[1]]
    contents = [one.content for one in await store.sealed(Kind.CONNECTION, after="", limit=10)]
    assert contents == [b"another", b"sealed again", b"another"]
    assert await now(store, other) == refreshed


async def test_other_processes_see_that_something_has_changed(store: Store, beside: Beside) -> None:
    """Whoever remembers connections looks at them again: he has heard of it, or is told that he may not have."""
    await _fill(store)
    async with beside("other") as other:
        heard: list[Changed] = []
        other.watch(heard.append)
        before = await other.others_version()
        read = await _one(store, Kind.CONNECTION)
        await store.reseal([Resealed(read=read, content=b"another")])
        missed = await other.others_version() != before
        assert missed or [changed.connections for changed in heard] == [frozenset({read.name})]


async def test_a_page_that_cannot_be_written_is_left_whole(store: Store) -> None:
    """Content that is no bytes at all stands for whatever fails in the middle of one."""
    for number in (1, 2):
        await save(store, a_connection(number))
    page = await store.sealed(Kind.CONNECTION, after="", limit=10)
    contents: list[Any] = [b"another", "no bytes"]
    with pytest.raises(StoreUnavailable):
        await store.reseal([Resealed(read=one, content=content) for one, content in zip(page, contents, strict=True)])
    assert await store.sealed(Kind.CONNECTION, after="", limit=10) == page
