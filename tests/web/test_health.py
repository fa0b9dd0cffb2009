"""Alive, and ready."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, cast

from amo_callback.web.health import Readiness
from tests.fakes import FailingStore, FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.custody.build import Custody
    from amo_callback.ports import Store
    from tests.conftest import Running


async def test_both_doors_say_that_the_process_lives(app: Running) -> None:
    """`/healthz` needs no key and no store."""
    for answer in (await app.public("/healthz"), await app.private("/healthz", key=None)):
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_a_working_service_is_ready(app: Running) -> None:
    """Store readable, refresher beating: 200, with a word about each, and no key needed."""
    answer = await app.private("/readyz", key=None)
    assert answer.status == 200
    assert answer.json()["status"] == "ready"
    assert {name: check["ok"] for name, check in answer.json()["checks"].items()} == {
        "store": True,
        "refresher": True,
        "amo_credentials": True,
        "unsaved_pairs": True,
        "frozen": True,
        "verdicts": True,
        "fresh": True,
    }


async def test_a_refresher_that_does_not_beat_is_not_ready(app: Running) -> None:
    """A loop that hangs is told after 15 s, or three poll intervals."""
    refresher = app.service.services.custody.refresher
    refresher.stop()
    await asyncio.sleep(0)
    app.clock.advance(16)
    answer = await app.private("/readyz", key=None)
    assert answer.status == 503
    assert answer.json()["checks"]["refresher"]["ok"] is False


class Beat:
    """A refresher of a given age, and nothing wrong with the rest."""

    beat_age = 0.0
    refused: str | None = None
    held = False
    frozen = None
    names: Sequence[str] = ()

    @property
    def refresher(self) -> Beat:
        return self

    breaker = unsaved = freezer = refresher


async def test_the_oldest_beat_follows_the_poll_interval(store: Store, clock: FakeClock) -> None:
    """At a slow poll interval the loop may be silent for three of them."""
    beat = Beat()
    readiness = Readiness(store=store, custody=cast("Custody", beat), clock=clock, poll_interval=60)
    for age, ok in ((0.0, True), (180.0, True), (180.1, False)):
        beat.beat_age = age
        assert (await readiness.checks())["refresher"]["ok"] is ok


async def test_a_store_that_is_away_is_not_ready(store: Store, clock: FakeClock) -> None:
    """Away, or without an answer for two seconds."""
    failing = FailingStore(store, clock)
    failing.away = {"ping"}
    readiness = Readiness(store=cast("Store", failing), custody=cast("Custody", Beat()), clock=clock, poll_interval=5)
    assert (await readiness.checks())["store"] == {"ok": False, "detail": "store_unavailable"}


async def test_a_store_that_hangs_is_not_ready(clock: FakeClock) -> None:
    """Readiness itself is never late."""

    class Hanging:
        async def ping(self) -> None:
            await clock.sleep(3600)

        async def fleet(self, **_: object) -> None:
            await clock.sleep(3600)

    readiness = Readiness(store=cast("Store", Hanging()), custody=cast("Custody", Beat()), clock=clock, poll_interval=5)
    checking = asyncio.create_task(readiness.checks())
    await clock.until_sleeping(2)
    clock.advance(2)
    assert (await checking)["store"] == {"ok": False, "detail": "no answer within 2 s"}


async def test_a_lost_table_is_told_by_the_running_service(app: Running) -> None:
    """What breaks below a running service reaches its readiness."""

    def lose() -> None:
        database = sqlite3.connect(app.folder / "amo-callback.db")
        database.execute("ALTER TABLE meta RENAME TO gone")
        database.close()

    await asyncio.to_thread(lose)
    answer = await app.private("/readyz", key=None)
    assert (answer.status, answer.json()["checks"]["store"]["ok"]) == (503, False)
