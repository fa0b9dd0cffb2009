"""The rate limit towards AMO."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.alone import Alone
from amo_callback.amo.pace import Pace
from amo_callback.ports import Priority
from tests.fakes import Witness

if TYPE_CHECKING:
    from tests.fakes import FakeClock


class Queue:
    """Whoever waits for a slot, and the order in which they got one."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.served: list[str] = []

    def join(self, name: str, priority: Priority) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.pace.slot(priority)
            self.served.append(name)

        return asyncio.create_task(wait())


def _pace(clock: FakeClock, *, per_second: float) -> Pace:
    return Pace(per_second=per_second, shared=Alone(clock=clock), clock=clock, observer=Witness())


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_slots_are_evenly_spaced(clock: FakeClock) -> None:
    """The first request goes at once, each later one an interval after the one before."""
    queue = Queue(_pace(clock, per_second=5))
    tasks = [queue.join(str(number), Priority.BACKGROUND) for number in range(3)]
    await _settle()
    assert queue.served == ["0"]
    for expected in (["0", "1"], ["0", "1", "2"]):
        clock.advance(0.19)
        await _settle()
        assert queue.served == expected[:-1]
        clock.advance(0.01)
        await _settle()
        assert queue.served == expected
    await asyncio.gather(*tasks)


async def test_people_go_first_but_take_only_half(clock: FakeClock) -> None:
    """Under contention a person goes before the background, and every other slot is the background's."""
    queue = Queue(_pace(clock, per_second=1))
    tasks = [queue.join(f"b{number}", Priority.BACKGROUND) for number in range(4)]
    tasks += [queue.join(f"p{number}", Priority.STRANGER) for number in range(4)]
    await _settle()
    for _ in range(8):
        clock.advance(1)
        await _settle()
    assert queue.served == ["p0", "b0", "p1", "b1", "p2", "b2", "p3", "b3"]
    await asyncio.gather(*tasks)


async def test_who_is_expected_goes_before_strangers(clock: FakeClock) -> None:
    """The better known first, whenever they come; and the background has every other slot all the same."""
    queue = Queue(_pace(clock, per_second=1))
    tasks = [
        queue.join(priority.name.lower(), priority)
        for priority in (
            Priority.STRANGER,
            Priority.BACKGROUND,
            Priority.STARTED,
            Priority.EXPECTED,
            Priority.BACKGROUND,
        )
    ]
    await _settle()
    for _ in range(5):
        clock.advance(1)
        await _settle()
    assert queue.served == ["expected", "background", "started", "background", "stranger"]
    await asyncio.gather(*tasks)


async def test_a_pause_holds_everybody_also_those_who_wait_already(clock: FakeClock) -> None:
    """After a 429 nobody goes for as long as AMO asked."""
    pace = _pace(clock, per_second=10)
    queue = Queue(pace)
    tasks = [queue.join(name, Priority.STRANGER) for name in ("first", "second")]
    await _settle()
    pause = 60
    await pace.pause(pause)
    clock.advance(59.9)
    await _settle()
    assert queue.served == ["first"]
    clock.advance(0.2)
    await _settle()
    assert queue.served == ["first", "second"]
    await asyncio.gather(*tasks)


async def test_who_goes_away_takes_no_slot(clock: FakeClock) -> None:
    """A cancelled waiter leaves its slot to the next, in either queue."""
    queue = Queue(_pace(clock, per_second=1))
    first, gone, person, last = (
        queue.join("first", Priority.BACKGROUND),
        queue.join("gone", Priority.BACKGROUND),
        queue.join("person", Priority.STRANGER),
        queue.join("last", Priority.BACKGROUND),
    )
    await _settle()
    assert queue.served == ["person"]
    gone.cancel()
    await _settle()
    for _ in range(2):
        clock.advance(1)
        await _settle()
    assert queue.served == ["person", "first", "last"]
    await asyncio.gather(first, person, last)


async def test_closing_ends_the_dispatcher(clock: FakeClock) -> None:
    """Nothing runs on after the end."""
    pace = _pace(clock, per_second=1)
    waiting = [asyncio.ensure_future(pace.slot(Priority.STRANGER)) for _ in range(2)]
    await _settle()
    for task in waiting:
        task.cancel()
    await pace.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "amo-pace"] == []
