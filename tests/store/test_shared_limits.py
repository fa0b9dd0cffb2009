"""The rate limit that instances share on PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.clock import SystemClock
from amo_callback.rate_limit import Priority, WaiterKind
from amo_callback.store import open_store
from tests.fakes import FakeClock, IdleTracker, Override, RecordedPace, RecordingObserver, most_in_a_second
from tests.postgres import connected, in_our_time, programs, serving_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from amo_callback.rate_limit import SharedLimits, SlotDecision
    from tests.postgres import Databases, WrittenClock

INTERVAL = 0.01
LONG = 60.0


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[SharedLimits]:
    async with open_store(url, folder=Path(), clock=FakeClock()) as store:
        assert store.shared is not None
        yield store.shared


@pytest.fixture
async def sql(url: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(url) as connection:
        yield connection


@pytest.fixture
async def one(url: str) -> AsyncIterator[SharedLimits]:
    async with _open(url) as shared:
        yield shared


@pytest.fixture
async def other(url: str) -> AsyncIterator[SharedLimits]:
    async with _open(url) as shared:
        yield shared


# --- slots ----------------------------------------------------------------------------------------


async def test_request_slot_concurrent_waiters_get_separate_slots(one: SharedLimits, other: SharedLimits) -> None:
    """Ten waiters at each of two instances get slots one interval apart by the database's clock."""
    ends: list[float] = []
    paces = [_rate_limiter(shared, ends) for shared in (one, other)]
    priorities = [Priority.ANONYMOUS, Priority.BACKGROUND] * 5
    await asyncio.gather(*(rate_limiter.acquire(priority) for rate_limiter in paces for priority in priorities))
    for rate_limiter in paces:
        await rate_limiter.close()
    assert len(ends) == 20
    assert all(later - earlier >= INTERVAL - 1e-5 for earlier, later in pairwise(sorted(ends)))


def _rate_limiter(shared: SharedLimits, ends: list[float]) -> RateLimiter:
    """Return a rate limiter that records the end of each slot it gets."""

    async def request_slot(**asking: Any) -> SlotDecision:
        asked = await shared.request_slot(**asking)
        if asked.kind is not None:
            ends.append(asked.slots.free_at)
        return asked

    noted = cast("SharedLimits", Override(shared, request_slot=request_slot))
    return RateLimiter(per_second=1 / INTERVAL, shared=noted, clock=SystemClock(), observer=RecordingObserver())


async def test_request_slot_people_precede_background_of_other_instance(
    one: SharedLimits, other: SharedLimits, sql: asyncpg.Connection
) -> None:
    """While people wait at any instance, background requests get only every other slot."""
    await one.pause(LONG)

    async def request_slot(shared: SharedLimits, kind: WaiterKind) -> WaiterKind | None:
        return (await shared.request_slot(interval=LONG, waiting={kind})).kind

    assert await request_slot(one, WaiterKind.PEOPLE) is None
    await sql.execute("UPDATE slots SET free_at = 0")  # ends the current slot
    assert await request_slot(other, WaiterKind.BACKGROUND) is None
    assert await request_slot(one, WaiterKind.PEOPLE) is WaiterKind.PEOPLE
    await sql.execute("UPDATE slots SET free_at = 0")
    assert await request_slot(one, WaiterKind.PEOPLE) is None
    assert await request_slot(other, WaiterKind.BACKGROUND) is WaiterKind.BACKGROUND


async def test_pause_applies_to_other_instances(one: SharedLimits, other: SharedLimits) -> None:
    """A pause after AMO's 429 applies to every instance, because AMO limits the integration."""
    await one.pause(LONG)
    asked = await other.request_slot(interval=INTERVAL, waiting=set(WaiterKind))
    assert asked.kind is None
    assert LONG / 2 < asked.wait <= LONG


@pytest.mark.parametrize("stalled", [0.9, 3.5])
async def test_rate_limit_after_stall_is_exceeded_by_at_most_three(
    postgres: Databases, clock: WrittenClock, stalled: float
) -> None:
    """After a stall, three instances together send at most three requests a second beyond the rate."""
    async with in_our_time(postgres, clock) as url, _open(url) as a, _open(url) as b, _open(url) as c:
        traffic, committed = IdleTracker(), asyncio.Event()
        paces = [
            RecordedPace(
                RateLimiter(per_second=5, shared=traffic.watch(shared), clock=clock, observer=RecordingObserver()),
                clock,
            )
            for shared in (a, b, c)
        ]

        async def refresh(rate_limiter: RecordedPace) -> bool:
            await rate_limiter.acquire(Priority.BACKGROUND)
            await committed.wait()
            return await rate_limiter.wait_to_send(Priority.BACKGROUND, limit=60)

        refreshes = [asyncio.create_task(refresh(rate_limiter)) for rate_limiter in paces for _ in range(8)]
        began = clock.monotonic()
        while not all(refresh.done() for refresh in refreshes):
            await traffic.until_quiet()
            if clock.monotonic() - began >= stalled:
                committed.set()
                await traffic.until_quiet()
            clock.advance(0.05)
        assert all(refresh.result() for refresh in refreshes)
        for rate_limiter in paces:
            await rate_limiter.close()
    sent = [at for rate_limiter in paces for at in rate_limiter.sent]
    assert len(sent) == len(refreshes)
    assert most_in_a_second(*sent) <= 5 + 3
    assert max(most_in_a_second(*rate_limiter.sent) for rate_limiter in paces) <= 5 + 1


# --- pruning --------------------------------------------------------------------------------------


async def test_prune_deletes_ended_turns_without_waiting(url: str, clock: FakeClock, sql: asyncpg.Connection) -> None:
    """Ended turns are deleted, and a row locked by another instance is skipped."""
    async with open_store(url, folder=Path(), clock=clock) as store:
        turns = [("over", 0), ("locked", 0), ("held", 2**62)]
        await sql.executemany("INSERT INTO turns VALUES ($1, 'other', $2)", turns)
        async with sql.transaction():
            await sql.execute("SELECT * FROM turns WHERE connection_id = 'locked' FOR UPDATE")
            await store.prune(now=clock.now(), keep=LONG)
    left = await sql.fetch("SELECT connection_id FROM turns ORDER BY connection_id")
    assert [row["connection_id"] for row in left] == ["held", "locked"]


@pytest.mark.usefixtures("postgres")
async def test_shared_limits_are_reset_by_database_crash() -> None:
    """A database crash loses the unlogged limits, and the next request creates them."""
    if programs() is None:
        pytest.skip("no PostgreSQL that may be crashed")
    with serving_postgres() as server:
        async with _open(server.url()) as shared:
            await shared.pause(LONG)
        server.stop(signal.SIGQUIT)
        server.start()
        async with _open(server.url()) as shared:
            assert (await shared.request_slot(interval=LONG, waiting=set(WaiterKind))).kind is WaiterKind.PEOPLE
