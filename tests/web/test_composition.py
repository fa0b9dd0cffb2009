"""The service's start, shutdown and reload."""

import asyncio
from typing import Any

import pytest

from amo_callback.cli.serve import until_end
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.errors import ConfigurationError, TaskDied
from tests.fakes import ShiftedClock
from tests.service import ADMIN_KEY, API_KEY, BASE, READ_KEY, Running, environment


class FatalError(BaseException):
    """An exception that no loop handles."""


class FailingClock(ShiftedClock):
    """A clock that raises `FatalError` from a sleep of one poll interval."""

    async def sleep(self, seconds: float) -> None:
        if seconds == 5.0:
            raise FatalError
        await super().sleep(seconds)


async def test_serve_signal_exits_with_status_0(app: Running) -> None:
    """A signal ends the process with status 0, because a requested stop is no failure."""
    signalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    signalled.set_result(None)
    assert await until_end(app.service, signalled) == 0


async def test_serve_refresher_failure_exits_with_status_1(run: Any) -> None:
    """If the refresher fails, the process exits with status 1, so that it is restarted."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with run(clock=FailingClock()) as app:
        assert await until_end(app.service, never) == 1
        with pytest.raises(TaskDied):
            await app.service.died
    assert isinstance(app.witness.named("refresher.died")[0].error, FatalError)


class Supervisor:
    """A supervisor that records its notifications."""

    enabled, watchdog = True, 27.0

    def __init__(self) -> None:
        self.received: list[str] = []

    def __call__(self, *facts: str) -> None:
        self.received += facts


async def test_supervisor_failed_refresher_gets_no_watchdog_pending_write_gets_time(run: Any) -> None:
    """A failed refresher stops the watchdog notifications; a pending write at shutdown extends the stop timeout."""
    supervisor, clock = Supervisor(), FailingClock()
    async with run(clock=clock, supervisor=supervisor) as app:
        assert supervisor.received[:2] == ["READY=1", "STATUS=refreshing 0 active connections"]
        await app.witness.until("refresher.died")
        await clock.until_sleeping(9)
        clock.advance(16)
        await clock.until_sleeping(9)
        assert supervisor.received.count("WATCHDOG=1") == 1
        with app.service.services.lifecycle.pending_writes.expecting():
            app.service.stop()
            clock.advance(9)
            await clock.until_sleeping(9)
        assert supervisor.received[-1] == "EXTEND_TIMEOUT_USEC=30000000"


async def test_service_start_failed_listener_releases_resources(run: Any) -> None:
    """A start that fails at a listener leaves no task, lock or file open, and the next start succeeds."""
    with pytest.raises(ConfigurationError, match=r"server\.private"):
        async with run(SERVER__PRIVATE="unix:/nowhere/at/all"):
            pass
    assert {task.get_name() for task in asyncio.all_tasks()} & {"refresher", "amo-rate-limiter"} == set()
    async with run():
        pass


async def test_service_start_wrong_encryption_keys_raises(app: Running, run: Any) -> None:
    """With keys that do not decrypt the store, the service does not start."""
    with pytest.raises(ConfigurationError, match="no configured key decrypts this database"):
        async with run(STORAGE__ENCRYPTION_KEYS=new_key()):
            pass
    assert (await app.public("/healthz")).status == 200


async def test_requests_with_unwritable_log_are_answered(app: Running) -> None:
    """If the log cannot be written, users still return to the app and backends still get tokens."""
    app.log.close()
    connection = await app.connected()
    assert (await app.public("/healthz")).status == 200
    assert (await app.private(f"/connections/{connection}/token")).status == 200
    assert (await app.callback("code=" + "c" * 40_000)).status == 400


async def test_shutdown_refresh_started_by_hand_out_is_stored(run: Any) -> None:
    """A refresh whose caller no longer waits is finished before the store closes."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(800)
        assert (await app.late(app.private(f"/connections/{connection}/token"))).json()["stale"] is True
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "refresh.succeeded" in app.witness.names()


async def test_shutdown_exchange_started_by_callback_is_stored(run: Any) -> None:
    """An exchange whose caller no longer waits is finished before the store closes."""
    async with run() as app:
        assert "error=amo_unavailable" in (await app.late(app.callback(app.query()))).location
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "connection.connected" in app.witness.names()


async def test_shutdown_callback_in_progress_is_answered(run: Any) -> None:
    """The listeners drain: a callback received before shutdown is answered with the deep link."""
    async with run() as app:
        app.amo.sandbox.latency = 0.3
        asking = asyncio.create_task(app.callback(app.query(state="s")))
        await app.amo.sandbox.until_asked(1)
        app.service.stop()
    answer = await asking
    assert (answer.status, "?code=" in answer.location) == (302, True)


# --- reload ---------------------------------------------------------------------------------------


NEW_KEY = "a-new-key-0123456789-0123456789-0123456789-01"


async def test_reload_api_keys_take_effect_immediately(app: Running, encryption_key: str) -> None:
    """After a reload new API keys are accepted and removed keys rejected; both may be configured for a while."""
    both = {"API__KEYS": f"backend:{API_KEY}\nnew:{NEW_KEY}"}
    assert app.service.reload(load_settings(None, environment(app.amo, encryption_key, **both))) == []
    for key in (API_KEY, NEW_KEY):
        assert (await app.private("/connections", key=key)).status == 200
    alone = {"API__KEYS": f"new:{NEW_KEY}"}
    app.service.reload(load_settings(None, environment(app.amo, encryption_key, **alone)))
    answers = [(await app.private("/connections", key=key)).status for key in (API_KEY, READ_KEY, ADMIN_KEY, NEW_KEY)]
    assert answers == [401, 401, 401, 200]


async def test_reload_names_settings_that_require_restart(app: Running, encryption_key: str) -> None:
    """The reload returns the names, not the values, of changed settings that require a restart."""
    more = {"AMO__CLIENT_SECRET": "another", "LOG__LEVEL": "debug", "API__KEYS": f"new:{NEW_KEY}"}
    changed = app.service.reload(load_settings(None, environment(app.amo, encryption_key, **more)))
    assert changed == ["amo.client_secret", "log.level"]


async def test_reload_limits_take_effect_immediately(app: Running, encryption_key: str) -> None:
    """Changed limits apply immediately to an address's codes and to the connects that it starts."""

    async def junk() -> list[str]:
        answers = [await app.callback(app.query(code=f"junk{number}", state="s")) for number in range(2)]
        return [answer.location.partition("error=")[2].partition("&")[0] for answer in answers]

    async def starts() -> list[int]:
        return [(await app.public(f"{BASE}/connect")).status for _ in range(2)]

    for failed_codes in ("1", "3"):
        fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES=failed_codes))
        assert app.service.reload(fresh) == []
        assert await junk() == (["auth_failed", "rate_limited"] if failed_codes == "1" else ["auth_failed"] * 2)
        assert await starts() == ([303, 302] if failed_codes == "1" else [303, 303])
    fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES="3", LIMITS__WINDOW="3600"))
    assert app.service.reload(fresh) == []
    app.clock.advance(60)
    assert await starts() == [302, 302]
