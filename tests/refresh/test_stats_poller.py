"""The look at all connections that monitoring is answered from."""

import asyncio

import pytest

from amo_callback.errors import StoreUnavailable
from amo_callback.refresh.stats_poller import StatsPoller
from amo_callback.stats import StoreStats
from tests.builders import a_core, some_stats
from tests.fakes import FakeClock, RecordingObserver
from tests.service import Running


class SurveyedStore:
    """A store that tells what a test says, when it says it."""

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


class Post:
    """A poller, and what is around it."""

    def __init__(self, clock: FakeClock, witness: RecordingObserver) -> None:
        self.clock, self.witness, self.store = clock, witness, SurveyedStore()
        self.core = a_core(store=self.store, clock=clock, observer=witness)
        self.stats_poller = StatsPoller(self.core)


@pytest.fixture
def post(clock: FakeClock, witness: RecordingObserver) -> Post:
    return Post(clock, witness)


def test_nothing_is_known_before_the_first_look(post: Post) -> None:
    """Neither good nor bad: it says that nobody has looked."""
    assert (post.stats_poller.last, post.stats_poller.age) == (None, None)
    assert post.stats_poller.problem == "not polled yet"


async def test_what_was_seen_grows_old(post: Post) -> None:
    """It is good for half a minute, and from then on not to be relied on."""
    await post.stats_poller.poll()
    assert (post.stats_poller.last, post.stats_poller.age, post.stats_poller.problem) == (
        some_stats(active=1),
        0.0,
        None,
    )
    post.clock.advance(30)
    assert post.stats_poller.problem is None
    post.clock.advance(1)
    assert post.stats_poller.problem == "last polled 31 s ago"


async def _silence(post: Post) -> None:
    looking = asyncio.create_task(post.stats_poller.poll())
    await post.clock.until_sleeping(2)
    post.clock.advance(2)
    await looking


async def test_a_silent_store_is_asked_once(post: Post) -> None:
    """However often it is looked at, one question waits; the last answer stays, and how long it is silent is told."""
    await post.stats_poller.poll()
    post.store.waits = True
    for seconds in (2, 4):
        await _silence(post)
        assert post.stats_poller.problem == f"no response for {seconds} s"
    assert len(post.store.asked) == 2
    assert (post.stats_poller.last, post.stats_poller.age) == (some_stats(active=1), 4.0)


async def test_an_answer_that_is_late_is_as_old_as_its_question(post: Post) -> None:
    """It counts from when it was asked for: what it tells is from then."""
    post.store.waits = True
    await _silence(post)
    post.clock.advance(1)
    post.store.asked[0].set_result(some_stats(active=7))
    await post.stats_poller.poll()
    assert (post.stats_poller.last, post.stats_poller.age, post.stats_poller.problem) == (
        some_stats(active=7),
        3.0,
        None,
    )
    assert post.stats_poller.seconds == 3.0


@pytest.mark.parametrize(
    ("error", "problem", "told"),
    [
        (StoreUnavailable("SQLITE_IOERR"), "store_unavailable", []),
        (ZeroDivisionError("secret"), "a bug", ["stats.failed"]),
    ],
    ids=["away", "bug"],
)
async def test_a_look_that_fails_is_told_and_followed_by_the_next(
    post: Post, error: Exception, problem: str, told: list[str]
) -> None:
    """The loop outlives it, what was seen before stays, and its text goes nowhere."""
    await post.stats_poller.poll()
    post.store.error = error
    await post.stats_poller.poll()
    assert (post.stats_poller.problem, post.stats_poller.last) == (problem, some_stats(active=1))
    assert post.witness.names() == told
    post.store.error = None
    await post.stats_poller.poll()
    assert (post.stats_poller.problem, post.stats_poller.last) == (None, some_stats(active=3))


async def test_looks_that_fail_one_after_the_other_are_logged_once(post: Post) -> None:
    """The end has a line, too, and says how long it was."""
    for number in (1, 2):
        post.store.error = ZeroDivisionError()
        for _ in range(5):
            await post.stats_poller.poll()
            post.clock.advance(10)
        post.store.error = None
        await post.stats_poller.poll()
        assert post.witness.names() == ["stats.failed", "stats.recovered"] * number
        assert post.witness.events[-1].fields == {"failed_for_seconds": 50, "failed_rounds": 5}


async def test_it_looks_every_ten_seconds_until_it_is_stopped(post: Post) -> None:
    """With nobody asking; and it ends at once, also where the store is silent."""
    running = asyncio.create_task(post.stats_poller.run())
    for looks in range(3):
        await post.clock.until_sleeping(10)
        assert len(post.store.asked) == looks
        post.clock.advance(10)
    await post.clock.until_sleeping(10)
    post.store.waits = True
    post.clock.advance(10)
    await post.clock.until_sleeping(2)
    post.core.stop.set()
    post.clock.advance(2)
    await running
    assert post.store.asked[-1].cancelled()


async def test_the_running_service_looks_by_itself(app: Running) -> None:
    """A connection is in the next look."""
    stats_poller = app.service.services.lifecycle.stats_poller
    before = stats_poller.last
    assert before == some_stats(active=0, fresh=0, next_expiry=None, next_deadline=None)
    await app.connected()
    while stats_poller.last == before:
        await app.clock.until_sleeping(10)
        app.clock.advance(10)
