"""The rate limit towards AMO."""

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
    """Whoever waits for a slot, and the order in which they got one."""

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


async def test_slots_are_evenly_spaced(clock: FakeClock) -> None:
    """The first request goes at once, each later one an interval after the one before."""
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


async def test_a_free_slot_is_had_at_once(clock: FakeClock) -> None:
    """Where nobody waits there is no queue, and nothing runs on: nearly always, at AMO's rates."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    await queue.join("first", Priority.BACKGROUND)
    clock.advance(1)
    await queue.join("second", Priority.ANONYMOUS)
    assert queue.served == ["first", "second"]
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-pace"] == []


async def test_who_is_expected_goes_before_strangers(clock: FakeClock) -> None:
    """The better known first, whenever they come; and the background has every other slot all the same."""
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


async def test_a_pause_holds_everybody_also_those_who_wait_already(clock: FakeClock) -> None:
    """After a 429 nobody goes for as long as AMO asked."""
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


async def test_who_goes_away_takes_no_slot(clock: FakeClock) -> None:
    """A cancelled waiter leaves its slot to the next, in either queue."""
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
async def test_checks_alone_take_no_more_than_their_share(clock: FakeClock, priority: Priority, one_in: int) -> None:
    """Token checks take one slot in four and hook checks one in ten, even where no other request waits."""
    queue = Queue(_rate_limiter(clock, per_second=1))
    tasks = [queue.join(str(number), priority) for number in range(3)]
    for second in range(2 * one_in + 1):
        await _settle()
        assert len(queue.served) == second // one_in + 1
        clock.advance(1)
    await asyncio.gather(*tasks)


async def test_checks_leave_the_rest_of_the_rate_to_refreshes(clock: FakeClock) -> None:
    """Token checks go before refreshes within their share, and hook checks wait until no refresh waits."""
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
async def test_a_check_that_is_cancelled_takes_no_share(clock: FakeClock, priority: Priority) -> None:
    """A caller that gives up leaves its slot and its share to the next check."""
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


# --- where requests leave -------------------------------------------------------------------------


class Exit:
    """Requests that have a slot and are ready to leave, and the times at which they do."""

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
    """Take so many slots, one after the other."""
    for number in range(slots):
        await rate_limiter.acquire(Priority.BACKGROUND)
        if number < slots - 1:
            clock.advance(0.2)


async def test_requests_leave_an_interval_apart_in_the_order_in_which_they_are_ready(clock: FakeClock) -> None:
    """Three requests whose claims return at the same moment do not leave at the same moment."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    await _granted(rate_limiter, clock, 3)
    ready, start = Exit(rate_limiter, clock), clock.monotonic()
    tasks = [ready.leave(name) for name in "abc"]
    for _ in range(50):
        await _settle()
        clock.advance(0.01)
    assert [name for name, _ in ready.left] == ["a", "b", "c"]
    assert [at - start for _, at in ready.left] == pytest.approx([0, 0.2, 0.4], abs=0.02)
    assert await asyncio.gather(*tasks) == [True] * 3


async def test_requests_stay_apart_where_the_loop_was_held_up(clock: FakeClock) -> None:
    """A process that stops for five seconds does not send at once what should have left meanwhile."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    ready = Exit(rate_limiter, clock)
    tasks = [ready.leave() for _ in range(10)]
    while len(ready.left) < 10:
        await _settle()
        clock.advance(5 if len(ready.left) == 3 else 0.05)
    assert most_in_a_second(*(at for _, at in ready.left)) <= 6
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("age", "waits"), [(1.0, 0.0), (1.01, 0.19)])
async def test_a_slot_older_than_a_second_is_replaced(clock: FakeClock, age: float, waits: float) -> None:
    """A request that comes with an old slot waits for the next one of the shared state, behind a slot of another."""
    shared = LocalLimits(clock=clock)
    rate_limiter = RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver())
    await rate_limiter.acquire(Priority.BACKGROUND)
    clock.advance(age - 0.01)
    await shared.request_slot(interval=0.2, waiting={WaiterKind.BACKGROUND})  # another process's
    clock.advance(0.01)
    ready, start = Exit(rate_limiter, clock), clock.monotonic()
    task = ready.leave()
    await _settle()
    assert task.done() == (waits == 0.0)
    clock.advance(waits)
    assert await task
    assert [at for _, at in ready.left] == pytest.approx([start + waits])


async def test_each_slot_lets_one_request_leave(clock: FakeClock) -> None:
    """Two requests cannot leave in the same slot: the second takes one of its own."""
    shared = Failing(clock)
    rate_limiter = RateLimiter(per_second=1, shared=shared, clock=clock, observer=RecordingObserver())
    ready = Exit(rate_limiter, clock)
    first, second = ready.leave(), ready.leave()
    for _ in range(2):
        await _settle()
        clock.advance(1)
    await asyncio.gather(first, second)
    assert [at for _, at in ready.left] == [1000, 1001]
    assert shared.granted == 2


async def test_another_slot_comes_before_first_slots(clock: FakeClock) -> None:
    """A request that holds a claim does not queue behind those that have not begun."""
    rate_limiter = _rate_limiter(clock, per_second=0.2)
    queue, ready = Queue(rate_limiter), Exit(rate_limiter, clock)
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


async def test_a_pause_holds_requests_that_are_ready_to_leave(clock: FakeClock) -> None:
    """After a 429 no request leaves that was already claimed and connected; it is not sent where that is too long."""
    rate_limiter = _rate_limiter(clock, per_second=5)
    await _granted(rate_limiter, clock, 1)
    await rate_limiter.pause(1)
    ready = Exit(rate_limiter, clock)
    assert not await ready.leave(limit=0.5)
    patient = ready.leave(limit=2)
    for _ in range(30):
        await _settle()
        clock.advance(0.05)
    assert await patient
    assert [at for _, at in ready.left] == pytest.approx([1001], abs=0.26)


async def test_a_request_that_may_not_leave_in_time_takes_no_slot(clock: FakeClock) -> None:
    """A request that gives up leaves the next slot to another one."""
    rate_limiter = _rate_limiter(clock, per_second=0.1)
    queue, ready = Queue(rate_limiter), Exit(rate_limiter, clock)
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
async def test_requests_never_leave_faster_than_the_rate_allows(clock: FakeClock, seed: int) -> None:
    """Whatever claims and connections take, and however late the loop is, a second has one request beyond the rate."""
    draw = random.Random(seed)  # noqa: S311 -- because a test must be able to repeat what it draws
    rate_limiter = _rate_limiter(clock, per_second=5)
    ready = Exit(rate_limiter, clock)

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


async def test_closing_ends_the_dispatcher(clock: FakeClock) -> None:
    """Nothing runs on after the end."""
    rate_limiter = _rate_limiter(clock, per_second=1)
    waiting = [asyncio.ensure_future(rate_limiter.acquire(Priority.ANONYMOUS)) for _ in range(2)]
    await _settle()
    for task in waiting:
        task.cancel()
    await rate_limiter.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-pace"] == []


# --- what is shared -------------------------------------------------------------------------------


class Failing(LocalLimits):
    """What instances share, away or broken while a test says so; it tells when it is asked, and can be slow."""

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


AWAY = StoreUnavailable("away")


@pytest.mark.parametrize(("error", "told"), [(AWAY, []), (ZeroDivisionError(), ["pace.bug"])], ids=["away", "a bug"])
async def test_nobody_goes_while_slots_cannot_be_had(clock: FakeClock, error: Exception, told: list[str]) -> None:
    """It is asked again each second, and whoever still waits goes once there is an answer; a bug is told once."""
    shared, witness = Failing(clock), RecordingObserver()
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
    assert (queue.served, shared.asked, witness.names()) == (["patient"], 4, told)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nobody_asks_for_those_who_went_away(clock: FakeClock) -> None:
    """Whoever gives up while the store is away frees his place in the queue: no slot is taken for him later."""
    shared = Failing(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.error = AWAY
    gone = queue.join("gone", Priority.ANONYMOUS)
    await _settle()
    gone.cancel()
    await _pass(clock, 1)
    assert shared.asked == 1
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-pace"] == []


async def test_look_ups_go_on_slowly_while_the_store_is_away(clock: FakeClock) -> None:
    """One token check a second may go: nothing can be claimed, so it spends nothing; people and refreshes wait."""
    shared = Failing(clock)
    shared.error = AWAY
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


async def test_a_pause_holds_here_also_where_it_cannot_be_shared(clock: FakeClock) -> None:
    """AMO's 429 is heeded by who got it, whether or not the store takes it down."""
    shared = Failing(clock)
    queue = Queue(RateLimiter(per_second=5, shared=shared, clock=clock, observer=RecordingObserver()))
    shared.error = AWAY
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


async def test_a_pause_is_everybodys(clock: FakeClock) -> None:
    """What one has heard of AMO holds for all who ask by the same state."""
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


async def test_a_slot_whose_waiter_went_away_meanwhile_is_the_next_ones(clock: FakeClock) -> None:
    """To ask takes time: a slot that was got for a person who has left is not wasted on nobody."""
    shared = Failing(clock)
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


async def test_a_pause_holds_who_has_just_asked(clock: FakeClock) -> None:
    """To ask takes time: a slot that comes after AMO's 429 is not used."""
    shared = Failing(clock)
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
