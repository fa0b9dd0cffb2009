"""Two instances of the service on one PostgreSQL database give the same answers."""

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
    """Return a context manager that runs two instances with the given settings."""

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


async def _synchronized(instance: Running) -> None:
    """Wait until an instance has received every committed change."""
    await instance.service.services.store.data_version()


async def test_callback_repeated_at_other_instance_gets_same_answer(instances: Any) -> None:
    """The code is not exchanged twice, and `exchange-code` at the other instance returns its result."""
    async with instances() as (one, two):
        query = one.query()
        first = await one.callback(query)
        again = await two.callback(query)
        assert (first.status, again.status, again.location) == (302, 302, first.location)
        code = query.partition("code=")[2].partition("&")[0]
        exchanged = await two.public(f"{BASE}/exchange-code", method="POST", json={"code": code})
        assert (exchanged.status, exchanged.json()["data"]["connected"]) == (200, True)
        assert len(one.amo.fake.ledger.exchanges()) == 1


async def test_grant_started_at_one_instance_completes_at_other(instances: Any) -> None:
    """Both instances know the state, which is valid for one code, the code, and the return page."""
    async with instances() as (one, two):
        page = await one.callback(one.query(), html=True)
        shown = await two.public(page.location, headers={"Accept": "text/html"})
        assert (page.status, shown.status, "foryoure://amo-crm/callback?code=" in shown.text) == (303, 200, True)
        started = await one.private("/authorizations", method="POST", json={"owner": "42"})
        state = started.json()["state"]
        first = (await two.callback(one.query(state=state))).location
        assert first.startswith("foryoure://amo-crm/callback?code=")
        assert (await one.callback(one.query(state=state))).location == first
        found = await one.private("/connections/owner:42")
        assert found.json()["domain"] == HOST


async def test_ticket_of_one_instance_is_redeemed_at_other(instances: Any) -> None:
    """A ticket identifies its grant at any instance."""
    async with instances(APP__HAND_BACK="ticket") as (one, two):
        answer = await one.callback(one.query())
        ticket = answer.location.partition("code=")[2].partition("&")[0]
        exchanged = await two.public(f"{BASE}/exchange-code", method="POST", json={"code": ticket})
        assert exchanged.json()["data"]["connected"] is True


async def test_429_at_one_instance_pauses_all(instances: Any) -> None:
    """A 429 applies to the integration: instances that continued would get all of them banned."""
    async with instances() as (one, _two):
        one.amo.sandbox.faults.add(Fault.TOO_MANY)
        database = await asyncpg.connect(one.settings.storage.url.get_secret_value())
        before = await database.fetchval("SELECT extract(epoch FROM now()) * 1000000")
        assert "error=amo_unavailable" in (await one.callback(one.query())).location
        # AMO requested a pause of one second.
        assert await database.fetchval("SELECT free_at FROM slots") - before >= 1_000_000
        await database.close()


async def test_change_without_notification_is_seen_within_a_second(instances: Any) -> None:
    """A change by hand, or through a pooler that drops notifications, is seen when the cache expires."""
    async with instances() as (one, two):
        name = await one.connected()
        path = f"/connections/{name}/token"
        for _ in range(2):
            assert (await two.private(path)).status == 200
            await _synchronized(two)
        database = await asyncpg.connect(one.settings.storage.url.get_secret_value())
        await database.execute("UPDATE connections SET status = 'disconnected', sealed_pair = NULL")
        await database.close()
        two.clock.advance(0.5)
        await two.private(path)  # requests do not extend the cache time
        await _synchronized(two)
        two.clock.advance(0.5)
        assert (await two.private(path)).status == 404


async def test_change_at_one_instance_is_seen_at_other_once_committed(instances: Any) -> None:
    """A new pair, a freeze and a disconnect take effect at the other instance once committed."""
    async with instances() as (one, two):
        name = await one.connected()
        path = f"/connections/{name}/token"
        before = (await two.private(path)).json()["access_token"]
        rejected = {"rejected_access_token": before}
        refreshed = await one.private(f"/connections/{name}/refresh", method="POST", json=rejected)
        await _synchronized(two)
        after = (await two.private(path)).json()["access_token"]
        assert (after == before, after) == (False, refreshed.json()["access_token"])
        await one.private("/freeze", method="POST", key=ADMIN_KEY)
        await _synchronized(two)
        frozen = await two.private(f"/connections/{name}/refresh", method="POST")
        assert (frozen.status, frozen.json()["code"]) == (503, "frozen")
        await one.private("/thaw", method="POST", key=ADMIN_KEY)
        await one.private(f"/connections/{name}", method="DELETE", key=ADMIN_KEY)
        await _synchronized(two)
        assert (await two.private(path)).status == 404
