"""The rate limit where requests leave: also after the store has stalled, and over many connections at once."""

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


def _uncounted(client: AmoClient) -> Any:
    """Return a client whose calls are no traffic: a request that waits must not keep time from passing."""
    calls = ("acquire_slot", "refresh", "exchange", "introspect_refresh_token", "introspect_access_token")
    return Override(client, **{name: _plain(getattr(client, name)) for name in calls})


def _plain(method: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    def call(*args: object, **kwargs: object) -> Awaitable[object]:
        return method(*args, **kwargs)

    return call


@asynccontextmanager
async def _paced(harness: RefreshHarness) -> AsyncIterator[RecordedPace]:
    """Have the harness speak to AMO at a limited rate, in the test's time."""
    recorded = RecordedPace(harness.rate_limiter(RATE), harness.clock)
    async with amo_client(harness.amo, harness.clock, rate_limiter=cast("RateLimiter", recorded)) as client:
        harness.client = _uncounted(client)
        yield recorded


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold SQLite's write lock, as another process may."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


async def test_requests_after_a_stall_of_the_store_leave_at_the_rate(harness: RefreshHarness, tmp_path: Path) -> None:
    """Another process holds SQLite's write lock for 3.5 s; then 16 claims are committed at once."""
    connections = [connection for _, connection in await harness.connect_accounts(16)]
    async with _paced(harness) as rate_limiter:
        begun = 0

        def refresh(**request: Any) -> Awaitable[TokenResponse]:
            nonlocal begun
            begun += 1
            return client.refresh(**request)

        client = harness.client
        coordinator = harness.make_coordinator(amo=Override(client, refresh=refresh))
        with _locked(tmp_path / "amo-callback.db"):
            refreshes = [harness.begin(each, by=coordinator, trigger=RefreshTrigger.FORCED) for each in connections]
            began = harness.clock.monotonic()
            while harness.clock.monotonic() < began + 3.5 or harness.traffic.calls["claim"] < len(connections):
                for _ in range(30):
                    await asyncio.sleep(0)
                harness.clock.advance(0.05)
        while not all(refresh.done() for refresh in refreshes):
            await harness.pass_time(0.05, step=0.05)
            while rate_limiter.arrived < begun:  # noqa: ASYNC110 -- because time stands still while a connection is made
                await asyncio.sleep(0)
        await asyncio.gather(*refreshes)
        await rate_limiter.close()
    assert len(rate_limiter.sent) == len(connections)
    assert most_in_a_second(*rate_limiter.sent) <= RATE + 1
    assert harness.amo.fake.ledger.doubles() == 0


@asynccontextmanager
async def _claimed_late(harness: RefreshHarness, connection: Connection, *, pause: float) -> AsyncIterator[_Late]:
    """Refresh a connection whose claim takes two seconds, in which AMO asks for a pause."""
    async with _paced(harness) as rate_limiter:

        async def pause_and_take_two_seconds(*_: object, **__: object) -> None:
            await rate_limiter.pause(pause)
            harness.clock.advance(2)

        harness.failing.after["claim"] = pause_and_take_two_seconds
        lifecycle = harness.make_lifecycle(amo=harness.client)
        began = harness.clock.monotonic()
        refresh = harness.begin(connection, by=lifecycle.coordinator)
        await harness.clock.until_sleeping(pause - 2)
        assert rate_limiter.sent == []
        yield _Late(lifecycle=lifecycle, rate_limiter=rate_limiter, refresh=refresh, began=began)
        await rate_limiter.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Late:
    lifecycle: TokenLifecycle
    rate_limiter: RecordedPace
    refresh: asyncio.Task[Connection]
    began: float


async def test_a_claim_that_returns_late_waits_for_another_slot(harness: RefreshHarness) -> None:
    """A slot is good for a second: a request whose claim took longer is sent in a new one."""
    connection = await harness.connect()
    async with _claimed_late(harness, connection, pause=30) as late:
        harness.clock.advance(28)
        await late.refresh
        assert late.rate_limiter.sent == [late.began + 30]


async def test_a_claim_whose_next_slot_comes_too_late_is_given_back(harness: RefreshHarness) -> None:
    """Where the lease would end under the request nothing is sent, and the claim is given back as no failure."""
    connection = await harness.connect()
    async with _claimed_late(harness, connection, pause=60) as late:
        harness.clock.advance(53)
        with pytest.raises(NotYet):
            await late.refresh
        await _check_given_back(harness, connection, late)


async def test_a_claim_that_waits_for_another_slot_is_given_back_at_the_end(harness: RefreshHarness) -> None:
    """A process that ends does not wait for a slot: nothing is sent, and another process can claim at once."""
    connection = await harness.connect()
    async with _claimed_late(harness, connection, pause=30) as late:
        late.lifecycle.core.stop.set()
        with pytest.raises(ShuttingDown):
            await late.refresh
        await _check_given_back(harness, connection, late)


async def _check_given_back(harness: RefreshHarness, connection: Connection, late: _Late) -> None:
    stored = await harness.now(connection)
    assert (late.rate_limiter.sent, stored.attempt, stored.failures, stored.last_error) == ([], None, 0, None)
