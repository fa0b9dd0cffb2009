"""The stats poller, whose results serve monitoring."""

import asyncio

import pytest

from amo_callback.errors import StoreUnavailable
from amo_callback.refresh.stats_poller import StatsPoller
from amo_callback.stats import StoreStats
from tests.builders import a_core, some_stats
from tests.fakes import FakeClock, RecordingObserver
from tests.service import Running


class FakeStatsStore:
    """A store whose stats are controlled by the test."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[StoreStats]] = []
        self.error: Exception | None = None
        self.waits = False

    async def stats(self, **_: object) -> StoreStats:
        answer: asyncio.Future[StoreStats] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        if self.error is not None:
            raise self.error
        if not self.waits:
            answer.set_result(some_stats(active=len(self.asked)))
        return await answer


class PollerHarness:
    """A stats poller with a fake store."""

    def __init__(self, clock: FakeClock, witness: RecordingObserver) -> None:
        self.clock, self.witness, self.store = clock, witness, FakeStatsStore()
        self.core = a_core(store=self.store, clock=clock, observer=witness)
        self.stats_poller = StatsPoller(self.core)


@pytest.fixture
def harness(clock: FakeClock, witness: RecordingObserver) -> PollerHarness:
    return PollerHarness(clock, witness)


def test_stats_before_first_poll_are_missing(harness: PollerHarness) -> None:
    """Before the first poll there are no stats, and the problem is `the database has not been polled yet`."""
    assert (harness.stats_poller.last, harness.stats_poller.age) == (None, None)
    assert harness.stats_poller.problem == "the database has not been polled yet"


async def test_stats_older_than_30_seconds_are_a_problem(harness: PollerHarness) -> None:
    """Stats older than 30 s are reported as a problem."""
    await harness.stats_poller.poll()
    assert (harness.stats_poller.last, harness.stats_poller.age, harness.stats_poller.problem) == (
        some_stats(active=1),
        0.0,
        None,
    )
    harness.clock.advance(30)
    assert harness.stats_poller.problem is None
    harness.clock.advance(1)
    assert harness.stats_poller.problem == "the database has not been polled for 31 s"


async def _poll_without_answer(harness: PollerHarness) -> None:
    polling = asyncio.create_task(harness.stats_poller.poll())
    await harness.clock.until_sleeping(2)
    harness.clock.advance(2)
    await polling


async def test_poll_unanswered_query_is_not_repeated(harness: PollerHarness) -> None:
    """While a query is unanswered no other is sent, the last stats remain and the problem gives its duration."""
    await harness.stats_poller.poll()
    harness.store.waits = True
    for seconds in (2, 4):
        await _poll_without_answer(harness)
        assert harness.stats_poller.problem == f"the database has not responded for {seconds} s"
    assert len(harness.store.asked) == 2
    assert (harness.stats_poller.last, harness.stats_poller.age) == (some_stats(active=1), 4.0)


async def test_poll_late_answer_has_age_of_its_query(harness: PollerHarness) -> None:
    """The age of a late answer counts from its query."""
    harness.store.waits = True
    await _poll_without_answer(harness)
    harness.clock.advance(1)
    harness.store.asked[0].set_result(some_stats(active=7))
    await harness.stats_poller.poll()
    assert (harness.stats_poller.last, harness.stats_poller.age, harness.stats_poller.problem) == (
        some_stats(active=7),
        3.0,
        None,
    )
    assert harness.stats_poller.seconds == 3.0


@pytest.mark.parametrize(
    ("error", "problem", "events"),
    [
        (StoreUnavailable("SQLITE_IOERR"), "store_unavailable", []),
        (ZeroDivisionError("secret"), "internal error (see stats.failed in the log)", ["stats.failed"]),
    ],
    ids=["outage", "bug"],
)
async def test_poll_failure_keeps_last_stats_and_recovers(
    harness: PollerHarness, error: Exception, problem: str, events: list[str]
) -> None:
    """A failed poll keeps the last stats, does not reveal the exception's text, and is followed by another poll."""
    await harness.stats_poller.poll()
    harness.store.error = error
    await harness.stats_poller.poll()
    assert (harness.stats_poller.problem, harness.stats_poller.last) == (problem, some_stats(active=1))
    assert harness.witness.names() == events
    harness.store.error = None
    await harness.stats_poller.poll()
    assert (harness.stats_poller.problem, harness.stats_poller.last) == (None, some_stats(active=3))


async def test_poll_repeated_failures_are_logged_at_start_and_end(harness: PollerHarness) -> None:
    """Consecutive failed polls are logged at the first failure and, with their duration, at the end."""
    for number in (1, 2):
        harness.store.error = ZeroDivisionError()
        for _ in range(5):
            await harness.stats_poller.poll()
            harness.clock.advance(10)
        harness.store.error = None
        await harness.stats_poller.poll()
        assert harness.witness.names() == ["stats.failed", "stats.recovered"] * number
        assert harness.witness.events[-1].fields == {"failed_for_seconds": 50, "failed_rounds": 5}


async def test_poller_runs_every_ten_seconds_until_stopped(harness: PollerHarness) -> None:
    """The poller queries every ten seconds and stops at once, also during an unanswered query."""
    running = asyncio.create_task(harness.stats_poller.run())
    for polls in range(3):
        await harness.clock.until_sleeping(10)
        assert len(harness.store.asked) == polls
        harness.clock.advance(10)
    await harness.clock.until_sleeping(10)
    harness.store.waits = True
    harness.clock.advance(10)
    await harness.clock.until_sleeping(2)
    harness.core.stop.set()
    harness.clock.advance(2)
    await running
    assert harness.store.asked[-1].cancelled()


async def test_service_polls_stats_in_background(app: Running) -> None:
    """The running service updates its stats without a request."""
    stats_poller = app.service.services.lifecycle.stats_poller
    before = stats_poller.last
    assert before == some_stats(active=0, fresh=0, next_expiry=None, next_deadline=None)
    await app.connected()
    while stats_poller.last == before:
        await app.clock.until_sleeping(10)
        app.clock.advance(10)
