"""Instances with different clocks on one PostgreSQL database, whose clock decides on stored times."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from amo_callback.model import RefreshTrigger, Status
from amo_callback.refresh.disconnection import disconnect
from amo_callback.store import Store, open_store
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import DAY
from tests.fakes import FakeClock
from tests.refresh.harness import API_DOMAIN, RefreshHarness
from tests.service import amo_client

SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class AheadClock:
    """A machine's clock that differs from the database's by `by`."""

    clock: FakeClock
    by: timedelta

    def now(self) -> datetime:
        return self.clock.now() + self.by

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self.clock.sleep(seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """Another instance on the same database."""

    store: Store
    lifecycle: TokenLifecycle


@asynccontextmanager
async def _instance(harness: RefreshHarness, url: str, folder: Path, by: timedelta) -> AsyncIterator[Instance]:
    async with (
        open_store(url, folder=folder, clock=AheadClock(harness.clock, by), process="other") as store,
        amo_client(harness.amo, store.clock) as client,
    ):
        store.observe(harness.witness)
        lifecycle = harness.make_lifecycle(store=store, clock=store.clock, amo=client, process="process-2")
        yield Instance(store=store, lifecycle=lifecycle)
        await lifecycle.drain()


@pytest.mark.parametrize("by", [30 * DAY, DAY / 2, -DAY])
async def test_refresh_by_instance_with_wrong_clock_stores_database_times(
    harness: RefreshHarness, url: str, tmp_path: Path, by: timedelta
) -> None:
    """A pair that an instance with a wrong clock refreshes is stored with the database's times."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    async with _instance(harness, url, tmp_path, by) as wrong:
        await harness.refresh(connection, by=wrong.lifecycle.coordinator, trigger=RefreshTrigger.FORCED)
    stored = await harness.now(connection)
    assert stored.access_issued_at == harness.clock.now()
    assert stored.access_expires_at == harness.clock.now() + DAY
    assert (await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)).token.value == harness.pair(
        stored
    ).access_token
    harness.clock.advance(DAY.total_seconds() * 0.56)
    async with harness.running(harness.lifecycle):
        await harness.witness.until("refresh.succeeded", times=2)
    assert (await harness.now(connection)).pair_version == stored.pair_version + 1


async def test_refresh_during_clock_step_stores_database_times(harness: RefreshHarness) -> None:
    """A pair that is refreshed while the clock is half a day ahead is stored with the database's times."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.clock.step(DAY / 2)
    await harness.refresh(connection, trigger=RefreshTrigger.FORCED)
    harness.clock.step(-DAY / 2)
    stored = await harness.now(connection)
    assert stored.access_issued_at == harness.clock.now()
    assert stored.next_refresh_at == harness.clock.now() + DAY / 2


async def test_hand_out_by_instance_behind_refreshes_expired_token(
    harness: RefreshHarness, url: str, tmp_path: Path
) -> None:
    """An instance whose clock is behind detects an expired token by the database's clock."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.clock.advance(DAY.total_seconds() + 1)
    async with _instance(harness, url, tmp_path, -2 * DAY) as behind:
        handed_out = await behind.lifecycle.access_tokens.token(connection.id, min_ttl=0)
        assert handed_out.token.value != harness.pair(connection).access_token


@pytest.mark.parametrize("by", [5 * SECOND, DAY])
async def test_grant_after_disconnect_by_instance_ahead_is_stored(
    harness: RefreshHarness, url: str, tmp_path: Path, by: timedelta
) -> None:
    """A grant after a disconnect by an instance with a clock ahead is stored, because a counter decides."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    async with _instance(harness, url, tmp_path, by) as ahead:
        await disconnect(connection.id, reason="a test", store=ahead.lifecycle.core.store)
    harness.clock.advance(1.2)
    again = await harness.connect(api_domain=API_DOMAIN)
    assert again.status is Status.ACTIVE
    assert harness.amo.fake.is_good(harness.pair(again).refresh_token)


async def test_clock_skew_is_difference_from_database(harness: RefreshHarness, url: str, tmp_path: Path) -> None:
    """The clock skew is the current difference from the database's clock."""
    async with _instance(harness, url, tmp_path, 61 * SECOND) as ahead:
        assert ahead.store.clock_skew == pytest.approx(61)
        assert ahead.store.clock.now() == harness.clock.now()
    assert harness.store.clock_skew == 0
