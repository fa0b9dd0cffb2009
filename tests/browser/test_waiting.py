"""The page that waits for AMO: it shows the result without a reload, and the app then opens automatically."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Route

from amo_callback.amo.sandbox.app import Fault
from tests.browser.chromium import ANDROID, DESKTOP, IPHONE, Chromium, Device, Tab
from tests.browser.page_states import public, titles
from tests.service import BASE, LINK, Running

TITLES = titles()
_ANY = re.compile(BASE)


async def _heading(tab: Tab) -> str:
    return await tab.page.locator("h1").inner_text()


@asynccontextmanager
async def _waiting(
    chromium: Chromium, run: Any, device: Device = IPHONE, *, javascript: bool = True
) -> AsyncIterator[tuple[Running, Tab, str]]:
    """Run the service, and open a callback to which AMO does not answer within 8 seconds."""
    async with run() as app:
        app.amo.sandbox.faults.add(Fault.SLOW)
        tab = await chromium.tab(device, own_browser=True, javascript=javascript)
        query = app.query(state="s")
        visit = asyncio.create_task(tab.page.goto(public(app, f"{BASE}/callback?{query}")))
        await app.amo.sandbox.asked.wait()
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        answer = await visit
        assert answer is not None
        assert (answer.status, await _heading(tab)) == (200, TITLES["exchanging"])
        assert "connect-src 'self'" in (await answer.all_headers())["content-security-policy"]
        yield app, tab, query
        app.amo.sandbox.go_on.set()


async def _answer(app: Running) -> None:
    """Let AMO answer, and wait until the pair is stored."""
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")


async def test_page_waits_without_reload_and_then_opens_app_once(chromium: Chromium, run: Any) -> None:
    """The page asks for the result without a reload, shows it at the same address, and opens the app once."""
    async with _waiting(chromium, run) as (app, tab, _):
        waiting = tab.page.url
        await tab.page.evaluate("window.__kept = true")
        for _ in range(2):
            async with tab.page.expect_response(lambda answer: answer.request.resource_type == "fetch") as asked:
                pass
            assert (await asked.value).url == waiting
        assert await tab.page.evaluate("window.__kept")
        assert (tab.launches, await tab.link()) == ([], None)
        await _answer(app)
        link = await tab.until_launched()
        [exchange] = app.amo.fake.ledger.exchanges()
        assert link == f"{LINK}?code={exchange.presented}&state=s"
        assert (await _heading(tab), tab.page.url) == (TITLES["connected"], f"{waiting}?n=1")
        await tab.page.reload()
        await tab.pass_time(60)
        assert tab.launches == [link]
        assert tab.violations == []


async def test_page_that_waits_at_callback_address_returns_its_own_state(chromium: Chromium, run: Any) -> None:
    """A replay with another state waits at the callback's address, and then opens the app with its own state."""
    async with _waiting(chromium, run, DESKTOP) as (app, _, query):
        tab = await chromium.tab(ANDROID, own_browser=True)
        address = public(app, f"{BASE}/callback?{query.replace('state=s', 'state=other')}")
        visit = asyncio.create_task(tab.page.goto(address))
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        await visit
        assert (await _heading(tab), tab.page.url) == (TITLES["exchanging"], address)
        await _answer(app)
        [exchange] = app.amo.fake.ledger.exchanges()
        assert await tab.until_launched() == f"{LINK}?code={exchange.presented}&state=other"
        assert (await _heading(tab), tab.page.url) == (TITLES["connected"], f"{address}&n=1")
        assert app.amo.sandbox.requests == 1


async def test_page_waits_through_network_errors(chromium: Chromium, run: Any) -> None:
    """Failed requests and a proxy's error page change nothing; the page goes on asking."""
    async with _waiting(chromium, run) as (app, tab, _):
        answers = 0

        async def fail(route: Route) -> None:
            nonlocal answers
            answers += 1
            if answers == 1:
                await route.abort()
            elif answers == 2:
                await route.fulfill(status=502, content_type="text/html", body="<h1>502 Bad Gateway</h1>")
            else:
                await route.continue_()

        await tab.page.route(_ANY, fail)
        await _answer(app)
        await tab.until_launched()
        assert await _heading(tab) == TITLES["connected"]
        assert answers >= 3


async def test_page_stops_asking_after_handle_has_expired(chromium: Chromium, run: Any) -> None:
    """Without a connection, the page stops asking after 21 minutes, and its button remains."""
    async with _waiting(chromium, run) as (_, tab, _):
        asked = 0

        async def fail(route: Route) -> None:
            nonlocal asked
            asked += 1
            await route.abort()

        await tab.page.route(_ANY, fail)
        await tab.pass_time(22 * 60, policy="pauseIfNetworkFetchesPending")
        before = asked
        assert before > 1
        await tab.pass_time(600)
        assert asked == before
        assert (await _heading(tab), await tab.page.locator("#look").is_visible()) == (TITLES["exchanging"], True)


async def test_page_of_expired_handle_replaces_waiting_page(chromium: Chromium, run: Any) -> None:
    """If AMO never answers, the page says after 20 minutes that it is no longer valid, and does not open the app."""
    async with _waiting(chromium, run) as (app, tab, _):
        app.clock.advance(1200)
        await tab.page.wait_for_selector("#open")
        assert await _heading(tab) == TITLES["gone"]
        await tab.pass_time(60)
        assert tab.launches == []


async def test_page_without_javascript_reloads_until_result(chromium: Chromium, run: Any) -> None:
    """Without JavaScript the waiting page reloads, and the result has only the button."""
    async with _waiting(chromium, run, javascript=False) as (app, tab, _):
        waiting = tab.page.url
        async with tab.page.expect_response(waiting) as reloaded:
            pass
        assert (await reloaded.value).request.resource_type == "document"
        await _answer(app)
        await tab.page.wait_for_selector("#open")
        assert (await _heading(tab), tab.page.url, tab.launches) == (TITLES["connected"], waiting, [])
