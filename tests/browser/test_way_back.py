"""From amoCRM back to the page, in a browser: one exchange, a clean address, and no way back to the callback."""

import asyncio
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.pages.render import read_texts
from tests.browser.chromium import DESKTOP, IPHONE, Chromium, Device, Tab
from tests.browser.conftest import Lenient, Site
from tests.browser.page_states import STATE, public, returned
from tests.service import BASE, HOST, Running

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


async def test_refusal_leads_to_the_page_too(chromium: Chromium, app: Running) -> None:
    """Who refuses at amoCRM reads so, and the app is told by its word."""
    registered = urlsplit(app.amo.fake.integration.redirect_uri).netloc
    tab = await chromium.tab(IPHONE, flags=(f"--host-resolver-rules=MAP {registered} {app.service.public}",))
    client_id = app.amo.fake.integration.client_id
    await tab.page.goto(f"http://{app.amo.address}/oauth?client_id={client_id}&state=s")
    await tab.page.click("a.refuse")
    await tab.page.wait_for_selector("#open")
    assert await _heading(tab) == TITLES["access_denied"]
    assert await tab.link() == f"{LINK}?error=access_denied&state=s"
    assert app.amo.sandbox.requests == 0


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


async def test_chromiums_own_prefetch_spends_nothing(chromium: Chromium, app: Running, elsewhere: Site) -> None:
    """A site that lets the browser fetch the callback in advance reaches nothing; the visit after it connects."""
    callback = public(app, f"{BASE}/callback?{app.query(state='s')}")
    escaped = callback.replace("&", "&amp;")
    elsewhere.pages["/"] = f'<!doctype html><link rel="prefetch" href="{escaped}">'
    tab = await chromium.tab()
    async with tab.page.expect_response(callback) as fetched:
        await tab.page.goto(elsewhere.address)
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


async def test_with_a_ticket_amos_code_stays_here(chromium: Chromium, run: Any) -> None:
    """With `hand_back = "ticket"` neither the page nor its link holds AMO's code, and the ticket is what is sent."""
    async with run(APP__HAND_BACK="ticket") as app:
        code = app.amo.code()
        tab = await chromium.tab(IPHONE, own_browser=True)
        await tab.page.goto(public(app, f"{BASE}/callback?{app.query(code=code, state='s')}"))
        sent = await tab.until_launched()
        assert re.fullmatch(rf"{LINK}\?code=[A-Za-z0-9_-]+&state=s", sent)
        assert sent == await tab.link()
        assert code not in await tab.page.content()


# --- what is left behind, and what it costs ------------------------------------------------------


async def test_the_log_of_many_visits_holds_no_secret(chromium: Chromium, app: Running) -> None:
    """Visits, reloads, failures and retries leave no code, state, handle or token in the log, at its wordiest."""
    states = [f"state-{number}-0123456789" for number in range(4)]
    handles = set()
    tab = await _allowed(chromium, app, IPHONE, state=states[0])
    handles.add(urlsplit(tab.page.url).path.rpartition("/")[2])
    await tab.page.reload()
    tab = await chromium.tab()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    for query in (
        app.query(state=states[1]),
        app.query(code="junk-0123456789", state=states[2]),
        f"error=access_denied&state={states[3]}",
        "code=a&code=b&state=" + states[3],
        "code=%zz-0123456789",
    ):
        await tab.page.goto(public(app, f"{BASE}/callback?{query}"))
        if "/return/" in tab.page.url:
            handles.add(urlsplit(tab.page.url).path.rpartition("/")[2])
        if await tab.page.locator("#again").count():
            async with tab.page.expect_navigation():
                await tab.page.click("#again")
    ledger = app.amo.fake.ledger
    secrets = {
        *states,
        *handles,
        "zz-0123456789",
        *(entry.presented for entry in ledger.entries),
        *ledger.issued,
        *ledger.access_tokens,
    }
    assert len(handles) == 3
    assert len(ledger.entries) == 4
    log = app.log.getvalue()
    assert "connection.connected" in log
    assert [secret for secret in secrets if secret in log] == []


async def test_what_a_visit_costs(
    chromium: Chromium, lenient: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    """A visit is two requests, the callback and one page that brings all it needs; its figures are told."""
    async with lenient(delay=0.15) as amo:
        here: Lenient = amo
        tab = await chromium.tab(IPHONE, own_browser=True)
        first = await tab.page.goto(await returned(here.app))  # warms both up
        assert first is not None
        await tab.until_launched()
        tab = await chromium.another(tab.context)
        answer = await tab.page.goto(public(here.app, f"{BASE}/callback?{here.app.query(state=STATE)}"))
        assert answer is not None
        visits = [address for address in tab.requests if address.startswith("http")]
        assert [urlsplit(address).path.split("/")[-2] for address in visits] == ["amo-crm", "return"]
        took = await tab.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        body = await answer.body()
        assert len(body) <= 10_000
        record_property("page bytes", len(body))
        record_property("requests of a visit", len(visits))
        record_property("ms from callback to page, amoCRM 150 ms away", round(took))
        assert HOST not in {urlsplit(address).netloc for address in visits}
