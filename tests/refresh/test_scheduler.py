"""The refresh scheduler: due connections, order, concurrency, probes, failures and shutdown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.crypto import Cipher
from amo_callback.errors import InvalidRefreshToken, NotYet, StoreUnavailable
from amo_callback.model import Connection, IntrospectionResult, RefreshRules, RefreshTrigger, TokenState
from amo_callback.refresh.coordinator import RefreshCoordinator
from amo_callback.refresh.maintenance import Maintenance
from amo_callback.refresh.rechecks import Rechecker
from amo_callback.refresh.scheduler import RefreshScheduler
from amo_callback.store import Store
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.builders import a_claim, a_connection, a_core, a_grant, a_refreshed, now, present, save
from tests.fakes import START, FakeClock, FaultyStore, MemoryRescue, Override, RecordingObserver
from tests.refresh.harness import API_DOMAIN, RefreshHarness
from tests.wait_limit import WAIT_LIMIT


class FakeCoordinator:
    """A coordinator that records its calls and fails with the errors that a test sets."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.asked: list[str] = []
        self.running = self.most_at_once = 0
        self.held = asyncio.Event()
        self.held.set()
        self.errors: dict[str, Exception] = {}
        self._changed = asyncio.Event()

    async def refresh(self, connection_id: str, *, trigger: RefreshTrigger, **_: object) -> None:
        assert trigger is RefreshTrigger.SCHEDULE
        self.asked.append(connection_id)
        self._changed.set()
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            await self.held.wait()
            if error := self.errors.get(connection_id):
                raise error
            connection = await self.store.connection(connection_id)
            assert connection is not None
            await self.store.save_refreshed(a_refreshed(connection, at=self.clock.now()))
        finally:
            self.running -= 1
            self._changed.set()

    async def until_asked(self, times: int) -> None:
        await self._until(lambda: len(self.asked) >= times)

    async def until_idle(self) -> None:
        await self._until(lambda: self.running == 0)

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), WAIT_LIMIT)


class SchedulerHarness:
    """A refresh scheduler with a fake coordinator and a faulty store."""

    def __init__(self, store: Store, clock: FakeClock, witness: RecordingObserver, cipher: Cipher) -> None:
        self.store, self.clock, self.witness, self.cipher = store, clock, witness, cipher
        self.coordinator = FakeCoordinator(store, clock)
        self.failing = FaultyStore(store, clock)

    @asynccontextmanager
    async def running(
        self, *, before_round: Sequence[Callable[[], Awaitable[None]]] = (), **rules: Any
    ) -> AsyncIterator[RefreshScheduler]:
        self.core = core = a_core(
            store=self.failing, cipher=self.cipher, clock=self.clock, observer=self.witness, rules=RefreshRules(**rules)
        )
        lifecycle = TokenLifecycle(core, rescue=MemoryRescue(), machine="here")
        scheduler = RefreshScheduler(
            core,
            gate=lifecycle.gate,
            coordinator=cast("RefreshCoordinator", self.coordinator),
            rechecker=cast("Rechecker", self),
            before_round=[
                lifecycle.pending_writes.watch,
                Maintenance(core).watch,
                lifecycle.watch_shared_state,
                *before_round,
            ],
        )
        task = asyncio.create_task(scheduler.run())
        try:
            yield scheduler
        finally:
            self.core.stop.set()
            await task

    async def due(self, *numbers: int, at: float = 0.0) -> list[Connection]:
        due = START + timedelta(seconds=at)
        return [await save(self.store, a_connection(number, next_refresh_at=due)) for number in numbers]


@pytest.fixture
def loop(store: Store, clock: FakeClock, witness: RecordingObserver, cipher: Cipher) -> SchedulerHarness:
    return SchedulerHarness(store, clock, witness, cipher)


async def test_scheduler_due_connections_are_refreshed_once(loop: SchedulerHarness) -> None:
    """Each due connection is refreshed once, and the scheduler then sleeps until the next is due."""
    connections = await loop.due(1, 2, 3)
    async with loop.running():
        await loop.coordinator.until_asked(3)
        await loop.clock.until_sleeping(5)
        assert sorted(loop.coordinator.asked) == sorted(connection.id for connection in connections)
    assert {(await now(loop.store, connection)).pair_version for connection in connections} == {2}


async def test_scheduler_sleeps_until_next_due_time_or_poll_interval(loop: SchedulerHarness) -> None:
    """The scheduler sleeps until the next connection is due, at most for the poll interval."""
    await loop.due(1, at=3)
    async with loop.running():
        await loop.clock.until_sleeping(3)
        loop.clock.advance(3)
        await loop.coordinator.until_asked(1)
        await loop.clock.until_sleeping(5)


async def test_scheduler_connection_due_before_poll_wakes_it(loop: SchedulerHarness) -> None:
    """A connection that is due before the next poll wakes the scheduler."""
    async with loop.running(poll_interval=3600) as scheduler:
        await loop.clock.until_sleeping(3600)
        await loop.due(1, at=1)
        scheduler.wake_if_due_soon(START + timedelta(seconds=1))
        await loop.clock.until_sleeping(1)


async def test_scheduler_connection_due_after_poll_does_not_wake_it(loop: SchedulerHarness) -> None:
    """A connection that is due after the next poll does not wake the scheduler."""
    async with loop.running(poll_interval=5) as scheduler:
        await loop.clock.until_sleeping(5)
        scheduler.wake_if_due_soon(START + timedelta(hours=12))
        await loop.store.connection("unknown")  # gives a scheduler that was woken time to run
        assert loop.clock.sleeping() == [5]


async def test_scheduler_backlog_is_queried_in_batches(loop: SchedulerHarness) -> None:
    """A backlog of forty is refreshed with the concurrency limit and at most eight queries."""
    await loop.due(*range(40))
    async with loop.running(concurrency=10):
        await loop.coordinator.until_asked(40)
        await loop.clock.until_sleeping(5)
        assert loop.coordinator.most_at_once == 11
        assert len(set(loop.coordinator.asked)) == 40
        assert loop.failing.asked["due"] <= 8


async def test_scheduler_backlog_goes_on_if_refreshes_end_during_query(loop: SchedulerHarness) -> None:
    """All refreshes of the last query end while the next query waits; the rest of the backlog is refreshed at once."""
    await loop.due(*range(10))

    async def until_idle(*, limit: int, **_: object) -> None:
        if limit == 0:  # no place was free when the query began
            await loop.coordinator.until_asked(4)
            await loop.coordinator.until_idle()

    loop.failing.after["due"] = until_idle
    async with loop.running(concurrency=2):
        await loop.coordinator.until_asked(10)


async def test_scheduler_stopped_during_backlog_starts_no_more_refreshes(loop: SchedulerHarness) -> None:
    """A scheduler that is stopped in a backlog waits for running refreshes and starts no others."""
    await loop.due(*range(10))
    loop.coordinator.held.clear()
    async with loop.running(concurrency=2):
        await loop.coordinator.until_asked(2)
        loop.core.stop.set()
        await loop.due(10)
        loop.coordinator.held.set()
    assert (len(loop.coordinator.asked), loop.coordinator.most_at_once) == (2, 2)


async def test_scheduler_heartbeat_continues_during_slow_refresh(loop: SchedulerHarness) -> None:
    """A refresh that takes a minute does not delay the heartbeat."""
    await loop.due(1)
    loop.coordinator.held.clear()
    async with loop.running() as scheduler:
        await loop.coordinator.until_asked(1)
        await loop.clock.tick(5, times=12)
        await loop.clock.until_sleeping(5)
        assert scheduler.heartbeat_age == 0
        loop.clock.advance(4)
        assert scheduler.heartbeat_age == 4
        loop.coordinator.held.set()
    assert len(loop.coordinator.asked) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoreUnavailable("x"), "store_unavailable"), (ZeroDivisionError(), None)],
    ids=["outage", "bug"],
)
async def test_scheduler_failed_round_is_reported_and_next_round_runs(
    loop: SchedulerHarness, error: Exception, code: str | None
) -> None:
    """A round that fails by a store outage or a bug is reported, and costs one poll interval."""
    await loop.due(1)
    loop.failing.before["due"] = error
    async with loop.running():
        failed = await loop.witness.until("refresher.failed")
        loop.failing.before.clear()
        await loop.clock.tick(5)
        await loop.coordinator.until_asked(1)
    assert failed.error is error if code is None else failed.fields == {"error": code}


async def test_scheduler_store_outage_is_logged_at_start_and_end(loop: SchedulerHarness) -> None:
    """Each store outage is logged once at its start and once, with its length, at its end."""
    async with loop.running():
        for outage in (1, 2):
            loop.failing.away = {"due"}
            await loop.clock.tick(5, times=24)
            await loop.clock.until_sleeping(5)
            assert len(loop.witness.named("refresher.failed")) == outage
            loop.failing.away = set()
            await loop.clock.tick(5)
            recovered = await loop.witness.until("refresher.recovered", times=outage)
            assert recovered.fields["failed_for_seconds"] == 5 * cast("int", recovered.fields["failed_rounds"]) >= 120


async def test_scheduler_failing_cleanup_is_logged_once(loop: SchedulerHarness) -> None:
    """A cleanup that keeps failing is logged once and does not fail the rounds."""
    loop.failing.away = {"prune"}
    async with loop.running():
        await loop.clock.tick(5, times=4 * 12)
        await loop.clock.until_sleeping(5)
        assert loop.witness.names() == ["cleanup.failed"]
        loop.failing.away = set()
        while not loop.witness.named("cleanup.recovered"):
            await loop.clock.tick(5)
    assert loop.witness.names() == ["cleanup.failed", "cleanup.recovered"]


@pytest.mark.parametrize(
    ("error", "aside"), [(StoreUnavailable("x"), 5.0), (NotYet(1), 5.0), (ZeroDivisionError(), 30.0)]
)
async def test_scheduler_failing_connection_is_set_aside(
    loop: SchedulerHarness, error: Exception, aside: float
) -> None:
    """A connection whose failure could not be stored is set aside, and the others are refreshed."""
    bad, good = await loop.due(1, 2)
    loop.coordinator.errors[bad.id] = error
    async with loop.running():
        await loop.coordinator.until_asked(2)
        waited = 0.0
        while loop.coordinator.asked.count(bad.id) == 1:
            await loop.clock.until_sleeping()
            loop.clock.advance(1)
            waited += 1
            for _ in range(5):
                await loop.store.count()  # lets the scheduler run
        assert waited >= aside
    assert loop.coordinator.asked.count(good.id) == 1


async def test_scheduler_stored_failure_is_not_set_aside(loop: SchedulerHarness) -> None:
    """A connection whose failure was stored is retried at its stored due time."""
    [connection] = await loop.due(1)
    loop.coordinator.errors[connection.id] = InvalidRefreshToken()
    async with loop.running() as scheduler:
        await loop.coordinator.until_asked(1)
        await loop.clock.until_sleeping(5)
        scheduler.wake()
        await loop.coordinator.until_asked(2)


async def test_scheduler_stopped_during_round_starts_no_refresh(loop: SchedulerHarness) -> None:
    """A stop during a round starts no refresh of the connections that the round finds."""
    await loop.due(1)
    stopped = asyncio.Event()

    async def watch() -> None:
        loop.core.stop.set()
        stopped.set()

    async with loop.running(before_round=[watch]):
        await stopped.wait()
    assert loop.coordinator.asked == []


async def test_scheduler_erases_expired_grants(loop: SchedulerHarness) -> None:
    """The sealed content of an expired grant is erased by the scheduler's cleanup."""
    grant = await loop.store.claim_grant(a_grant(), now=START)
    async with loop.running():
        await loop.clock.until_sleeping(5)
        loop.clock.advance(1200)
        await loop.clock.until_sleeping(5)
    assert present(await loop.store.grant(grant.code_hash)).sealed is None


async def test_scheduler_attempt_of_another_process_blocks_no_concurrency_slot(harness: RefreshHarness) -> None:
    """A connection with another process's open attempt is set aside, and the others are refreshed."""
    claimed = await harness.connect(next_refresh_at=START)
    await harness.store.claim(a_claim(claimed, owner="process-2"))
    harness.amo.account.user_id += 1
    free = await harness.connect(next_refresh_at=START)
    async with harness.running(harness.make_lifecycle(rules=RefreshRules(concurrency=1))):
        await harness.pass_time(30, step=5)
        assert (await harness.now(free)).pair_version == 2


async def test_scheduler_probe_waiting_for_slot_prevents_further_probes(harness: RefreshHarness) -> None:
    """No further probe is started while one waits for its slot, and polls keep their interval."""
    await harness.connect_users(3, next_refresh_at=START)
    waiting = 0

    async def acquire_slot(_priority: object) -> None:
        nonlocal waiting
        waiting += 1
        await harness.clock.sleep(3600)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=acquire_slot))
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.clock.advance(61)
    async with harness.running(lifecycle):
        await harness.clock.until_sleeping(3600)
        await harness.clock.until_sleeping(5)
        assert harness.traffic.calls["shared_state"] == 1
        await harness.clock.tick(5, times=3)
        await harness.clock.until_sleeping(5)
        assert waiting == 1


async def test_scheduler_after_all_were_probed_starts_new_probe_round(harness: RefreshHarness) -> None:
    """Connections are probed again after each has been the probe, and a success closes the circuit breaker."""
    connection = await harness.connect(next_refresh_at=START)
    lifecycle = harness.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.amo.sandbox.faults.add(Fault.NOT_LINKED, Fault.NOT_LINKED)
    async with harness.running(lifecycle):
        await harness.pass_time(300, step=5)
    assert lifecycle.breaker.reason is None
    assert (await harness.now(connection)).pair_version == 2


async def test_scheduler_slow_recheck_runs_once_and_delays_shutdown(harness: RefreshHarness) -> None:
    """A slow recheck is not started twice, and shutdown waits for it."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await harness.store.schedule_recheck(connection, at=harness.clock.now())
    asked, began, go_on = 0, asyncio.Event(), asyncio.Event()

    async def introspect_refresh_token(**_: object) -> IntrospectionResult:
        nonlocal asked
        asked += 1
        began.set()
        await go_on.wait()
        return IntrospectionResult(state=TokenState.VALID)

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token))
    running = asyncio.create_task(lifecycle.scheduler.run())
    await began.wait()
    await harness.clock.tick(5, times=3)
    await harness.clock.until_sleeping(5)
    assert asked == 1
    lifecycle.core.stop.set()
    await asyncio.wait({running}, timeout=0.1)
    assert not running.done()
    go_on.set()
    await running
    assert (await harness.now(connection)).recheck_at != harness.clock.now()
    assert harness.witness.names() == ["hook.unconfirmed"]
