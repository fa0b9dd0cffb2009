"""A real browser for each test; without one the tests are skipped."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser.chromium import EXECUTABLES, Chromium, find_chromium, launch
from tests.service import HOST, Running

in_one_loop = partial(pytest_asyncio.fixture, loop_scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of this folder in the session's event loop, because the browser is bound to it."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@in_one_loop(scope="session")
async def browser_driver() -> AsyncIterator[tuple[Any, Any]]:
    playwright = pytest.importorskip("playwright.async_api", reason="no Playwright: install the `dev` extra")
    if find_chromium() is None:
        pytest.skip(f"no browser: none of {', '.join(EXECUTABLES)} is installed")
    async with playwright.async_playwright() as driver:
        browser = await launch(driver)
        yield driver, browser
        await browser.close()


@in_one_loop()
async def chromium(browser_driver: tuple[Any, Any]) -> AsyncIterator[Chromium]:
    driver, shared = browser_driver
    opened = Chromium(playwright=driver, shared=shared)
    try:
        yield opened
    finally:
        await opened.close()


@in_one_loop()
async def app(run: Any) -> AsyncIterator[Running]:
    async with run() as running:
        yield running


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder of `--screenshots`."""
    asked: Path | None = request.config.getoption("--screenshots")
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
    return asked


# --- another web site ----------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Site:
    """Another web site: its pages, and its visits with their headers."""

    address: str = ""
    pages: dict[str, str] = field(default_factory=dict)
    visits: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.address.removeprefix("http://")


@asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """Serve on a free port, under another host name than the service's."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@in_one_loop()
async def other_site() -> AsyncIterator[Site]:
    site = Site()

    async def answer(request: web.Request) -> web.Response:
        site.visits.append((request.path, dict(request.headers)))
        return web.Response(text=site.pages.get(request.path, "<!doctype html>"), content_type="text/html")

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    async with serve(app) as address:
        site.address = address
        yield site


# --- AMO that accepts any code -------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Lenient:
    """The service with an AMO that accepts any code, and the codes presented."""

    app: Running
    codes: list[str] = field(default_factory=list)


@pytest.fixture
def lenient(run: Any) -> Callable[..., Any]:
    """Return a function that runs the service with an AMO that accepts any code."""

    @asynccontextmanager
    async def running(**more: str) -> AsyncIterator[Lenient]:
        behind: list[Lenient] = []

        async def token(request: web.Request) -> web.Response:
            [here] = behind
            amo = here.app.amo
            body = await request.json()
            here.codes.append(body["code"])
            body["code"] = amo.code()
            reply = amo.fake.token(HOST, body=json.dumps(body).encode(), content_type="application/json")
            return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type)

        front = web.Application()
        front.router.add_post("/{host}/oauth2/access_token", token)
        async with (
            serve(front) as address,
            run(AMO__ENDPOINT=f"{address.replace('localhost', '127.0.0.1')}/{{domain}}", **more) as app,
        ):
            behind.append(Lenient(app=app))
            yield behind[0]

    return running
