"""The service's start, end and reload."""

import asyncio
from typing import Any

import pytest

from amo_callback.cli.serve import until_end
from amo_callback.config.loader import load_settings
from amo_callback.crypto import new_key
from amo_callback.errors import ConfigurationError, TaskDied
from tests.fakes import ShiftedClock
from tests.service import ADMIN_KEY, API_KEY, BASE, READ_KEY, Running, environment


class Death(BaseException):
    """What no loop survives."""


class DeadlyClock(ShiftedClock):
    """A clock that kills who sleeps for the poll interval."""

    async def sleep(self, seconds: float) -> None:
        if seconds == 5.0:
            raise Death
        await super().sleep(seconds)


async def test_a_signal_ends_the_process_with_status_0(app: Running) -> None:
    """What a supervisor asks for is no failure."""
    signalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    signalled.set_result(None)
    assert await until_end(app.service, signalled) == 0


async def test_a_refresher_that_dies_ends_the_process_with_a_status(run: Any) -> None:
    """A dead refresher would let every token expire in silence: the process ends non-zero, and is started again."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with run(clock=DeadlyClock()) as app:
        assert await until_end(app.service, never) == 1
        with pytest.raises(TaskDied):
            await app.service.died
    assert isinstance(app.witness.named("refresher.died")[0].error, Death)


class Supervisor:
    """A supervisor that records what it is told."""

    enabled, watchdog = True, 27.0

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, *facts: str) -> None:
        self.told += facts


async def test_a_supervisor_hears_of_a_dead_refresher_and_of_a_pair_in_memory_alone(run: Any) -> None:
    """The watchdog is fed no more, since only a restart helps; at the end more time is asked for."""
    supervisor, clock = Supervisor(), DeadlyClock()
    async with run(clock=clock, supervisor=supervisor) as app:
        assert supervisor.told[:2] == ["READY=1", "STATUS=keeps 0 connections fresh"]
        await app.witness.until("refresher.died")
        await clock.until_sleeping(9)
        clock.advance(16)
        await clock.until_sleeping(9)
        assert supervisor.told.count("WATCHDOG=1") == 1
        with app.service.services.lifecycle.pending_writes.expecting():
            app.service.stop()
            clock.advance(9)
            await clock.until_sleeping(9)
        assert supervisor.told[-1] == "EXTEND_TIMEOUT_USEC=30000000"


async def test_a_listener_that_cannot_open_closes_what_was_opened(run: Any) -> None:
    """A start that fails half way leaves no task, no lock and no file open: the next one works."""
    with pytest.raises(ConfigurationError, match=r"server\.private"):
        async with run(SERVER__PRIVATE="unix:/nowhere/at/all"):
            pass
    assert {task.get_name() for task in asyncio.all_tasks()} & {"refresher", "amo-pace"} == set()
    async with run():
        pass


async def test_a_store_of_other_keys_is_not_touched(app: Running, run: Any) -> None:
    """With keys that do not open it, the service does not begin."""
    with pytest.raises(ConfigurationError, match="none of them decrypts this database"):
        async with run(STORAGE__ENCRYPTION_KEYS=new_key()):
            pass
    assert (await app.public("/healthz")).status == 200


async def test_a_log_that_cannot_be_written_costs_no_request(app: Running) -> None:
    """With the disk under the log full, people still get back to the app, and backends get tokens."""
    app.log.close()
    connection = await app.connected()
    assert (await app.public("/healthz")).status == 200
    assert (await app.private(f"/connections/{connection}/token")).status == 200
    assert (await app.callback("code=" + "c" * 40_000)).status == 400


async def test_what_a_hand_out_began_is_stored_at_the_end(run: Any) -> None:
    """A refresh that nobody waits for any more is still finished before the store closes."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(800)
        assert (await app.late(app.private(f"/connections/{connection}/token"))).json()["stale"] is True
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "refresh.succeeded" in app.witness.names()


async def test_what_a_callback_began_is_stored_at_the_end(run: Any) -> None:
    """An exchange that nobody waits for any more is still finished before the store closes."""
    async with run() as app:
        assert "error=amo_unavailable" in (await app.late(app.callback(app.query()))).location
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "connection.connected" in app.witness.names()


async def test_a_callback_in_progress_at_the_end_is_answered(run: Any) -> None:
    """The listeners drain: who came before the end gets back to the app."""
    async with run() as app:
        app.amo.sandbox.latency = 0.3
        asking = asyncio.create_task(app.callback(app.query(state="s")))
        await app.amo.sandbox.until_asked(1)
        app.service.stop()
    answer = await asking
    assert (answer.status, "?code=" in answer.location) == (302, True)


# --- reload ---------------------------------------------------------------------------------------


NEW_KEY = "a-new-key-0123456789-0123456789-0123456789-01"


async def test_keys_that_were_read_again_hold_at_once(app: Running, encryption_key: str) -> None:
    """The new one is accepted, the old one is not any more; both may be there for a while."""
    both = {"API__KEYS": f"backend:{API_KEY}\nnew:{NEW_KEY}"}
    assert app.service.reload(load_settings(None, environment(app.amo, encryption_key, **both))) == []
    for key in (API_KEY, NEW_KEY):
        assert (await app.private("/connections", key=key)).status == 200
    alone = {"API__KEYS": f"new:{NEW_KEY}"}
    app.service.reload(load_settings(None, environment(app.amo, encryption_key, **alone)))
    answers = [(await app.private("/connections", key=key)).status for key in (API_KEY, READ_KEY, ADMIN_KEY, NEW_KEY)]
    assert answers == [401, 401, 401, 200]


async def test_what_cannot_be_taken_while_it_runs_is_named(app: Running, encryption_key: str) -> None:
    """Never a value: only which settings have changed, and need a restart."""
    more = {"AMO__CLIENT_SECRET": "another", "LOG__LEVEL": "debug", "API__KEYS": f"new:{NEW_KEY}"}
    changed = app.service.reload(load_settings(None, environment(app.amo, encryption_key, **more)))
    assert changed == ["amo.client_secret", "log.level"]


async def test_limits_that_were_read_again_hold_at_once(app: Running, encryption_key: str) -> None:
    """For codes of an address, and for connects that it starts: fewer, then more."""

    async def junk() -> list[str]:
        answers = [await app.callback(app.query(code=f"junk{number}", state="s")) for number in range(2)]
        return [answer.location.partition("error=")[2].partition("&")[0] for answer in answers]

    async def starts() -> list[int]:
        return [(await app.public(f"{BASE}/connect")).status for _ in range(2)]

    for unproven in ("1", "3"):
        fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES=unproven))
        assert app.service.reload(fresh) == []
        assert await junk() == (["auth_failed", "rate_limited"] if unproven == "1" else ["auth_failed"] * 2)
        assert await starts() == ([303, 302] if unproven == "1" else [303, 303])
    fresh = load_settings(None, environment(app.amo, encryption_key, LIMITS__FAILED_CODES="3", LIMITS__WINDOW="3600"))
    assert app.service.reload(fresh) == []
    app.clock.advance(60)
    assert await starts() == [302, 302]
