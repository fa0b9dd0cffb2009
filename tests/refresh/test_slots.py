"""Rate-limit slots: requests after a store stall, and claims that outlast their slot."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.errors import NotYet, ShuttingDown
from amo_callback.model import Connection, RefreshTrigger, TokenResponse
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.fakes import Override, RecordedPace, most_in_a_second
from tests.refresh.harness import RefreshHarness
from tests.service import amo_client

RATE = 5


def _without_traffic(client: AmoClient) -> Any:
    """Return a client whose waiting calls do not count as traffic, so that the clock can advance."""
    calls = ("acquire_slot", "refresh", "exchange", "introspect_refresh_token", "introspect_access_token")
    return Override(client, **{name: _plain(getattr(client, name)) for name in calls})


def _plain(method: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    def call(*args: object, **kwargs: object) -> Awaitable[object]:
        return method(*args, **kwargs)

    return call


@asynccontextmanager
async def _limit_rate(harness: RefreshHarness) -> AsyncIterator[RecordedPace]:
    """Limit the harness's request rate by the fake clock."""
    recorded = RecordedPace(harness.rate_limiter(RATE), harness.clock)
    async with amo_client(harness.amo, harness.clock, rate_limiter=cast("RateLimiter", recorded)) as client:
        harness.client = _without_traffic(client)
        yield recorded


@contextmanager
def _hold_write_lock(file: Path) -> Iterator[None]:
    """Hold SQLite's write lock, as another process may."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


async def test_rate_limit_after_store_stall_is_not_exceeded(harness: RefreshHarness, tmp_path: Path) -> None:
    """Sixteen claims that are committed together after a 3.5 s write lock are sent within the rate limit."""
    connections = [connection for _, connection in await harness.connect_accounts(16)]
    async with _limit_rate(harness) as rate_limiter:
        begun = 0

        def refresh(**request: Any) -> Awaitable[TokenResponse]:
            nonlocal begun
            begun += 1
            return client.refresh(**request)

        client = harness.client
        coordinator = harness.make_coordinator(amo=Override(client, refresh=refresh))
        with _hold_write_lock(tmp_path / "amo-callback.db"):
            refreshes = [harness.begin(each, by=coordinator, trigger=RefreshTrigger.FORCED) for each in connections]
            began = harness.clock.monotonic()
            while harness.clock.monotonic() < began + 3.5 or harness.traffic.calls["claim"] < len(connections):
                for _ in range(30):
                    await asyncio.sleep(0)
                harness.clock.advance(0.05)
        while not all(refresh.done() for refresh in refreshes):
            await harness.pass_time(0.05, step=0.05)
            while rate_limiter.arrived < begun:  # noqa: ASYNC110 -- because no event signals an open connection
                await asyncio.sleep(0)
        await asyncio.gather(*refreshes)
        await rate_limiter.close()
    assert len(rate_limiter.sent) == len(connections)
    assert most_in_a_second(*rate_limiter.sent) <= RATE + 1
    assert harness.amo.fake.ledger.doubles() == 0


@asynccontextmanager
async def _claim_slowly(harness: RefreshHarness, connection: Connection, *, pause: float) -> AsyncIterator[_SlowClaim]:
    """Refresh a connection whose claim takes two seconds, during which AMO requests a pause."""
    async with _limit_rate(harness) as rate_limiter:

        async def pause_and_take_two_seconds(*_: object, **__: object) -> None:
            await rate_limiter.pause(pause)
            harness.clock.advance(2)

        harness.failing.after["claim"] = pause_and_take_two_seconds
        lifecycle = harness.make_lifecycle(amo=harness.client)
        began = harness.clock.monotonic()
        refresh = harness.begin(connection, by=lifecycle.coordinator)
        await harness.clock.until_sleeping(pause - 2)
        assert rate_limiter.sent == []
        yield _SlowClaim(lifecycle=lifecycle, rate_limiter=rate_limiter, refresh=refresh, began=began)
        await rate_limiter.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _SlowClaim:
    lifecycle: TokenLifecycle
    rate_limiter: RecordedPace
    refresh: asyncio.Task[Connection]
    began: float


async def test_slow_claim_waits_for_another_slot(harness: RefreshHarness) -> None:
    """A request whose claim took longer than a second is sent in another slot."""
    connection = await harness.connect()
    async with _claim_slowly(harness, connection, pause=30) as slow:
        harness.clock.advance(28)
        await slow.refresh
        assert slow.rate_limiter.sent == [slow.began + 30]


async def test_slow_claim_with_late_slot_is_released_unsent(harness: RefreshHarness) -> None:
    """A claim is released without a failure if its next slot leaves too little of the lease."""
    connection = await harness.connect()
    async with _claim_slowly(harness, connection, pause=60) as slow:
        harness.clock.advance(53)
        with pytest.raises(NotYet):
            await slow.refresh
        await _check_released(harness, connection, slow)


async def test_slow_claim_at_shutdown_is_released_unsent(harness: RefreshHarness) -> None:
    """A claim that waits for another slot is released at shutdown, so that another process can claim."""
    connection = await harness.connect()
    async with _claim_slowly(harness, connection, pause=30) as slow:
        slow.lifecycle.core.stop.set()
        with pytest.raises(ShuttingDown):
            await slow.refresh
        await _check_released(harness, connection, slow)


async def _check_released(harness: RefreshHarness, connection: Connection, slow: _SlowClaim) -> None:
    stored = await harness.now(connection)
    assert (slow.rate_limiter.sent, stored.attempt, stored.failures, stored.last_error) == ([], None, 0, None)
