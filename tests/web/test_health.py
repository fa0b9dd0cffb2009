"""Liveness and readiness."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from amo_callback.model import AmoBlock, Freeze
from amo_callback.stats import StoreStats
from amo_callback.store import Store
from amo_callback.store.sqlite import SqliteStore
from amo_callback.web.composition import Services
from amo_callback.web.health import checks, is_alive, service_status, status_line
from tests.builders import some_stats
from tests.fakes import START
from tests.service import Running
from tests.wait_limit import WAIT_LIMIT


class FakeLifecycle:
    """A fake token lifecycle that also replaces each of its parts."""

    def __init__(self) -> None:
        self.heartbeat_age = self.failed_for = 0.0
        self.in_flight = self.count = 0
        self.refused: str | None = None
        self.proven = True
        self.terminal_suspended = False
        self.frozen: Freeze | None = None
        self.block: AmoBlock | None = None
        self.names: Sequence[str] = ()
        self.last: StoreStats | None = some_stats(active=42, fresh=42)
        self.age: float | None = 0.0
        self.seconds: float | None = 0.0
        self.problem: str | None = None

    @property
    def scheduler(self) -> FakeLifecycle:
        return self

    breaker = address_block = credentials = pending_writes = raw_answers = freeze_switch = stats_poller = (
        coordinator
    ) = scheduler


class FakeServices:
    """The services that the checks read."""

    def __init__(self, *, poll_interval: float = 5.0) -> None:
        self.lifecycle = FakeLifecycle()
        self.store = SimpleNamespace(last_write_error=None, clock_skew=0.0)
        self.settings = SimpleNamespace(
            refresh=SimpleNamespace(poll_interval=poll_interval), webhook=SimpleNamespace(url=None)
        )

    @property
    def services(self) -> Services:
        return cast("Services", self)


async def test_healthz_on_both_listeners_is_200_without_key(app: Running) -> None:
    """`/healthz` needs neither a key nor the store."""
    for answer in (await app.public("/healthz"), await app.private("/healthz", key=None)):
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_readyz_working_service_is_200_with_every_check(app: Running) -> None:
    """`/readyz` needs no key, and is 200 with the result of every check from the first request on."""
    answer = await app.private("/readyz", key=None)
    assert answer.status == 200
    assert answer.json()["status"] == "ready"
    names = [
        "store",
        "refresher",
        "amo_credentials",
        "amo_blocked",
        "hosts",
        "unsaved_pairs",
        "frozen",
        "mass_failure",
        "clock",
        "fresh",
    ]
    assert {name: check["ok"] for name, check in answer.json()["checks"].items()} == dict.fromkeys(names, True)


async def test_readyz_old_heartbeat_is_503(app: Running) -> None:
    """A refresher whose heartbeat is older than 15 s, or three poll intervals, fails readiness."""
    app.service.services.core.stop.set()
    await asyncio.sleep(0)
    app.clock.advance(16)
    answer = await app.private("/readyz", key=None)
    assert answer.status == 503
    assert answer.json()["checks"]["refresher"]["ok"] is False


BLOCK = AmoBlock(since=START, probe_at=START + timedelta(minutes=15), exchange_at=START)
BLOCKED = (
    "AMO has answered every refresh with 403 since 2026-11-23T12:00:00Z; refreshing is paused until a probe succeeds "
    "(next probe: 2026-11-23T12:15:00Z): ask AMO's support to unblock this server's IP address"
)
ALL_ROUNDS = "every refresh round has failed for 15 s: see refresher.failed in the log"
OTHER_CLIENT = "accepted; connections with tokens of another client_id: 3 (their users must connect again)"
HOLD = "{} of 3 active connections have a valid access token"
NOT_POLLED, OUTDATED = "the database has not been polled yet", "the database has not been polled for 31 s"
AHEAD, BEHIND = (
    f"this machine's clock is {off} the database's: synchronize both clocks by NTP"
    for off in ("61 s ahead of", "86400 s behind")
)


@pytest.mark.parametrize(
    ("facts", "name", "ok", "detail"),
    [
        ({"failed_for": 15.0}, "refresher", True, ""),
        ({"failed_for": 15.1}, "refresher", False, ALL_ROUNDS),
        ({"last": some_stats(mismatched=3)}, "amo_credentials", True, OTHER_CLIENT),
        ({}, "hosts", True, "all allowed"),
        ({"last": some_stats(hosts_not_allowed=3)}, "hosts", False, "3 active connections have hosts"),
        ({"last": None, "problem": NOT_POLLED}, "store", False, NOT_POLLED),
        ({"last": None, "problem": NOT_POLLED}, "fresh", False, f"unknown: {NOT_POLLED}"),
        ({"problem": OUTDATED}, "store", False, OUTDATED),
        ({"problem": OUTDATED}, "fresh", False, f"unknown: {OUTDATED}"),
        ({"last_write_error": "SQLITE_FULL"}, "store", False, "writes fail: SQLITE_FULL"),
        ({"clock_skew": 60.0}, "clock", True, "agrees with the database's clock"),
        ({"clock_skew": -60.0}, "clock", True, "agrees with the database's clock"),
        ({"clock_skew": 60.6}, "clock", False, AHEAD),
        ({"clock_skew": -86400.0}, "clock", False, BEHIND),
        (
            {"last": some_stats(active=3, fresh=1)},
            "fresh",
            False,
            HOLD.format(1),
        ),
        ({"last": some_stats(active=3, fresh=2)}, "fresh", True, HOLD.format(2)),
        ({}, "amo_blocked", True, "not blocked"),
        ({"block": BLOCK}, "amo_blocked", False, BLOCKED),
    ],
)
def test_readiness_check_has_result_and_detail(facts: dict[str, Any], name: str, ok: bool, detail: str) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """Readiness and status report the same failures, and the detail states what to do."""
    fake = FakeServices()
    for fact, value in facts.items():
        setattr(fake.store if hasattr(fake.store, fact) else fake.lifecycle, fact, value)
    [check] = [check for check in checks(fake.services) if check.name == name]
    assert (check.ok, detail in check.detail) == (ok, True), check.detail
    assert service_status(fake.services).checks[name] is ok


def test_refresher_check_accepts_heartbeat_of_three_poll_intervals() -> None:
    """With a long poll interval the heartbeat may be up to three intervals old."""
    fake = FakeServices(poll_interval=60)
    for age, ok in ((0.0, True), (180.0, True), (180.1, False)):
        fake.lifecycle.heartbeat_age = age
        assert {check.name: check.ok for check in checks(fake.services)}["refresher"] is ok


@pytest.mark.parametrize(
    ("heartbeat_age", "problem", "alive"),
    [(15.0, None, True), (15.1, None, False), (1000.0, "store_unavailable", True), (1000.0, "no answer for 2 s", True)],
)
def test_liveness_old_heartbeat_fails_unless_store_is_unavailable(
    heartbeat_age: float, problem: str | None, *, alive: bool
) -> None:
    """A refresher that waits for its store passes liveness, because a restart would lose pairs held in memory."""
    fake = FakeServices()
    fake.lifecycle.heartbeat_age, fake.lifecycle.problem = heartbeat_age, problem
    assert is_alive(fake.services) is alive


def test_status_line_lists_problems_or_fresh_connections() -> None:
    """The line lists every problem that the operator must fix, otherwise the number of fresh connections."""
    fake = FakeServices()
    assert status_line(fake.services) == "refreshing 42 active connections"
    fake.store.last_write_error = "SQLITE_FULL"
    lifecycle = fake.lifecycle
    lifecycle.names = ["a-1"]
    lifecycle.refused, lifecycle.terminal_suspended = "invalid_client", True
    lifecycle.block = AmoBlock(since=START, probe_at=START, exchange_at=START)
    lifecycle.frozen = Freeze(at=START, why="asked for", may_be_copy=False)
    assert status_line(fake.services) == (
        "writes to the database fail (SQLITE_FULL); AMO rejects the client credentials; "
        "AMO blocks this server's address; 1 token pairs are not in the database yet; all connections are frozen; "
        "too many connections failed at once"
    )


async def test_readyz_table_lost_at_run_time_is_503_after_next_poll(app: Running) -> None:
    """A table that is lost at run time fails readiness after the next stats poll."""

    def lose() -> None:
        database = sqlite3.connect(app.folder / "amo-callback.db")
        database.execute("ALTER TABLE meta RENAME TO gone")
        database.close()

    await asyncio.to_thread(lose)
    await app.service.services.lifecycle.stats_poller.poll()
    answer = await app.private("/readyz", key=None)
    assert (answer.status, answer.json()["checks"]["store"]["ok"]) == (503, False)


@asynccontextmanager
async def _blocked(store: Store) -> AsyncIterator[None]:
    """Keep one read of the store blocked within the context."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(WAIT_LIMIT)

    reader = cast("SqliteStore", store)._reader  # noqa: SLF001 -- because from outside only a failing disk does it
    await reader.create_function("wait", 0, wait)
    reading = asyncio.create_task(reader.execute_fetchall("SELECT wait()"))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        go_on.set()
        await reading


async def test_readyz_blocked_store_is_503_without_waiting(app: Running) -> None:
    """While the store does not respond, `/readyz` and `/metrics` answer immediately and report it."""
    stats_poller = app.service.services.lifecycle.stats_poller
    async with _blocked(app.service.services.store):
        looking = asyncio.create_task(stats_poller.poll())
        await app.clock.until_sleeping(2)
        app.clock.advance(2)
        await looking
        answer = await app.private("/readyz", key=None)
        assert answer.status == 503
        assert answer.json()["checks"]["store"] == {"ok": False, "detail": "the database has not responded for 2 s"}
        assert 'amo_callback_check_ok{check="store"} 0.0' in (await app.private("/metrics", key=None)).text
    await stats_poller.poll()
    assert (await app.private("/readyz", key=None)).status == 200
