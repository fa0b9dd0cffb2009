"""The loop: what is due, in what order, how many at once, and what does not stop it."""

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
    """A keeper that remembers whom it was asked for, and does as it is told."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.asked: list[str] = []
        self.is_local = self.most_at_once = 0
        self.held = asyncio.Event()
        self.held.set()
        self.errors: dict[str, Exception] = {}
        self._called = asyncio.Event()

    async def refresh(self, connection_id: str, *, trigger: RefreshTrigger, **_: object) -> None:
        assert trigger is RefreshTrigger.SCHEDULE
        self.asked.append(connection_id)
        self._called.set()
        self.is_local += 1
        self.most_at_once = max(self.most_at_once, self.is_local)
        try:
            await self.held.wait()
            if error := self.errors.get(connection_id):
                raise error
            connection = await self.store.connection(connection_id)
            assert connection is not None
            await self.store.save_refreshed(a_refreshed(connection, at=self.clock.now()))
        finally:
            self.is_local -= 1

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            self._called.clear()
            await asyncio.wait_for(self._called.wait(), WAIT_LIMIT)


class Loop:
    """A refresher with everything around it."""

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
def loop(store: Store, clock: FakeClock, witness: RecordingObserver, cipher: Cipher) -> Loop:
    return Loop(store, clock, witness, cipher)


async def test_what_is_due_is_refreshed_and_then_left_alone(loop: Loop) -> None:
    """Each due connection once, and the loop sleeps until the next is due."""
    connections = await loop.due(1, 2, 3)
    async with loop.running():
        await loop.coordinator.until_asked(3)
        await loop.clock.until_sleeping(5)
        assert sorted(loop.coordinator.asked) == sorted(connection.id for connection in connections)
    assert {(await now(loop.store, connection)).pair_version for connection in connections} == {2}


async def test_the_loop_sleeps_until_the_nearest_due_time_and_no_longer_than_it_polls(loop: Loop) -> None:
    """Due in 3 s: it sleeps 3 s. Due in an hour: it looks again after the poll interval."""
    await loop.due(1, at=3)
    async with loop.running():
        await loop.clock.until_sleeping(3)
        loop.clock.advance(3)
        await loop.coordinator.until_asked(1)
        await loop.clock.until_sleeping(5)


async def test_a_new_connection_wakes_the_loop(loop: Loop) -> None:
    """What comes due before the loop would look again is not late."""
    async with loop.running(poll_interval=3600) as scheduler:
        await loop.clock.until_sleeping(3600)
        await loop.due(1, at=1)
        scheduler.wake_if_due_soon(START + timedelta(seconds=1))
        await loop.clock.until_sleeping(1)


async def test_a_new_connection_that_is_due_later_than_the_next_look_wakes_nobody(loop: Loop) -> None:
    """Ten thousand people who connect cost no ten thousand looks at what is due."""
    async with loop.running(poll_interval=5) as scheduler:
        await loop.clock.until_sleeping(5)
        scheduler.wake_if_due_soon(START + timedelta(hours=12))
        await loop.store.connection("nobody's")  # a loop that was woken would be up by now
        assert loop.clock.sleeping() == [5]


async def test_a_backlog_is_not_looked_at_again_for_each_of_it(loop: Loop) -> None:
    """Of forty that are due, ten go at once; what takes the places of those that end was found along with them."""
    await loop.due(*range(40))
    async with loop.running(concurrency=10):
        await loop.coordinator.until_asked(40)
        await loop.clock.until_sleeping(5)
        assert loop.coordinator.most_at_once == 11
        assert len(set(loop.coordinator.asked)) == 40
        assert loop.failing.asked["due"] <= 8


async def test_what_was_found_due_is_not_begun_once_it_is_to_end(loop: Loop) -> None:
    """A loop that is stopped in a backlog waits for the refreshes under way, and begins nothing more."""
    await loop.due(*range(10))
    loop.coordinator.held.clear()
    async with loop.running(concurrency=2):
        await loop.coordinator.until_asked(2)
        loop.core.stop.set()
        await loop.due(10)
        loop.coordinator.held.set()
    assert (len(loop.coordinator.asked), loop.coordinator.most_at_once) == (2, 2)


async def test_the_loop_beats_while_refreshes_are_slow(loop: Loop) -> None:
    """A refresh that takes a minute does not stop the beat."""
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
    ("error", "code"), [(StoreUnavailable("x"), "store_unavailable"), (ZeroDivisionError(), None)], ids=["away", "bug"]
)
async def test_an_iteration_that_fails_is_told_and_the_loop_goes_on(
    loop: Loop, error: Exception, code: str | None
) -> None:
    """A store that is away, or a bug, which is told with its trace, costs one poll interval."""
    await loop.due(1)
    loop.failing.before["due"] = error
    async with loop.running():
        failed = await loop.witness.until("refresher.failed")
        loop.failing.before.clear()
        await loop.clock.tick(5)
        await loop.coordinator.until_asked(1)
    assert failed.error is error if code is None else failed.fields == {"error": code}


async def test_a_store_that_stays_away_is_logged_once_and_once_more_when_it_is_back(loop: Loop) -> None:
    """Two minutes of failed rounds are two lines, the second one with their length; a new outage is a new line."""
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


async def test_a_cleanup_that_fails_each_minute_is_logged_once(loop: Loop) -> None:
    """It is no reason to refresh nothing: the rounds work, and end neither line."""
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
async def test_one_that_cannot_be_refreshed_now_stops_no_others(loop: Loop, error: Exception, aside: float) -> None:
    """Where nothing could be written down about a failure, the connection is left aside for a while."""
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
                await loop.store.count()  # the loop gets its turns
        assert waited >= aside
    assert loop.coordinator.asked.count(good.id) == 1


async def test_a_verdict_that_was_written_needs_no_setting_aside(loop: Loop) -> None:
    """Where the keeper wrote down when to try again, the store's word counts."""
    [connection] = await loop.due(1)
    loop.coordinator.errors[connection.id] = InvalidRefreshToken()
    async with loop.running() as scheduler:
        await loop.coordinator.until_asked(1)
        await loop.clock.until_sleeping(5)
        scheduler.wake()
        await loop.coordinator.until_asked(2)


async def test_a_stop_in_the_midst_of_a_look_begins_nothing(loop: Loop) -> None:
    """What a look finds after `stop` is left alone, whatever it has begun to look at."""
    await loop.due(1)
    stopped = asyncio.Event()

    async def watch() -> None:
        loop.core.stop.set()
        stopped.set()

    async with loop.running(before_round=[watch]):
        await stopped.wait()
    assert loop.coordinator.asked == []


async def test_expired_grants_are_forgotten_in_passing(loop: Loop) -> None:
    """The loop also tidies up: what an expired code holds is erased within a minute or so."""
    grant = await loop.store.claim_grant(a_grant(), now=START)
    async with loop.running():
        await loop.clock.until_sleeping(5)
        loop.clock.advance(1200)
        await loop.clock.until_sleeping(5)
    assert present(await loop.store.grant(grant.code_hash)).sealed is None


async def test_an_attempt_of_another_process_takes_no_place_of_the_loops(harness: RefreshHarness) -> None:
    """Those whose owners have died are left aside until their leases have ended, and the others go meanwhile."""
    claimed = await harness.connect(next_refresh_at=START)
    await harness.store.claim(a_claim(claimed, owner="process-2"))
    harness.amo.account.user_id += 1
    free = await harness.connect(next_refresh_at=START)
    async with harness.running(harness.make_lifecycle(rules=RefreshRules(concurrency=1))):
        await harness.pass_time(30, step=5)
        assert (await harness.now(free)).pair_version == 2


async def test_while_one_probe_waits_for_its_slot_there_is_no_other(harness: RefreshHarness) -> None:
    """A rate limit that is paused for an hour gathers no fleet of probes, and has the loop wait for its polls."""
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


async def test_after_everyone_was_the_probe_a_new_round_begins(harness: RefreshHarness) -> None:
    """The secret is mended after all have been tried: the next probe closes it, without anybody's help."""
    connection = await harness.connect(next_refresh_at=START)
    lifecycle = harness.make_lifecycle()
    lifecycle.breaker.refuse("Check the `client_id` parameter")
    harness.amo.sandbox.faults.add(Fault.NOT_LINKED, Fault.NOT_LINKED)
    async with harness.running(lifecycle):
        await harness.pass_time(300, step=5)
    assert lifecycle.breaker.reason is None
    assert (await harness.now(connection)).pair_version == 2


async def test_a_look_up_that_takes_long_is_made_once_and_waited_for_at_the_end(harness: RefreshHarness) -> None:
    """However often the loop comes round meanwhile; and the store is not closed under it."""
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
