"""The notifications to the supervisor."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from amo_callback.model import AmoBlock, Freeze
from amo_callback.web.watchdog import Watchdog, running_watchdog
from tests.fakes import START
from tests.web.fake_services import FakeServices


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


class Watched(FakeServices):
    """Services with a watchdog, and its supervisor."""

    def __init__(self, supervisor: RecordingNotifier) -> None:
        super().__init__()
        self.supervisor = supervisor
        self.watchdog = Watchdog(self.services, cast("Any", supervisor))

    async def beat(self, seconds: float = 2.0) -> None:
        """Let one more notification pass."""
        self.clock.advance(seconds)
        await self.clock.until_sleeping(seconds)


@asynccontextmanager
async def _watched(**options: Any) -> AsyncIterator[Watched]:
    made = Watched(RecordingNotifier(**options))
    async with running_watchdog(made.watchdog):
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


async def test_a_refresher_that_stands_still_starves_the_watchdog() -> None:
    """The store answers, and still its loop does not come round: only a restart helps."""
    async with _watched() as made:
        made.lifecycle.beat_age = 15.1
        await made.beat()
        await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 1
        made.lifecycle.beat_age = 0.1
        await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 2


@pytest.mark.parametrize("trouble", ["store_unavailable", "no response for 2 s"])
async def test_a_store_that_does_not_answer_kills_nobody(trouble: str) -> None:
    """The refresher waits for it: what only the memory holds must not be lost for that."""
    async with _watched() as made:
        made.lifecycle.beat_age = 1000.0
        made.lifecycle.trouble = trouble
        await made.beat()
        assert made.supervisor.heard("WATCHDOG=1") == 2


async def test_it_says_once_a_minute_how_it_is() -> None:
    """One line, at the start and then with each minute."""
    async with _watched(watchdog=None) as made:
        for _ in range(11):
            await made.beat(10.0)
        assert made.supervisor.heard("STATUS=keeps 42 connections fresh") == 2


async def test_it_says_what_is_wrong() -> None:
    """Whatever an administrator has to mend is in the line."""
    async with _watched() as made:
        made.store.last_write_error = "SQLITE_FULL"
        lifecycle = made.lifecycle
        lifecycle.names = ["a-1"]
        lifecycle.refused, lifecycle.held = "invalid_client", True
        lifecycle.block = AmoBlock(since=START, probe_at=START, exchange_at=START)
        lifecycle.frozen = Freeze(at=datetime(2026, 11, 24, tzinfo=UTC), why="asked for", elsewhere=False)
        made.watchdog.ready()
        [ready, status] = made.supervisor.told[-1]
        assert ready == "READY=1"
        assert status == (
            "STATUS=the database cannot be written (SQLITE_FULL); AMO refuses our credentials; AMO blocks this "
            "server's address; 1 new pairs wait for the database; frozen, nothing is refreshed; too many connections "
            "failed at once"
        )


async def test_at_the_end_it_asks_for_more_time_while_a_pair_is_in_memory_alone() -> None:
    """Neither stored nor in its rescue file: a kill would lose it. Once it is safe nothing more is asked for."""
    async with _watched() as made:
        made.watchdog.stop()
        made.watchdog.stop()
        made.lifecycle.at_risk = True
        await made.beat()
        await made.beat()
        made.lifecycle.at_risk = False
        await made.beat()
        said = made.supervisor.told
        assert made.supervisor.heard("STOPPING=1") == 1
        assert said[-2:] == [("EXTEND_TIMEOUT_USEC=30000000",)] * 2
        assert made.supervisor.heard("WATCHDOG=1") == 1


async def test_before_it_is_ready_it_says_nothing() -> None:
    """A start takes as long as it takes; what is told first is that it is over."""
    made = Watched(RecordingNotifier())
    async with running_watchdog(made.watchdog):
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
