"""The deadline of a process after its stop signal."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from amo_callback.cli.process import Deadline
from tests.fakes import FakeClock, RecordingObserver


class Ending:
    """A deadline of 10 seconds with its clock, and the exit status of the process."""

    def __init__(self) -> None:
        self.clock, self.witness = FakeClock(), RecordingObserver()
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.deadline = Deadline(seconds=10, clock=self.clock, observer=self.witness, leave=self.status.set_result)
        self.pending_writes: Any = SimpleNamespace(at_risk=False, unsafe=[])

    async def wait(self, seconds: float) -> None:
        """Advance the clock, and let the deadline run after each second."""
        for _ in range(round(seconds)):
            await self.clock.until_sleeping()
            self.clock.advance(1)
            await asyncio.sleep(0)


async def test_deadline_ends_process_with_first_status() -> None:
    """The process exits at the deadline with the first status, even if the service has not started."""
    ending = Ending()
    ending.deadline.begin(0)
    ending.deadline.begin(1)
    await ending.wait(9)
    assert not ending.status.done()
    await ending.wait(1)
    assert await ending.status == 0
    assert ending.witness.names() == ["service.stopped"]


async def test_deadline_waits_for_unsafe_pair() -> None:
    """A pair that is stored nowhere delays the exit and is logged every ten seconds until it is safe."""
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


async def test_deadline_with_unsafe_pair_ends_after_ten_minutes() -> None:
    """After ten minutes the pair is logged as lost and the status is 1."""
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
async def test_deadline_does_nothing_after_regular_end(*, begun: bool) -> None:
    """A regular end cancels the deadline."""
    ending = Ending()
    if begun:
        ending.deadline.begin(0)
        await ending.wait(5)
    ending.deadline.end()
    await asyncio.sleep(0)
    assert ending.clock.sleeping() == []
    assert not ending.status.done()
