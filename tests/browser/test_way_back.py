"""From amoCRM back to the page, in a browser: one exchange, a clean address, and no way back to the callback."""

import asyncio
import re
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.pages import read_texts
from tests.browser.chromium import DESKTOP, IPHONE, Chromium, Device, Tab
from tests.browser.conftest import Site
from tests.browser.page_states import public
from tests.service import BASE, Running

RETURN = re.compile(rf"{BASE}/return/[A-Za-z0-9_-]{{22}}")
LINK = "foryoure://amo-crm/callback"
TITLES = {variant: texts["title"] for variant, texts in read_texts("en").items() if "title" in texts}


async def _heading(tab: Tab) -> str:
    return await tab.page.locator("h1").inner_text()


async def _allowed(chromium: Chromium, app: Running, device: Device, *, state: str) -> Tab:
    """Go through amoCRM's consent page, up to ours; the browser finds us where amoCRM sends it."""
    registered = urlsplit(app.amo.fake.integration.redirect_uri).netloc
    tab = await chromium.tab(device, flags=(f"--host-resolver-rules=MAP {registered} {app.service.public}",))
    client_id = app.amo.fake.integration.client_id
    await tab.page.goto(f"http://{app.amo.address}/oauth?client_id={client_id}&state={quote(state)}")
    await tab.page.click("a.allow")
    await tab.page.wait_for_url(re.compile("/return/"))
    if device is not DESKTOP:
        await tab.until_launched()
    return tab


@pytest.mark.parametrize("device", [DESKTOP, IPHONE], ids=["desktop", "iphone"])
async def test_consent_leads_to_the_page_at_a_clean_address_and_back_to_consent(
    chromium: Chromium, app: Running, device: Device
) -> None:
    """After consent the address holds neither code nor state, and "back" shows amoCRM's page, never the callback."""
    tab = await _allowed(chromium, app, device, state="xyz-state")
    address = urlsplit(tab.page.url)
    assert RETURN.fullmatch(address.path)
    assert address.query == ("" if device is DESKTOP else "n=1")
    assert await _heading(tab) == TITLES["connected"]
    [exchange] = app.amo.fake.ledger.exchanges()
    assert await tab.link() == f"{LINK}?code={exchange.presented}&state=xyz-state"
    tab.requests.clear()
    await tab.page.go_back()
    assert urlsplit(tab.page.url).path == "/oauth"
    assert [address for address in tab.requests if "/callback" in address] == []
    assert app.amo.sandbox.requests == 1


async def test_reload_back_forward_and_a_second_tab_exchange_nothing_more(chromium: Chromium, app: Running) -> None:
    """However often and from how many tabs the callback is visited, amoCRM is asked once, and all see one page."""
    callback = public(app, f"{BASE}/callback?{app.query(state='s')}")
    tab = await chromium.tab()
    other = await chromium.another(tab.context)
    await asyncio.gather(tab.page.goto(callback), other.page.goto(callback))
    assert tab.page.url == other.page.url
    shown = await tab.link()
    for move in (tab.page.reload, tab.page.go_back, tab.page.go_forward):
        await move()
    await other.page.goto(callback)
    assert (tab.page.url, await tab.link(), await other.link()) == (other.page.url, shown, shown)
    assert app.amo.sandbox.requests == 1


async def test_chromiums_own_prefetch_spends_nothing(chromium: Chromium, app: Running, may_be_copy: Site) -> None:
    """A site that lets the browser fetch the callback in advance reaches nothing; the visit after it connects."""
    callback = public(app, f"{BASE}/callback?{app.query(state='s')}")
    escaped = callback.replace("&", "&amp;")
    may_be_copy.pages["/"] = f'<!doctype html><link rel="prefetch" href="{escaped}">'
    tab = await chromium.tab()
    async with tab.page.expect_response(callback) as fetched:
        await tab.page.goto(may_be_copy.address)
    answer = await fetched.value
    assert (answer.status, (await answer.request.all_headers())["sec-purpose"]) == (204, "prefetch")
    assert app.amo.sandbox.requests == 0
    await tab.page.goto(callback)
    assert await _heading(tab) == TITLES["connected"]


# --- errors --------------------------------------------------------------------------------------


async def test_a_slow_amo_is_waited_for_at_one_address(chromium: Chromium, run: Any) -> None:
    """While amoCRM takes its time the page says so and claims nothing; the same address shows the result by itself."""
    async with run() as app:
        app.amo.sandbox.faults.add(Fault.SLOW)
        tab = await chromium.tab(IPHONE, own_browser=True)
        visit = asyncio.create_task(tab.page.goto(public(app, f"{BASE}/callback?{app.query(state='s')}")))
        await app.amo.sandbox.asked.wait()
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        answer = await visit
        assert answer is not None
        assert (answer.status, (await answer.all_headers())["refresh"]) == (200, "2")
        waiting = tab.page.url
        assert (await _heading(tab), await tab.link(), tab.launches) == (TITLES["exchanging"], None, [])
        app.amo.sandbox.go_on.set()
        await app.witness.until("connection.connected")
        await tab.page.wait_for_selector("#open")
        assert (await _heading(tab), tab.page.url.partition("?")[0]) == (TITLES["connected"], waiting)
        assert len(app.amo.fake.ledger.exchanges()) == 1


async def test_a_passing_failure_can_be_tried_again(chromium: Chromium, app: Running) -> None:
    """Where amoCRM failed before it took the code, "Try again" connects, and leads to a clean address."""
    app.amo.sandbox.faults.add(Fault.HTTP_500, Fault.HTTP_500)
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state='s')}"))
    for _ in range(2):
        assert await _heading(tab) == TITLES["amo_unavailable"]
        assert await tab.page.locator("#again").get_attribute("href") == "?again=1"
        assert tab.launches == []
        async with tab.page.expect_navigation():
            await tab.page.click("#again")
    await tab.until_launched()
    assert await _heading(tab) == TITLES["connected"]
    assert app.amo.sandbox.requests == 3
    await tab.page.reload()
    assert app.amo.sandbox.requests == 3
