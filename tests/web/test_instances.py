"""Two instances of the service on one PostgreSQL: whichever is asked, the answer is the same."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.fakes import ShiftedClock
from tests.postgres import Databases
from tests.service import ADMIN_KEY, BASE, HOST, Running, run_service, serve_amo


@pytest.fixture
def instances(tmp_path: Path, encryption_key: str, postgres: Databases) -> Any:
    """Return how to run two instances with some settings of one's own."""

    @asynccontextmanager
    async def running(**more: Any) -> AsyncIterator[tuple[Running, Running]]:
        clock, started = ShiftedClock(), []
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(postgres.fresh())
            amo = await stack.enter_async_context(serve_amo(clock))
            for name in ("one", "two"):
                one = run_service(
                    amo, encryption_key, tmp_path, clock=clock, machine="", rescue=name, STORAGE__URL=url, **more
                )
                started.append(await stack.enter_async_context(one))
            yield started[0], started[1]

    return running


async def _heard(instance: Running) -> None:
    """Wait until an instance has heard all that was committed so far."""
    await instance.service.services.store.data_version()


async def test_a_callback_is_answered_alike_by_whichever_it_reaches(instances: Any) -> None:
    """Reloaded at another instance, its code is not spent again; and the app learns its outcome from that one, too."""
    async with instances() as (one, two):
        query = one.query()
        first = await one.callback(query)
        again = await two.callback(query)
        assert (first.status, again.status, again.location) == (302, 302, first.location)
        code = query.partition("code=")[2].partition("&")[0]
        told = await two.public(f"{BASE}/exchange-code", method="POST", json={"code": code})
        assert (told.status, told.json()["data"]["connected"]) == (200, True)
        assert len(one.amo.fake.ledger.exchanges()) == 1


async def test_a_grant_that_was_started_at_one_instance_ends_at_another(instances: Any) -> None:
    """Its state is known there, and used with one code, wherever that is tried; each has the return page."""
    async with instances() as (one, two):
        page = await one.callback(one.query(), html=True)
        shown = await two.public(page.location, headers={"Accept": "text/html"})
        assert (page.status, shown.status, "foryoure://amo-crm/callback?code=" in shown.text) == (303, 200, True)
        started = await one.private("/authorizations", method="POST", json={"owner": "42"})
        state = started.json()["state"]
        assert (await two.callback(one.query(state=state))).location.startswith("foryoure://amo-crm/callback?code=")
        assert "error=invalid_state" in (await one.callback(one.query(state=state))).location
        found = await one.private("/connections/owner:42")
        assert found.json()["domain"] == HOST


async def test_a_ticket_of_one_instance_is_redeemed_at_another(instances: Any) -> None:
    """It stands for the grant, not for who wrote it."""
    async with instances(APP__HAND_BACK="ticket") as (one, two):
        answer = await one.callback(one.query())
        ticket = answer.location.partition("code=")[2].partition("&")[0]
        told = await two.public(f"{BASE}/exchange-code", method="POST", json={"code": ticket})
        assert told.json()["data"]["connected"] is True


async def test_a_429_at_one_instance_pauses_all(instances: Any) -> None:
    """AMO means the integration, not the instance that asked: the others would go on until all of them are banned."""
    async with instances() as (one, _two):
        one.amo.sandbox.faults.add(Fault.TOO_MANY)
        database = await asyncpg.connect(one.settings.storage.url.get_secret_value())
        before = await database.fetchval("SELECT extract(epoch FROM now()) * 1000000")
        assert "error=amo_unavailable" in (await one.callback(one.query())).location
        assert await database.fetchval("SELECT free_at FROM slots") - before >= 1_000_000  # AMO asked for a second
        await database.close()


async def test_a_change_that_nobody_told_of_is_seen_within_a_second(instances: Any) -> None:
    """Written by hand, or told through a pooler that takes messages away: what was read is certain for no longer."""
    async with instances() as (one, two):
        name = await one.connected()
        path = f"/connections/{name}/token"
        for _ in range(2):
            assert (await two.private(path)).status == 200
            await _heard(two)
        database = await asyncpg.connect(one.settings.storage.url.get_secret_value())
        await database.execute("UPDATE connections SET status = 'disconnected', sealed_pair = NULL")
        await database.close()
        two.clock.advance(0.5)
        await two.private(path)  # that it is asked for all the time makes it no more certain
        await _heard(two)
        two.clock.advance(0.5)
        assert (await two.private(path)).status == 404


async def test_what_one_instance_changes_the_other_hands_out(instances: Any) -> None:
    """A new pair, a freeze, a disconnect: as soon as it was committed."""
    async with instances() as (one, two):
        name = await one.connected()
        path = f"/connections/{name}/token"
        before = (await two.private(path)).json()["access_token"]
        rejected = {"rejected_access_token": before}
        refreshed = await one.private(f"/connections/{name}/refresh", method="POST", json=rejected)
        await _heard(two)
        after = (await two.private(path)).json()["access_token"]
        assert (after == before, after) == (False, refreshed.json()["access_token"])
        await one.private("/freeze", method="POST", key=ADMIN_KEY)
        await _heard(two)
        frozen = await two.private(f"/connections/{name}/refresh", method="POST")
        assert (frozen.status, frozen.json()["code"]) == (503, "frozen")
        await one.private("/thaw", method="POST", key=ADMIN_KEY)
        await one.private(f"/connections/{name}", method="DELETE", key=ADMIN_KEY)
        await _heard(two)
        assert (await two.private(path)).status == 404
