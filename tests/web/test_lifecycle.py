"""Life and death of the service."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.cipher import new_key
from amo_callback.cli.serve import until_end
from amo_callback.config.loader import load_settings
from amo_callback.errors import ConfigurationError, TaskDied
from amo_callback.observe.log import make_logger
from amo_callback.web.lifecycle import Home, open_service
from tests.conftest import environment
from tests.fakes import ShiftedClock, Witness

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Amo, Running


class Death(BaseException):
    """What no loop survives."""


class DeadlyClock(ShiftedClock):
    """A clock that kills who sleeps for the poll interval."""

    async def sleep(self, seconds: float) -> None:
        if seconds == 5.0:
            raise Death
        await super().sleep(seconds)


def _home(folder: Path) -> Home:
    return Home(folder=folder, rescue=folder / "rescue", machine="here")


async def test_a_refresher_that_dies_ends_the_process_with_a_status(
    amo: Amo, encryption_key: str, tmp_path: Path, witness: Witness
) -> None:
    """A dead refresher would let every token expire in silence: the process ends non-zero, and is started again."""
    settings = load_settings(None, environment(amo, encryption_key))
    log = make_logger(level="info", style="json", stream=io.StringIO())
    clock = ShiftedClock()
    clock_of_death = DeadlyClock()
    signalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with open_service(settings, home=_home(tmp_path), clock=clock, log=log, observer=witness) as service:
        signalled.set_result(None)
        assert await until_end(service, signalled) == 0
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with open_service(settings, home=_home(tmp_path), clock=clock_of_death, log=log, observer=witness) as service:
        assert await until_end(service, never) == 1
        with pytest.raises(TaskDied):
            await service.died
    assert isinstance(witness.named("refresher.died")[0].error, Death)


async def test_a_door_that_cannot_open_closes_what_was_opened(
    amo: Amo, encryption_key: str, tmp_path: Path, witness: Witness
) -> None:
    """A start that fails half way leaves no task, no lock and no file open: the next one works."""
    log = make_logger(level="info", style="json", stream=io.StringIO())

    def settings(private: str) -> Any:
        return load_settings(None, environment(amo, encryption_key, SERVER__PRIVATE=private))

    clock = ShiftedClock()
    with pytest.raises(ConfigurationError, match=r"server\.private"):
        async with open_service(
            settings("unix:/nowhere/at/all"),
            home=_home(tmp_path),
            clock=clock,
            log=log,
            observer=witness,
        ):
            pass
    assert {task.get_name() for task in asyncio.all_tasks()} & {"refresher", "amo-pace"} == set()
    async with open_service(settings("127.0.0.1:0"), home=_home(tmp_path), clock=clock, log=log, observer=witness):
        pass


async def test_a_store_of_other_keys_is_not_touched(app: Running, run: Any) -> None:
    """With keys that do not open it, the service does not begin."""
    with pytest.raises(ConfigurationError, match="none of them opens this database"):
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
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(800)
        app.amo.sandbox.faults.add(Fault.SLOW)
        asking = asyncio.create_task(app.private(f"/connections/{connection}/token"))
        await app.amo.sandbox.until_asked(2)
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        assert (await asking).json()["stale"] is True
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "refresh.succeeded" in app.witness.names()


async def test_what_a_callback_began_is_stored_at_the_end(run: Any) -> None:
    """An exchange that nobody waits for any more is still finished before the store closes."""
    async with run() as app:
        app.amo.sandbox.faults.add(Fault.SLOW)
        asking = asyncio.create_task(app.callback(app.query()))
        await app.amo.sandbox.until_asked(1)
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        assert "error=amo_unavailable" in (await asking).location
        asyncio.get_running_loop().call_later(0.1, app.amo.sandbox.go_on.set)
    assert "connection.connected" in app.witness.names()


async def test_a_callback_in_progress_at_the_end_is_answered(run: Any) -> None:
    """The doors drain: who came before the end gets back to the app."""
    async with run() as app:
        app.amo.sandbox.latency = 0.3
        asking = asyncio.create_task(app.callback(app.query(state="s")))
        await app.amo.sandbox.until_asked(1)
        app.service.stop()
    answer = await asking
    assert (answer.status, "?code=" in answer.location) == (302, True)
