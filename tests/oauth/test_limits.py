"""Limits on failed codes and on the queue for AMO."""

import asyncio
import itertools
from contextlib import AsyncExitStack, ExitStack

import pytest

from amo_callback.errors import QueueFull, TooManyAttempts
from amo_callback.grant import AuthorizationRequest
from amo_callback.oauth.limits import AdmissionQueue, AttemptLimiter, StartLimiter, capacity_for
from amo_callback.rate_limit import Priority
from tests.fakes import FakeClock


def _limiter(clock: FakeClock, *, attempts: int = 2) -> AttemptLimiter:
    return AttemptLimiter(attempts=attempts, window=60, clock=clock)


def test_attempt_limiter_reservation_ends_after_window_or_release(clock: FakeClock) -> None:
    """With a limit of two, a third attempt is refused until a window has passed or AMO has accepted one of the two."""
    limiter = _limiter(clock)
    limiter.reserve("192.0.2.1")
    clock.advance(30)
    limiter.reserve("192.0.2.1").release()
    limiter.reserve("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")
    clock.advance(30)
    limiter.reserve("192.0.2.1")


def test_attempt_limiter_release_after_window_frees_no_other(clock: FakeClock) -> None:
    """An exchange that took longer than the window frees no reservation when it is accepted."""
    limiter = _limiter(clock)
    late = limiter.reserve("192.0.2.1")
    clock.advance(60)
    limiter.reserve("192.0.2.1")
    limiter.reserve("192.0.2.1")
    late.release()
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("unix", "unix", True),
    ],
)
def test_attempt_limiter_counts_per_ipv4_address_or_ipv6_64(clock: FakeClock, one: str, other: str, same: bool) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """An IPv6 /64 has one limit, not 2**64 of them."""
    limiter = _limiter(clock)
    limiter.reserve(one)
    limiter.reserve(one)
    if same:
        with pytest.raises(TooManyAttempts):
            limiter.reserve(other)
    else:
        limiter.reserve(other)


def test_attempt_limiter_without_address_is_unlimited(clock: FakeClock) -> None:
    """Callers on a Unix socket that names no client cannot be distinguished."""
    limiter = _limiter(clock)
    made = [limiter.reserve(None) for _ in range(5)]
    for reservation in made:
        reservation.release()


def test_attempt_limiter_counts_known_users_separately(clock: FakeClock) -> None:
    """Anonymous callers behind the same address do not use up a known user's attempts."""
    limiter = _limiter(clock)
    for _ in range(2):
        limiter.reserve("192.0.2.1")
    for _ in range(2):
        limiter.reserve("192.0.2.1", among=Priority.KNOWN_USER)
    for among in (Priority.ANONYMOUS, Priority.KNOWN_USER):
        with pytest.raises(TooManyAttempts):
            limiter.reserve("192.0.2.1", among=among)


def test_admission_queue_is_full_per_priority() -> None:
    """A code that leaves the queue, even by an error, frees its slot."""
    queue = AdmissionQueue(capacity=1)
    with queue.enter(Priority.ANONYMOUS, None):
        with pytest.raises(QueueFull), queue.enter(Priority.ANONYMOUS, None):
            pytest.fail("it was not full")
        with queue.enter(Priority.KNOWN_USER, None):
            pass
    with pytest.raises(ZeroDivisionError), queue.enter(Priority.ANONYMOUS, None):
        raise ZeroDivisionError
    with queue.enter(Priority.ANONYMOUS, None):
        pass


def test_admission_queue_busy_addresses_leave_half_to_others() -> None:
    """One address may fill half of the queue, and a dozen addresses together no more."""
    queue = AdmissionQueue(capacity=100)
    with ExitStack() as waiting:
        refused = 0
        for number in range(1200):
            try:
                waiting.enter_context(queue.enter(Priority.ANONYMOUS, f"192.0.2.{number % 12}"))
            except QueueFull:
                refused += 1
        assert refused == 1150
        for number in range(50):
            waiting.enter_context(queue.enter(Priority.ANONYMOUS, f"198.51.100.{number}"))
        with pytest.raises(QueueFull), queue.enter(Priority.ANONYMOUS, "203.0.113.1"):
            pytest.fail("it was not full")


def test_admission_queue_turn_is_per_address() -> None:
    """Addresses of one IPv6 network share a turn; each caller without an address has its own."""
    queue = AdmissionQueue(capacity=9)
    with ExitStack() as waiting:
        one, same, other, unnamed, also_unnamed = (
            waiting.enter_context(queue.enter(Priority.ANONYMOUS, address))
            for address in ("2001:db8::1", "2001:db8::2", "192.0.2.1", None, None)
        )
        assert one is same
        assert len({*map(id, (one, other, unnamed, also_unnamed))}) == 4


def test_capacity_is_half_of_requests_within_claim_wait() -> None:
    """Half of AMO's requests are for codes, for as long as a claim may wait; the minimum is one."""
    assert capacity_for(per_second=5, seconds=45) == 112
    assert capacity_for(per_second=0.1, seconds=1) == 1


def test_attempt_limiter_forgets_address_with_oldest_attempt(clock: FakeClock) -> None:
    """Beyond the limit the addresses with the oldest last attempt are forgotten, not those seen first."""
    limiter = _limiter(clock)
    flood = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in itertools.count())
    limiter.reserve("192.0.2.1")
    for address in itertools.islice(flood, 49_999):
        limiter.reserve(address)
    limiter.reserve("192.0.2.1")
    limiter.reserve("192.0.2.2")
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")
    for address in itertools.islice(flood, 50_000):
        limiter.reserve(address)
    limiter.reserve("192.0.2.1")


def test_attempt_limiter_second_release_frees_no_other(clock: FakeClock) -> None:
    """Two attempts at the same moment count twice."""
    limiter = _limiter(clock)
    reservation = limiter.reserve("192.0.2.1")
    limiter.reserve("192.0.2.1")
    reservation.release()
    reservation.release()
    limiter.reserve("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")


async def test_admission_queue_limits_concurrent_writes_per_priority() -> None:
    """The fifth anonymous caller waits for one of four; a known user does not."""
    queue, written = AdmissionQueue(capacity=9), asyncio.Queue[Priority]()

    async def write(priority: Priority) -> None:
        async with queue.write(priority):
            written.put_nowait(priority)

    async with AsyncExitStack() as turns:
        for _ in range(4):
            await turns.enter_async_context(queue.write(Priority.ANONYMOUS))
        fifth = asyncio.create_task(write(Priority.ANONYMOUS))
        expected = asyncio.create_task(write(Priority.KNOWN_USER))
        assert await written.get() is Priority.KNOWN_USER
        await expected
    await fifth
    assert await written.get() is Priority.ANONYMOUS


def test_attempt_limiter_changed_limit_counts_earlier_attempts(clock: FakeClock) -> None:
    """Earlier attempts count against the new limit, for the new window."""
    limiter = _limiter(clock)
    limiter.reserve("192.0.2.1")
    limiter.reserve("192.0.2.1")
    limiter.change(attempts=3, window=10)
    limiter.reserve("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")
    clock.advance(10)
    limiter.change(attempts=1, window=10)
    limiter.reserve("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        limiter.reserve("192.0.2.1")


async def test_start_limiter_second_half_of_links_is_for_new_addresses(clock: FakeClock) -> None:
    """Once half of the links are used, an address that has followed a link is refused, and a new address is not."""
    starts = StartLimiter(
        each=_limiter(clock, attempts=9), links=_limiter(clock, attempts=4), queue=AdmissionQueue(capacity=9)
    )

    async def follow(address: str) -> None:
        async with starts.turn(AuthorizationRequest(), address=address):
            pass

    await follow("192.0.2.1")
    await follow("192.0.2.1")
    with pytest.raises(QueueFull):
        await follow("192.0.2.1")
    await follow("192.0.2.2")
