"""Alive, and ready."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

import pytest

from amo_callback.model import AmoBlock
from amo_callback.store import Store
from amo_callback.store.sqlite import SqliteStore
from amo_callback.web.health import checks, service_status
from tests.builders import a_survey
from tests.conftest import Running
from tests.fakes import START
from tests.patience import PATIENCE
from tests.web.fake_services import FakeServices


async def test_both_doors_say_that_the_process_lives(app: Running) -> None:
    """`/healthz` needs no key and no store."""
    for answer in (await app.public("/healthz"), await app.private("/healthz", key=None)):
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_a_working_service_is_ready_from_its_first_answer_on(app: Running) -> None:
    """Store readable, refresher beating: 200, with a word about each, and no key needed."""
    answer = await app.private("/readyz", key=None)
    assert answer.status == 200
    assert answer.json()["status"] == "ready"
    assert {name: check["ok"] for name, check in answer.json()["checks"].items()} == {
        "store": True,
        "refresher": True,
        "amo_credentials": True,
        "amo_blocked": True,
        "hosts": True,
        "unsaved_pairs": True,
        "frozen": True,
        "mass_failure": True,
        "clock": True,
        "fresh": True,
    }


async def test_a_refresher_that_does_not_beat_is_not_ready(app: Running) -> None:
    """A loop that hangs is told after 15 s, or three poll intervals."""
    app.service.services.core.stop.set()
    await asyncio.sleep(0)
    app.clock.advance(16)
    answer = await app.private("/readyz", key=None)
    assert answer.status == 503
    assert answer.json()["checks"]["refresher"]["ok"] is False


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


def _checks(fake: FakeServices) -> dict[str, tuple[bool, str]]:
    return {check.name: (check.ok, check.detail) for check in checks(fake.services)}


def test_the_oldest_heartbeat_follows_the_poll_interval() -> None:
    """At a slow poll interval the loop may be silent for three of them."""
    fake = FakeServices(poll_interval=60)
    for age, ok in ((0.0, True), (180.0, True), (180.1, False)):
        fake.lifecycle.beat_age = age
        assert _checks(fake)["refresher"][0] is ok


def test_a_refresher_whose_every_round_fails_is_not_ready(fake: FakeServices) -> None:
    """It comes round, and refreshes nothing."""
    for seconds, ok in ((0.0, True), (15.0, True), (15.1, False)):
        fake.lifecycle.failed_for = seconds
        assert _checks(fake)["refresher"][0] is ok
    assert _checks(fake)["refresher"][1] == "every round has failed for 15 s: see refresher.failed in the log"


def test_connections_of_another_client_id_are_named_and_make_nothing_red(fake: FakeServices) -> None:
    """They are their users' matter: the check stays good and says how many there are."""
    fake.lifecycle.last = a_survey(mismatched=3)
    check = _checks(fake)["amo_credentials"]
    assert check == (True, "accepted; connections of another client_id: 3 (their users must connect again)")


def test_hosts_that_are_not_allowed_are_counted_and_red(fake: FakeServices) -> None:
    """The detail names the setting, and what to do instead of changing it."""
    assert _checks(fake)["hosts"] == (True, "all allowed")
    fake.lifecycle.last = a_survey(hosts_not_allowed=3)
    check = _checks(fake)["hosts"]
    assert not check[0]
    assert "amo.allowed_domains: 3. Nothing is sent there" in check[1]


def test_before_anything_was_seen_it_is_not_ready(fake: FakeServices) -> None:
    """What is not known yet is not said to be good."""
    fake.lifecycle.last, fake.lifecycle.trouble = None, "not looked at yet"
    found = _checks(fake)
    assert found["store"] == (False, "not looked at yet")
    assert found["fresh"] == (False, "unknown: not looked at yet")


def test_what_was_seen_before_the_store_fell_silent_is_not_believed(fake: FakeServices) -> None:
    """A good result that is too old is no good result."""
    fake.lifecycle.trouble = "last looked at 31 s ago"
    found = _checks(fake)
    assert found["store"] == (False, "last looked at 31 s ago")
    assert found["fresh"] == (False, "unknown: last looked at 31 s ago")


def test_a_store_that_can_be_read_and_not_written_is_not_ready(fake: FakeServices) -> None:
    """The last write tells, at once."""
    fake.store.last_write_error = "SQLITE_FULL"
    assert _checks(fake)["store"] == (False, "cannot be written: SQLITE_FULL")


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (60.0, (True, "right")),
        (-60.0, (True, "right")),
        (60.6, (False, "this machine's clock is 61 s ahead of the database's: set both by NTP")),
        (-86400.0, (False, "this machine's clock is 86400 s behind the database's: set both by NTP")),
    ],
)
def test_a_clock_a_minute_off_the_databases_is_not_ready(
    fake: FakeServices, ahead: float, expected: tuple[bool, str]
) -> None:
    """JWTs are checked by the machine's clock; what is stored is told by the database's."""
    fake.store.clock_skew = ahead
    assert _checks(fake)["clock"] == expected


@pytest.mark.parametrize(("fresh", "ok"), [(0, False), (1, False), (2, True), (3, True)])
def test_half_of_the_active_connections_must_hold_a_live_token(fake: FakeServices, fresh: int, ok: bool) -> None:  # noqa: FBT001 -- because a parameter is one
    """Fewer, and it is not ready, whatever else works."""
    fake.lifecycle.last = a_survey(active=3, fresh=fresh)
    told = (ok, f"{fresh} of 3 active connections hold a valid access token")
    assert _checks(fake)["fresh"] == told


def test_a_blocked_address_is_not_ready(fake: FakeServices) -> None:
    """The check says since when, when the next probe leaves, and what to do."""
    assert _checks(fake)["amo_blocked"] == (True, "not blocked")
    fake.lifecycle.block = AmoBlock(since=START, probe_at=START + timedelta(minutes=15), exchange_at=START)
    assert _checks(fake)["amo_blocked"] == (
        False,
        (
            "since 2026-11-23T12:00:00Z AMO answers 403 to every refresh, and nothing is refreshed; the next "
            "probe is sent at 2026-11-23T12:15:00Z. Ask AMO's support to unblock the address of this server"
        ),
    )
    assert service_status(fake.services).checks["amo_blocked"] is False


async def test_a_lost_table_is_told_by_the_running_service(app: Running) -> None:
    """What breaks below a running service reaches its readiness with the next look."""

    def lose() -> None:
        database = sqlite3.connect(app.folder / "amo-callback.db")
        database.execute("ALTER TABLE meta RENAME TO gone")
        database.close()

    await asyncio.to_thread(lose)
    await app.service.services.lifecycle.stats_poller.look()
    answer = await app.private("/readyz", key=None)
    assert (answer.status, answer.json()["checks"]["store"]["ok"]) == (503, False)


@asynccontextmanager
async def _stuck(store: Store) -> AsyncIterator[None]:
    """Let a read of the store end no sooner than the block."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    reader = cast("SqliteStore", store)._reader  # noqa: SLF001 -- because only a dying disk does it from outside
    await reader.create_function("wait", 0, wait)
    reading = asyncio.create_task(reader.execute_fetchall("SELECT wait()"))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        go_on.set()
        await reading


async def test_a_store_that_is_stuck_keeps_nobody_waiting(app: Running) -> None:
    """While nothing can be read, whoever asks how the service does is answered, and told."""
    stats_poller = app.service.services.lifecycle.stats_poller
    async with _stuck(app.service.services.store):
        looking = asyncio.create_task(stats_poller.look())
        await app.clock.until_sleeping(2)
        app.clock.advance(2)
        await looking
        answer = await app.private("/readyz", key=None)
        assert answer.status == 503
        assert answer.json()["checks"]["store"] == {"ok": False, "detail": "no answer for 2 s"}
        assert 'amo_callback_check_ok{check="store"} 0.0' in (await app.private("/metrics", key=None)).text
    await stats_poller.look()
    assert (await app.private("/readyz", key=None)).status == 200
