"""The return from amoCRM to the return page: one exchange, a clean address, and no move back to the callback."""

import asyncio
import re
from urllib.parse import quote, urlsplit

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.browser.chromium import DESKTOP, IPHONE, Chromium, Device, Tab
from tests.browser.conftest import Site
from tests.browser.page_states import public, titles
from tests.service import BASE, LINK, Running

RETURN = re.compile(rf"{BASE}/return/[A-Za-z0-9_-]{{22}}")
TITLES = titles()


async def _heading(tab: Tab) -> str:
    return await tab.page.locator("h1").inner_text()


async def _allowed(chromium: Chromium, app: Running, device: Device, *, state: str) -> Tab:
    """Go through amoCRM's consent page to the return page, with the registered host mapped to the service."""
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
async def test_consent_redirects_to_clean_address_and_back_to_consent(
    chromium: Chromium, app: Running, device: Device
) -> None:
    """After consent the address has neither code nor state, and "back" shows amoCRM's page, not the callback."""
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


async def test_callback_visited_repeatedly_exchanges_once(chromium: Chromium, app: Running) -> None:
    """For any number of visits and tabs there is one exchange and one page."""
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


async def test_callback_prefetch_spends_no_code(chromium: Chromium, app: Running, other_site: Site) -> None:
    """Chromium's prefetch of the callback has no effect, and the visit after it connects."""
    callback = public(app, f"{BASE}/callback?{app.query(state='s')}")
    escaped = callback.replace("&", "&amp;")
    other_site.pages["/"] = f'<!doctype html><link rel="prefetch" href="{escaped}">'
    tab = await chromium.tab()
    async with tab.page.expect_response(callback) as fetched:
        await tab.page.goto(other_site.address)
    answer = await fetched.value
    assert (answer.status, (await answer.request.all_headers())["sec-purpose"]) == (204, "prefetch")
    assert app.amo.sandbox.requests == 0
    await tab.page.goto(callback)
    assert await _heading(tab) == TITLES["connected"]


# --- errors --------------------------------------------------------------------------------------


async def test_page_after_temporary_failure_can_be_retried(chromium: Chromium, app: Running) -> None:
    """If AMO failed before it spent the code, "Try again" connects, at a clean address."""
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
