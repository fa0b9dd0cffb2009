"""A real browser for each case; without one, the cases are skipped and say so."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.browser.chromium import EXECUTABLES, Chromium, find_chromium
from tests.conftest import HOST, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def chromium() -> AsyncIterator[Chromium]:
    playwright = pytest.importorskip("playwright.async_api", reason="no Playwright: install the `dev` extra")
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(EXECUTABLES)} is installed")
    async with playwright.async_playwright() as driver:
        opened = Chromium(playwright=driver, executable=executable)
        try:
            yield opened
        finally:
            await opened.close()


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder that was asked for with `--screenshots`."""
    asked: Path | None = request.config.getoption("--screenshots")
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
    return asked


# --- another web site ----------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Site:
    """A web site of somebody else's: its pages, and who asked for them with which headers."""

    address: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    visits: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.address.removeprefix("http://")


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """Serve on a port of its own, under a name that is another host than the service's."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Site]:
    site = Site()

    async def answer(request: web.Request) -> web.Response:
        site.visits.append((request.path, dict(request.headers)))
        return web.Response(text=site.pages.get(request.path, "<!doctype html>"), content_type="text/html")

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    async with serve(app) as address:
        site.address = address
        yield site


# --- an AMO that takes any code ------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Lenient:
    """The stand-in behind a door that takes any code for a good one, and that may be far away."""

    app: Running
    delay: float
    codes: list[str] = field(default_factory=list)


@pytest.fixture
def lenient(run: Any) -> Callable[..., Any]:
    """Return how to run the service against an AMO that takes any code, some time away."""

    @asynccontextmanager
    async def running(*, delay: float = 0.0, **more: str) -> AsyncIterator[Lenient]:
        behind: list[Lenient] = []

        async def token(request: web.Request) -> web.Response:
            [here] = behind
            amo = here.app.amo
            body = await request.json()
            here.codes.append(body["code"])
            if here.delay:
                await asyncio.sleep(here.delay)
            body["code"] = amo.code()
            reply = amo.fake.token(HOST, body=json.dumps(body).encode(), content_type="application/json")
            return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type)

        front = web.Application()
        front.router.add_post("/{host}/oauth2/access_token", token)
        async with (
            serve(front) as address,
            run(AMO__ENDPOINT=f"{address.replace('localhost', '127.0.0.1')}/{{domain}}", **more) as app,
        ):
            behind.append(Lenient(app=app, delay=delay))
            yield behind[0]

    return running
