"""Several instances of the service on one PostgreSQL: what AMO and strangers see of them is one."""

from __future__ import annotations

import io
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.config_load import load_settings
from amo_callback.observe.log import make_logger
from amo_callback.web.lifecycle import Home, open_service
from tests.conftest import BASE, Amo, environment
from tests.fakes import ShiftedClock, Witness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from amo_callback.web.lifecycle import Service
    from tests.postgres import Databases


@pytest.fixture
async def url(postgres: Databases) -> AsyncIterator[str]:
    async with postgres.fresh() as url:
        yield url


@pytest.fixture
async def instances(url: str, amo: Amo, encryption_key: str, tmp_path: Path) -> AsyncIterator[list[Service]]:
    settings = load_settings(None, environment(amo, encryption_key, LIMITS__UNPROVEN="1"))
    settings = settings.model_copy(update={"storage": settings.storage.model_copy(update={"url": url})})
    log = make_logger(level="error", style="json", stream=io.StringIO())
    home = Home(folder=tmp_path, rescue=tmp_path / "rescue", machine="here")
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                open_service(settings, home=home, clock=ShiftedClock(), log=log, observer=Witness())
            )
            for _ in range(2)
        ]


async def _come(service: Service, code: str) -> str:
    """Come as AMO's redirect does, always from the same address; return where it leads."""
    address = f"http://{service.public}{BASE}/callback?code={code}&state=s&referer=reforyou.amocrm.ru"
    async with (
        aiohttp.ClientSession(headers={"X-Forwarded-For": "192.0.2.1"}) as http,
        http.get(address, allow_redirects=False) as answer,
    ):
        return answer.headers["Location"]


async def test_a_stranger_has_one_limit_at_all_instances(instances: list[Service], amo: Amo) -> None:
    """Junk that one instance has sent to AMO counts at the other: behind a balancer nobody has twice as many tries."""
    one, other = instances
    assert "error=auth_failed" in await _come(one, "junk")
    assert "error=rate_limited" in await _come(other, "more-junk")
    assert amo.sandbox.requests == 1


async def test_a_429_at_one_instance_pauses_all(instances: list[Service], amo: Amo, url: str) -> None:
    """AMO means the integration, not the instance that asked: the others would go on until all of them are banned."""
    import asyncpg  # noqa: PLC0415 -- because it is an extra

    amo.sandbox.faults.add(Fault.TOO_MANY)
    sql = await asyncpg.connect(url)
    before = await sql.fetchval("SELECT extract(epoch FROM now()) * 1000000")
    assert "error=amo_unavailable" in await _come(instances[0], "code")
    assert await sql.fetchval("SELECT free_at FROM slots") - before >= 1_000_000  # AMO asked for a second
    await sql.close()
