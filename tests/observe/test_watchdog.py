"""Notifications to the supervisor."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from amo_callback.observe.systemd import Watchdog
from tests.fakes import FakeClock


class RecordingNotifier:
    """A supervisor that records its notifications."""

    def __init__(self, *, enabled: bool = True, watchdog: float | None = 6.0) -> None:
        self.enabled = enabled
        self.watchdog = watchdog
        self.received: list[tuple[str, ...]] = []

    def __call__(self, *facts: str) -> None:
        self.received.append(facts)

    def count(self, fact: str) -> int:
        return sum(one.startswith(fact) for facts in self.received for one in facts)


class Watched:
    """A process with a watchdog, and its supervisor."""

    def __init__(self, **options: Any) -> None:
        self.supervisor = RecordingNotifier(**options)
        self.clock = FakeClock()
        self.alive, self.at_risk = True, False
        self.watchdog = Watchdog(
            cast("Any", self.supervisor),
            clock=self.clock,
            status=lambda: "well",
            is_alive=lambda: self.alive,
            at_risk=lambda: self.at_risk,
        )

    async def beat(self, seconds: float = 2.0) -> None:
        """Advance the clock by one notification."""
        self.clock.advance(seconds)
        await self.clock.until_sleeping(seconds)


@asynccontextmanager
async def _watched(**options: Any) -> AsyncIterator[Watched]:
    made = Watched(**options)
    async with made.watchdog.running():
        if made.supervisor.enabled:
            made.watchdog.ready()
            await made.clock.until_sleeping()
        yield made


async def test_watchdog_is_notified_three_times_per_interval() -> None:
    """One notification may be late or lost."""
    async with _watched(watchdog=6.0) as made:
        for _ in range(5):
            await made.beat()
        assert made.supervisor.count("WATCHDOG=1") == 6


async def test_watchdog_is_not_notified_while_liveness_fails() -> None:
    """Without notifications systemd restarts the process; they resume once liveness passes."""
    async with _watched() as made:
        made.alive = False
        await made.beat()
        await made.beat()
        assert made.supervisor.count("WATCHDOG=1") == 1
        made.alive = True
        await made.beat()
        assert made.supervisor.count("WATCHDOG=1") == 2


async def test_watchdog_sends_status_once_a_minute() -> None:
    """The status is one line, at the start and then every minute."""
    async with _watched(watchdog=None) as made:
        for _ in range(11):
            await made.beat(10.0)
        assert made.supervisor.received[0] == ("READY=1", "STATUS=well")
        assert made.supervisor.count("STATUS=well") == 2


async def test_watchdog_at_shutdown_extends_timeout_during_pending_write() -> None:
    """Time is requested while a pair is neither stored nor in its rescue file, because a kill would lose it."""
    async with _watched() as made:
        made.watchdog.stop()
        made.watchdog.stop()
        made.at_risk = True
        await made.beat()
        await made.beat()
        made.at_risk = False
        await made.beat()
        assert made.supervisor.count("STOPPING=1") == 1
        assert made.supervisor.received[-2:] == [("EXTEND_TIMEOUT_USEC=30000000",)] * 2
        assert made.supervisor.count("WATCHDOG=1") == 1


async def test_watchdog_before_ready_sends_nothing() -> None:
    """A start may take any time; the first notification reports its end."""
    made = Watched()
    async with made.watchdog.running():
        await asyncio.sleep(0)
        assert (made.supervisor.received, made.clock.sleeping()) == ([], [])
        made.watchdog.ready()
        await made.clock.until_sleeping()
        assert [facts[0] for facts in made.supervisor.received] == ["READY=1", "WATCHDOG=1"]


async def test_watchdog_without_supervisor_starts_no_task() -> None:
    """Without a supervisor no task runs and no notification is sent."""
    async with _watched(enabled=False) as made:
        assert made.clock.sleeping() == []
        assert made.supervisor.received == []
