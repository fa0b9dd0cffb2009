"""The latest moment at which a process that was told to end does so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from amo_callback.cli.process import Deadline
from tests.fakes import FakeClock, RecordingObserver


class Ending:
    """A deadline of 10 seconds, its time, and the status that the process has left with."""

    def __init__(self) -> None:
        self.clock, self.witness = FakeClock(), RecordingObserver()
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.deadline = Deadline(seconds=10, clock=self.clock, observer=self.witness, leave=self.status.set_result)
        self.pending_writes: Any = SimpleNamespace(at_risk=False, unsafe=[])

    async def wait(self, seconds: float) -> None:
        """Let time pass, and the deadline look at it."""
        for _ in range(round(seconds)):
            await self.clock.until_sleeping()
            self.clock.advance(1)
            await asyncio.sleep(0)


async def test_what_does_not_close_is_left() -> None:
    """After its seconds, with the status that it was told first; also where the service has not begun."""
    ending = Ending()
    ending.deadline.begin(0)
    ending.deadline.begin(1)
    await ending.wait(9)
    assert not ending.status.done()
    await ending.wait(1)
    assert await ending.status == 0
    assert ending.witness.names() == ["service.stopped"]


async def test_a_pair_that_is_nowhere_else_holds_it_up() -> None:
    """Its connection is logged every ten seconds; the moment that it is safe the process ends."""
    ending = Ending()
    ending.deadline.pending_writes = ending.pending_writes
    ending.pending_writes.at_risk, ending.pending_writes.unsafe = True, ["c-1"]
    ending.deadline.begin(0)
    await ending.wait(35)
    assert [event.connection_id for event in ending.witness.named("pair.unsafe")] == ["c-1"] * 3
    assert not ending.status.done()
    ending.pending_writes.at_risk, ending.pending_writes.unsafe = False, []
    await ending.wait(1)
    assert await ending.status == 0


async def test_after_ten_minutes_it_is_held_up_no_longer() -> None:
    """The pair is lost, which is said, and the status is 1."""
    ending = Ending()
    ending.deadline.pending_writes = ending.pending_writes
    ending.pending_writes.at_risk, ending.pending_writes.unsafe = True, ["c-1"]
    ending.deadline.begin(0)
    await ending.wait(600)
    assert not ending.status.done()
    await ending.wait(1)
    assert await ending.status == 1
    assert [event.connection_id for event in ending.witness.named("pair.lost")] == ["c-1"]


@pytest.mark.parametrize("begun", [True, False])
async def test_where_everything_is_closed_it_does_nothing(*, begun: bool) -> None:
    """The ordinary end comes first."""
    ending = Ending()
    if begun:
        ending.deadline.begin(0)
        await ending.wait(5)
    ending.deadline.end()
    await asyncio.sleep(0)
    assert ending.clock.sleeping() == []
    assert not ending.status.done()
