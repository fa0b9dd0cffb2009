"""Places for unproven codes."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from amo_callback.alone import Alone
from amo_callback.connect.limits import Rooms, Unproven, room_for
from amo_callback.errors import QueueFull, StoreUnavailable, TooManyAttempts
from amo_callback.ports import Priority

if TYPE_CHECKING:
    from tests.fakes import FakeClock


def _limit(clock: FakeClock) -> Unproven:
    return _unproven(clock, places=2)


def _unproven(clock: FakeClock, *, places: int) -> Unproven:
    return Unproven(kind="codes", places=places, window=60, shared=Alone(clock=clock))


async def test_a_place_is_free_again_after_the_window_or_when_proven(clock: FakeClock) -> None:
    """Two places: the third waits for a window, or for AMO to accept one of the two."""
    limit = _limit(clock)
    await limit.take("192.0.2.1")
    clock.advance(30)
    proven = await limit.take("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")
    await proven.give_back()
    await proven.give_back()  # counts once
    await limit.take("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")
    clock.advance(30)
    await limit.take("192.0.2.1")


async def test_a_place_whose_window_is_over_gives_back_nobody_elses(clock: FakeClock) -> None:
    """An exchange that took longer than the window frees nothing when it is accepted."""
    limit = _limit(clock)
    late = await limit.take("192.0.2.1")
    clock.advance(60)
    await limit.take("192.0.2.1")
    await limit.take("192.0.2.1")
    await late.give_back()
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")


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
async def test_a_subscriber_is_an_ipv4_address_or_a_64(clock: FakeClock, one: str, other: str, same: bool) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """Whoever holds a /64 has one budget, not 2**64."""
    limit = _limit(clock)
    await limit.take(one)
    await limit.take(one)
    if same:
        with pytest.raises(TooManyAttempts):
            await limit.take(other)
    else:
        await limit.take(other)


async def test_nobodys_address_is_not_limited(clock: FakeClock) -> None:
    """A Unix socket that names no client cannot be told apart."""
    limit = _limit(clock)
    for _ in range(5):
        await (await limit.take(None)).give_back()


async def test_memory_is_bounded(clock: FakeClock) -> None:
    """A flood from everywhere forgets those heard of longest ago."""
    limit = _unproven(clock, places=1)
    await limit.take("192.0.2.1")
    for number in range(50_000):
        await limit.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    await limit.take("192.0.2.1")


async def test_the_known_have_places_apart_from_strangers(clock: FakeClock) -> None:
    """Whoever shares an address with strangers is not kept out by them."""
    limit = _limit(clock)
    for _ in range(2):
        await limit.take("192.0.2.1")
    for _ in range(2):
        await limit.take("192.0.2.1", among=Priority.EXPECTED)
    for among in (Priority.STRANGER, Priority.EXPECTED):
        with pytest.raises(TooManyAttempts):
            await limit.take("192.0.2.1", among=among)


def test_a_room_is_full_for_its_own_kind() -> None:
    """So many at once, and whoever leaves, however he does, makes room."""
    rooms = Rooms(size=1)
    with rooms.enter(Priority.STRANGER):
        with pytest.raises(QueueFull), rooms.enter(Priority.STRANGER):
            pytest.fail("there was no room")
        with rooms.enter(Priority.EXPECTED):
            pass
    with pytest.raises(ZeroDivisionError), rooms.enter(Priority.STRANGER):
        raise ZeroDivisionError
    with rooms.enter(Priority.STRANGER):
        pass


def test_a_room_holds_who_can_have_a_turn() -> None:
    """Half of AMO's requests are people's, for as long as a claim may wait; one at least."""
    assert room_for(per_second=5, seconds=45) == 112
    assert room_for(per_second=0.1, seconds=1) == 1


async def test_who_was_heard_of_again_is_not_the_next_to_be_forgotten(clock: FakeClock) -> None:
    """Beyond what is remembered, it is those heard of longest ago that are forgotten, not those that came first."""
    unproven = _unproven(clock, places=2)
    await unproven.take("192.0.2.1")
    for number in range(49_999):
        await unproven.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    await unproven.take("192.0.2.1")
    await unproven.take("192.0.2.2")
    with pytest.raises(TooManyAttempts):
        await unproven.take("192.0.2.1")


async def test_a_place_given_back_twice_gives_back_no_other(clock: FakeClock) -> None:
    """Two were taken in the same moment: each is its own."""
    unproven = _unproven(clock, places=2)
    place = await unproven.take("192.0.2.1")
    await unproven.take("192.0.2.1")
    await place.give_back()
    await place.give_back()
    await unproven.take("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        await unproven.take("192.0.2.1")


async def test_a_turn_is_had_by_a_few_of_a_kind() -> None:
    """Strangers wait until one of four is written down, and nobody who is better known waits for them."""
    rooms, came = Rooms(size=9), asyncio.Queue[Priority]()

    async def come(priority: Priority) -> None:
        async with rooms.turn(priority):
            came.put_nowait(priority)

    async with AsyncExitStack() as turns:
        for _ in range(4):
            await turns.enter_async_context(rooms.turn(Priority.STRANGER))
        fifth = asyncio.create_task(come(Priority.STRANGER))
        expected = asyncio.create_task(come(Priority.EXPECTED))
        assert await came.get() is Priority.EXPECTED
        await expected
    await fifth
    assert await came.get() is Priority.STRANGER


async def test_limits_may_change_while_places_are_taken(clock: FakeClock) -> None:
    """What is taken counts against the new limit, for the new time."""
    limit = _limit(clock)
    await limit.take("192.0.2.1")
    await limit.take("192.0.2.1")
    limit.change(places=3, window=10)
    await limit.take("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")
    clock.advance(10)
    limit.change(places=1, window=10)
    await limit.take("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")


async def test_each_limit_has_places_of_its_own(clock: FakeClock) -> None:
    """Whoever has started as many grants as he may, may still bring a code; all limits are kept in one place."""
    shared = Alone(clock=clock)
    for kind in ("codes", "starts"):
        limit = Unproven(kind=kind, places=1, window=60, shared=shared)
        await limit.take("192.0.2.1")
        with pytest.raises(TooManyAttempts):
            await limit.take("192.0.2.1")


class Slow(Alone):
    """What instances share, in a store that is slow or away; it remembers by which names it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.names: list[str] = []
        self.away = False
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def take_place(self, name: str, *, places: int, window: float) -> float | None:
        self.names.append(name)
        taken_at = await super().take_place(name, places=places, window=window)
        self.asked.set()
        await self.go_on.wait()
        return taken_at

    async def give_back(self, name: str, taken_at: float) -> None:
        self.asked.set()
        if self.away:
            raise StoreUnavailable("away")
        await self.go_on.wait()
        await super().give_back(name, taken_at)


async def test_no_address_is_told_to_the_store(clock: FakeClock) -> None:
    """An address, or a user, is personal data: the name of a place tells nothing of it."""
    shared = Slow(clock)
    limit = Unproven(kind="codes", places=1, window=60, shared=shared)
    for who in ("192.0.2.1", "2001:db8::1", "user 42"):
        await limit.take(who)
    assert [re.fullmatch(r"[0-9a-f]{64}", name) is not None for name in shared.names] == [True] * 3


async def test_a_place_that_cannot_be_given_back_is_no_failure(clock: FakeClock) -> None:
    """The store is away: what was done is told all the same, and the place is free after its window."""
    shared = Slow(clock)
    limit = Unproven(kind="codes", places=1, window=60, shared=shared)
    place = await limit.take("192.0.2.1")
    shared.away = True
    await place.give_back()
    with pytest.raises(TooManyAttempts):
        await limit.take("192.0.2.1")
    clock.advance(60)
    await limit.take("192.0.2.1")


async def test_who_is_cancelled_while_he_gives_a_place_back_has_done_so(clock: FakeClock) -> None:
    """The end of the process does not keep an address out elsewhere."""
    shared = Slow(clock)
    limit = Unproven(kind="codes", places=1, window=60, shared=shared)
    place = await limit.take("192.0.2.1")
    shared.asked.clear()
    shared.go_on.clear()
    giving_back = asyncio.create_task(place.give_back())
    await shared.asked.wait()
    giving_back.cancel()
    await asyncio.sleep(0)
    shared.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await giving_back
    await limit.take("192.0.2.1")


async def test_who_is_cancelled_while_he_takes_a_place_has_none(clock: FakeClock) -> None:
    """The store has written it down, and nobody hears of it: it is given back."""
    shared = Slow(clock)
    shared.go_on.clear()
    limit = Unproven(kind="codes", places=1, window=60, shared=shared)
    taking = asyncio.create_task(limit.take("192.0.2.1"))
    await shared.asked.wait()
    taking.cancel()
    await asyncio.sleep(0)
    shared.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await limit.take("192.0.2.1")
