"""The rate limiter of requests to AMO."""

import asyncio
import math
import random
from collections.abc import Collection

import pytest

from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.errors import StoreUnavailable
from amo_callback.rate_limit import LocalLimits, Priority, SlotDecision, WaiterKind
from tests.fakes import FakeClock, RecordingObserver, most_in_a_second


class Queue:
    """Tasks waiting for a slot, and the order in which they got one."""

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self.rate_limiter = rate_limiter
        self.served: list[str] = []

    def join(self, name: str, priority: Priority) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.rate_limiter.acquire(priority)
            self.served.append(name)

        return asyncio.create_task(wait())


def _rate_limiter(clock: FakeClock, *, per_second: float) -> RateLimiter:
    return RateLimiter(
        per_second=per_second, shared=LocalLimits(clock=clock), clock=clock, observer=RecordingObserver()
    )


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def _pass(clock: FakeClock, seconds: float) -> None:
    clock.advance(seconds)
    await _settle()


async def test_acquire_slots_are_evenly_spaced(clock: FakeClock) -> None:
    """The first request gets a slot at once, each later one after an interval."""
    queue = Queue(_rate_limiter(clock, per_second=5))
    tasks = [queue.join(str(number), Priority.BACKGROUND) for number in range(3)]
    await _settle()
    assert queue.served == ["0"]
    for expected in (["0", "1"], ["0", "1", "2"]):
        await _pass(clock, 0.19)
        assert queue.served == expected[:-1]
        await _pass(clock, 0.01)
        assert queue.served == expected
    await asyncio.gather(*tasks)


async def test_acquire_free_slot_returns_immediately(clock: FakeClock) -> None:
    """Without waiters a free slot is returned at once, and no dispatcher task runs."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    await queue.join("first", Priority.BACKGROUND)
    clock.advance(1)
    await queue.join("second", Priority.ANONYMOUS)
    assert queue.served == ["first", "second"]
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-rate-limiter"] == []


async def test_acquire_orders_by_priority(clock: FakeClock) -> None:
    """Higher priorities are served first, and background requests get every other slot."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    first = queue.join("first", Priority.BACKGROUND)
    await _settle()
    tasks = [
        queue.join(priority.name.lower(), priority)
        for priority in (
            Priority.ANONYMOUS,
            Priority.BACKGROUND,
            Priority.OUR_LINK,
            Priority.KNOWN_USER,
            Priority.BACKGROUND,
        )
    ]
    await _settle()
    for _ in range(5):
        await _pass(clock, 1)
    assert queue.served == ["first", "known_user", "background", "our_link", "background", "anonymous"]
    await asyncio.gather(first, *tasks)


async def test_pause_applies_to_all_waiters(clock: FakeClock) -> None:
    """After a 429 no waiter gets a slot until the pause ends."""
    rate_limiter = _rate_limiter(clock, per_second=10)
    queue = Queue(rate_limiter)
    tasks = [queue.join(name, Priority.ANONYMOUS) for name in ("first", "second")]
    await _settle()
    pause = 60
    await rate_limiter.pause(pause)
    await _pass(clock, 59.9)
    assert queue.served == ["first"]
    await _pass(clock, 0.2)
    assert queue.served == ["first", "second"]
    await asyncio.gather(*tasks)


async def test_acquire_cancelled_waiter_uses_no_slot(clock: FakeClock) -> None:
    """A cancelled waiter's slot goes to the next waiter of either queue."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    first = queue.join("first", Priority.BACKGROUND)
    await _settle()
    gone, person, last = (
        queue.join("gone", Priority.BACKGROUND),
        queue.join("person", Priority.ANONYMOUS),
        queue.join("last", Priority.BACKGROUND),
    )
    await _settle()
    assert queue.served == ["first"]
    gone.cancel()
    await _settle()
    for _ in range(2):
        await _pass(clock, 1)
    assert queue.served == ["first", "person", "last"]
    await asyncio.gather(first, person, last)


@pytest.mark.parametrize(("priority", "one_in"), [(Priority.TOKEN_CHECK, 4), (Priority.HOOK_CHECK, 10)])
async def test_acquire_checks_are_limited_to_their_share(clock: FakeClock, priority: Priority, one_in: int) -> None:
    """Token checks get one slot in four and hook checks one in ten, also without other requests."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    tasks = [queue.join(str(number), priority) for number in range(3)]
    for second in range(2 * one_in + 1):
        await _settle()
        assert len(queue.served) == second // one_in + 1
        clock.advance(1)
    await asyncio.gather(*tasks)


async def test_acquire_checks_leave_other_slots_to_refreshes(clock: FakeClock) -> None:
    """Token checks precede refreshes within their share, and hook checks wait until no refresh waits."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    tasks = [queue.join("first", Priority.BACKGROUND)]
    await _settle()
    for name, priority in (("h", Priority.HOOK_CHECK), ("b", Priority.BACKGROUND), ("t", Priority.TOKEN_CHECK)):
        tasks += [queue.join(name, priority) for _ in range(3 if name == "t" else 5)]
    for _ in range(13):
        await _settle()
        clock.advance(1)
    assert "".join(queue.served).removeprefix("first") == "tbbbtbbht"
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize("priority", [Priority.TOKEN_CHECK, Priority.HOOK_CHECK])
async def test_acquire_cancelled_check_uses_no_share(clock: FakeClock, priority: Priority) -> None:
    """A cancelled check leaves its slot and its share to the next one."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    first = queue.join("first", Priority.BACKGROUND)
    await _settle()
    gone, patient = queue.join("gone", priority), queue.join("patient", priority)
    await _settle()
    gone.cancel()
    await _settle()
    await _pass(clock, 1)
    assert queue.served == ["first", "patient"]
    await asyncio.gather(first, patient)


# --- sending --------------------------------------------------------------------------------------


class SendQueue:
    """Requests that wait to be sent, and the times at which they were sent."""

    def __init__(self, rate_limiter: RateLimiter, clock: FakeClock) -> None:
        self.rate_limiter, self.clock = rate_limiter, clock
        self.left: list[tuple[str, float]] = []

    def leave(self, name: str = "request", *, limit: float = 60.0) -> asyncio.Task[bool]:
        async def leave() -> bool:
            if may := await self.rate_limiter.wait_to_send(Priority.BACKGROUND, limit=limit):
                self.left.append((name, self.clock.monotonic()))
            return may

        return asyncio.create_task(leave())


async def _granted(rate_limiter: RateLimiter, clock: FakeClock, slots: int) -> None:
    """Acquire a number of slots, one interval apart."""
    for number in range(slots):
        await rate_limiter.acquire(Priority.BACKGROUND)
        if number < slots - 1:
            clock.advance(0.2)


async def test_wait_to_send_spaces_requests_in_order(clock: FakeClock) -> None:
    """Three requests that become ready at once are sent in order, one interval apart."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    await _granted(rate_limiter, clock, 3)
    ready, start = SendQueue(rate_limiter, clock), clock.monotonic()
    tasks = [ready.leave(name) for name in "abc"]
    for _ in range(50):
        await _settle()
        clock.advance(0.01)
    assert [name for name, _ in ready.left] == ["a", "b", "c"]
    assert [at - start for _, at in ready.left] == pytest.approx([0, 0.2, 0.4], abs=0.02)
    assert await asyncio.gather(*tasks) == [True] * 3


async def test_wait_to_send_after_stall_keeps_rate(clock: FakeClock) -> None:
    """A process that was stopped for five seconds does not send its delayed requests at once."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    ready = SendQueue(rate_limiter, clock)
    tasks = [ready.leave() for _ in range(10)]
    while len(ready.left) < 10:
        await _settle()
        clock.advance(5 if len(ready.left) == 3 else 0.05)
    assert most_in_a_second(*(at for _, at in ready.left)) <= 6
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("age", "waits"), [(1.0, 0.0), (1.01, 0.19)])
async def test_wait_to_send_slot_older_than_second_is_replaced(clock: FakeClock, age: float, waits: float) -> None:
    """A request with a slot older than a second waits for the next shared slot."""
    shared = LocalLimits(clock=clock)
    rate_limiter = RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver())
    await rate_limiter.acquire(Priority.BACKGROUND)
    clock.advance(age - 0.01)
    await shared.request_slot(interval=0.2, waiting={WaiterKind.BACKGROUND})  # by another process
    clock.advance(0.01)
    ready, start = SendQueue(rate_limiter, clock), clock.monotonic()
    task = ready.leave()
    await _settle()
    assert task.done() == (waits == 0.0)
    clock.advance(waits)
    assert await task
    assert [at for _, at in ready.left] == pytest.approx([start + waits])


async def test_wait_to_send_uses_each_slot_once(clock: FakeClock) -> None:
    """Two requests cannot use one slot: the second acquires its own."""
    shared = UnreliableLimits(clock)
    rate_limiter = RateLimiter(per_second=1, shared=shared, clock=clock, observer=RecordingObserver())
    ready = SendQueue(rate_limiter, clock)
    first, second = ready.leave(), ready.leave()
    for _ in range(2):
        await _settle()
        clock.advance(1)
    await asyncio.gather(first, second)
    assert [at for _, at in ready.left] == [1000, 1001]
    assert shared.granted == 2


async def test_wait_to_send_precedes_first_slots(clock: FakeClock) -> None:
    """A request whose slot has expired gets the next slot before requests that have not had a slot."""
    rate_limiter = _rate_limiter(clock, per_second=0.2)
    queue, ready = Queue(rate_limiter), SendQueue(rate_limiter, clock)
    await rate_limiter.acquire(Priority.BACKGROUND)
    waiting = [queue.join(str(number), Priority.BACKGROUND) for number in range(3)]
    await _settle()
    clock.advance(2)
    again = ready.leave()
    await _settle()
    await _pass(clock, 3)
    assert (queue.served, again.done()) == ([], True)
    for task in waiting:
        task.cancel()
    await rate_limiter.close()


async def test_wait_to_send_during_pause_waits_or_gives_false(clock: FakeClock) -> None:
    """A request with a slot waits until the pause ends, or is not sent if its limit is shorter."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    await _granted(rate_limiter, clock, 1)
    await rate_limiter.pause(1)
    ready = SendQueue(rate_limiter, clock)
    assert not await ready.leave(limit=0.5)
    patient = ready.leave(limit=2)
    for _ in range(30):
        await _settle()
        clock.advance(0.05)
    assert await patient
    assert [at for _, at in ready.left] == pytest.approx([1001], abs=0.26)


async def test_wait_to_send_after_limit_uses_no_slot(clock: FakeClock) -> None:
    """A request that reaches its limit leaves the next slot to another request."""
    rate_limiter = _rate_limiter(clock, per_second=0.1)
    queue, ready = Queue(rate_limiter), SendQueue(rate_limiter, clock)
    await ready.leave()
    late = ready.leave(limit=2)
    await _settle()
    clock.advance(2)
    assert not await late
    patient = queue.join("patient", Priority.BACKGROUND)
    await _settle()
    await _pass(clock, 8)
    assert queue.served == ["patient"]
    await patient


@pytest.mark.parametrize("seed", range(20))
async def test_wait_to_send_never_exceeds_rate(clock: FakeClock, seed: int) -> None:
    """For any delays of requests and of the event loop, at most one request a second exceeds the rate."""
    draw = random.Random(seed)  # noqa: S311 -- the seed makes it repeatable
    rate_limiter = _rate_limiter(clock, per_second=5)
    ready = SendQueue(rate_limiter, clock)

    async def request(came: float, took: float) -> None:
        await clock.sleep(came)
        await rate_limiter.acquire(draw.choice(list(Priority)))
        await clock.sleep(took)
        assert await ready.leave(limit=math.inf)

    delays = [0.0, 0.1, 0.5, 0.9, 1.5, 3.5]
    tasks = [asyncio.create_task(request(draw.uniform(0, 8), draw.choice(delays))) for _ in range(40)]
    while not all(task.done() for task in tasks):
        await _settle()
        clock.advance(draw.choice([0.01, 0.05, 0.05, 0.7]))
    await asyncio.gather(*tasks)
    assert most_in_a_second(*(at for _, at in ready.left)) <= 6
    await rate_limiter.close()


async def test_close_ends_dispatcher(clock: FakeClock) -> None:
    """Closing the rate limiter ends its dispatcher task."""
    rate_limiter = _rate_limiter(clock, per_second=1)
    waiting = [asyncio.ensure_future(rate_limiter.acquire(Priority.ANONYMOUS)) for _ in range(2)]
    await _settle()
    for task in waiting:
        task.cancel()
    await rate_limiter.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-rate-limiter"] == []


# --- shared limits --------------------------------------------------------------------------------


class UnreliableLimits(LocalLimits):
    """Shared limits that can fail or wait, and count their calls."""

    is_local = False

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.error: Exception | None = None
        self.asked = self.granted = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def request_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        self.asked += 1
        if self.error is not None:
            raise self.error
        asked = await super().request_slot(interval=interval, waiting=waiting)
        await self.answers.wait()
        self.granted += asked.kind is not None
        return asked

    async def pause(self, seconds: float) -> None:
        if self.error is not None:
            raise self.error
        await super().pause(seconds)


UNAVAILABLE = StoreUnavailable("away")


@pytest.mark.parametrize(
    ("error", "result"), [(UNAVAILABLE, []), (ZeroDivisionError(), ["rate_limiter.bug"])], ids=["away", "a bug"]
)
async def test_acquire_while_store_fails_retries_each_second(
    clock: FakeClock, error: Exception, result: list[str]
) -> None:
    """A failed request for a slot is retried each second, and a programming error is logged once."""
    shared, witness = UnreliableLimits(clock), RecordingObserver()
    rate_limiter = RateLimiter(per_second=5, shared=shared, clock=clock, observer=witness)
    queue = Queue(rate_limiter)
    shared.error = error
    tasks = [queue.join(name, Priority.ANONYMOUS) for name in ("gone", "patient")]
    for _ in range(3):
        await _settle()
        clock.advance(1)
    tasks[0].cancel()
    shared.error = None
    await _settle()
    assert (queue.served, shared.asked, witness.names()) == (["patient"], 4, result)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_acquire_cancelled_while_store_fails_is_not_retried(clock: FakeClock) -> None:
    """A waiter cancelled while the store is unavailable leaves the queue, and no slot is requested for it."""
    shared = UnreliableLimits(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.error = UNAVAILABLE
    gone = queue.join("gone", Priority.ANONYMOUS)
    await _settle()
    gone.cancel()
    await _pass(clock, 1)
    assert shared.asked == 1
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-rate-limiter"] == []


async def test_acquire_while_store_fails_allows_token_checks(clock: FakeClock) -> None:
    """One token check a second continues, because it spends nothing; people and refreshes wait."""
    shared = UnreliableLimits(clock)
    shared.error = UNAVAILABLE
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    tasks = [queue.join(f"look-up {number}", Priority.TOKEN_CHECK) for number in range(3)]
    tasks += [queue.join("person", Priority.KNOWN_USER), queue.join("refresh", Priority.BACKGROUND)]
    for seconds in range(4):
        await _settle()
        assert queue.served == [f"look-up {number}" for number in range(min(seconds + 1, 3))]
        await _pass(clock, 0.8)
        clock.advance(0.2)
    shared.error = None
    for _ in range(2):
        await _settle()
        clock.advance(0.2)
    assert queue.served[3:] == ["person", "refresh"]
    await asyncio.gather(*tasks)


async def test_pause_while_store_fails_applies_locally(clock: FakeClock) -> None:
    """A pause applies to this process even if the store cannot share it."""
    shared = UnreliableLimits(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.error = UNAVAILABLE
    pause = 60
    await queue.rate_limiter.pause(pause)
    shared.error = None
    task = queue.join("patient", Priority.ANONYMOUS)
    await _settle()
    await _pass(clock, 59.9)
    assert queue.served == []
    await _pass(clock, 0.2)
    assert queue.served == ["patient"]
    await task


async def test_pause_is_shared_between_rate_limiters(clock: FakeClock) -> None:
    """A pause applies to every rate limiter with the same shared limits."""
    shared = LocalLimits(clock=clock)
    one, other = [RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()) for _ in range(2)]
    queue = Queue(other)
    pause = 60
    await one.pause(pause)
    task = queue.join("patient", Priority.ANONYMOUS)
    await _settle()
    assert queue.served == []
    await _pass(clock, 60)
    assert queue.served == ["patient"]
    await task


async def test_acquire_slot_of_cancelled_waiter_goes_to_next(clock: FakeClock) -> None:
    """A slot that arrives after its waiter was cancelled goes to the next waiter."""
    shared = UnreliableLimits(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.answers.clear()
    person, background = queue.join("person", Priority.ANONYMOUS), queue.join("background", Priority.BACKGROUND)
    await _settle()
    person.cancel()
    await _settle()
    shared.answers.set()
    await background
    assert (queue.served, shared.asked) == (["background"], 1)
    await queue.rate_limiter.close()


async def test_pause_discards_slot_that_arrives_later(clock: FakeClock) -> None:
    """A slot that arrives after a 429 is not used."""
    shared = UnreliableLimits(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.answers.clear()
    task = queue.join("patient", Priority.ANONYMOUS)
    await _settle()
    pause = 60
    await queue.rate_limiter.pause(pause)
    shared.answers.set()
    await _settle()
    assert queue.served == []
    await _pass(clock, 60)
    assert queue.served == ["patient"]
    await task
