"""The notifications to the supervisor."""

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
        self.told: list[tuple[str, ...]] = []

    def __call__(self, *facts: str) -> None:
        self.told.append(facts)

    def heard(self, fact: str) -> int:
        return sum(one.startswith(fact) for facts in self.told for one in facts)


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
        """Let one more notification pass."""
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


async def test_the_watchdog_is_fed_three_times_as_often_as_it_asks() -> None:
    """One beat may be late, or not get through."""
    async with _watched(watchdog=6.0) as made:
        for _ in range(5):
            await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 6


async def test_a_process_that_is_not_alive_starves_the_watchdog() -> None:
    """Only a restart helps; once it is alive again, it is fed again."""
    async with _watched() as made:
        made.alive = False
        await made.beat()
        await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 1
        made.alive = True
        await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 2


async def test_it_says_once_a_minute_how_it_is() -> None:
    """One line, at the start and then with each minute."""
    async with _watched(watchdog=None) as made:
        for _ in range(11):
            await made.beat(10.0)
        assert made.supervisor.told[0] == ("READY=1", "STATUS=well")
        assert made.supervisor.heard("STATUS=well") == 2


async def test_at_the_end_it_asks_for_more_time_while_a_pair_is_in_memory_alone() -> None:
    """Neither stored nor in its rescue file: a kill would lose it. Once it is safe nothing more is asked for."""
    async with _watched() as made:
        made.watchdog.stop()
        made.watchdog.stop()
        made.at_risk = True
        await made.beat()
        await made.beat()
        made.at_risk = False
        await made.beat()
        assert made.supervisor.heard("STOPPING=1") == 1
        assert made.supervisor.told[-2:] == [("EXTEND_TIMEOUT_USEC=30000000",)] * 2
        assert made.supervisor.heard("WATCHDOG=1") == 1


async def test_before_it_is_ready_it_says_nothing() -> None:
    """A start takes as long as it takes; the first notification is that it is over."""
    made = Watched()
    async with made.watchdog.running():
        await asyncio.sleep(0)
        assert (made.supervisor.told, made.clock.sleeping()) == ([], [])
        made.watchdog.ready()
        await made.clock.until_sleeping()
        assert [facts[0] for facts in made.supervisor.told] == ["READY=1", "WATCHDOG=1"]


async def test_where_nobody_listens_nothing_beats() -> None:
    """No task, and nothing told."""
    async with _watched(enabled=False) as made:
        assert made.clock.sleeping() == []
        assert made.supervisor.told == []
