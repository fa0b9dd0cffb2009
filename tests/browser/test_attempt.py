"""The page's one attempt to bring a person back by itself, and the button for everything else."""

from urllib.parse import quote

import pytest

from tests.browser.chromium import ANDROID, DESKTOP, ELSEWHERE, IPHONE, Chromium, Device, Tab
from tests.browser.page_states import STATE, public, returned
from tests.service import BASE, Running

LINK = "foryoure://amo-crm/callback"


def _link(app: Running, *, state: str = STATE) -> str:
    """Return the link that the one exchange so far must have led to."""
    [exchange] = app.amo.fake.ledger.exchanges()
    return f"{LINK}?code={exchange.presented}&state={quote(state, safe='')}"


async def _happens(tab: Tab) -> list[object]:
    """Return what a page with a button does by itself within a minute."""
    await tab.page.wait_for_load_state("load")
    assert await tab.page.locator("#open").is_visible()
    await tab.pass_time(60)
    return [*tab.launches, *await tab.attempts(), *tab.navigations]


# --- by itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [IPHONE, ANDROID], ids=["iphone", "android"])
async def test_a_phones_browser_is_sent_once_and_after_load(chromium: Chromium, app: Running, device: Device) -> None:
    """One attempt, with the button's own link, when the whole page is there; the address remembers it."""
    tab = await chromium.tab(device, own_browser=True)
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state=STATE)}"))
    assert await tab.page.locator("#open").get_attribute("data-auto") is not None
    await tab.pass_time(60)
    assert tab.launches == [_link(app)]
    assert tab.navigations == [("scriptInitiated", _link(app))]
    assert await tab.attempts() == [
        {"to": _link(app), "loaded": True, "ready": "complete", "button": True, "last": True}
    ]
    assert tab.page.url.endswith("?n=1")
    assert await tab.page.locator("#open").is_visible()
    assert tab.violations == []


async def test_elsewhere_nothing_is_tried(chromium: Chromium, app: Running) -> None:
    """In another app's view an attempt can destroy the page, and a desktop has no app: there is the button alone."""
    address = await returned(app)
    for touch in (False, True):
        tab = await chromium.tab(IPHONE if touch else DESKTOP, own_browser=True)
        for name, device in ELSEWHERE.items():
            if device.touch == touch:
                await tab.call_itself(device)
                await tab.page.goto(address)
                assert (name, await tab.page.locator("[data-auto]").count()) == (name, 0)
                assert (name, await _happens(tab)) == (name, [])
                assert await tab.link() == _link(app)
                await tab.go_on()


@pytest.mark.parametrize("again", ["reload", "back", "forward", "n=1", "n=2", "another visit"])
async def test_who_comes_again_is_not_sent_again(chromium: Chromium, app: Running, again: str) -> None:
    """Reload, back, forward, an address that tells of an attempt, and the same page once more: the button alone."""
    address = await returned(app)
    tab = await chromium.tab(IPHONE, own_browser=True)
    if again in {"n=1", "n=2"}:
        await tab.page.goto(f"{address}?{again}")
    else:
        await tab.page.goto(address)
        assert await tab.until_launched() == _link(app)
        if again == "reload":
            await tab.page.reload()
        elif again == "another visit":
            await tab.page.goto(address)
        else:
            await tab.page.goto(public(app, "/healthz"))
            await tab.page.go_back()
            if again == "forward":
                await tab.page.goto(public(app, "/healthz"))
                await tab.page.go_back()
                await tab.page.go_back()
                await tab.page.go_forward()
        tab.requests.clear()
        tab.navigations.clear()
    assert await _happens(tab) == []


# --- by a tap ------------------------------------------------------------------------------------


async def test_a_tap_asks_for_exactly_the_link(chromium: Chromium, app: Running) -> None:
    """A click on the button is one request, of the link's very bytes, begun by the person."""
    tab = await chromium.tab(DESKTOP, own_browser=True)
    state = "a+b c/й%25&x=1#f\"'<>"
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state=state)}"))
    await tab.page.click("#open")
    await tab.pass_time(60)
    assert tab.launches == [_link(app, state=state)]
    assert tab.navigations == [("anchorClick", _link(app, state=state))]


async def test_without_javascript_the_button_is_all_there_is(chromium: Chromium, app: Running) -> None:
    """Without JavaScript nothing is tried, and the button works as any link does."""
    tab = await chromium.tab(ANDROID, javascript=False, own_browser=True)
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state=STATE)}"))
    assert await tab.page.locator("#open").is_visible()
    assert (await tab.link(), tab.launches) == (_link(app), [])
    await tab.page.click("#open")
    assert tab.navigations == [("anchorClick", _link(app))]


@pytest.mark.parametrize("device", ["phone", "desktop"])
async def test_each_attempt_has_an_address_of_its_own(chromium: Chromium, app: Running, device: str) -> None:
    """The first attempt is the plain link and each later one another: Safari refuses one that was cancelled."""
    tab = await chromium.tab(IPHONE if device == "phone" else DESKTOP, own_browser=True)
    await tab.page.goto(await returned(app))
    for _ in range(2 if device == "phone" else 3):
        await tab.tap()
    await tab.pass_time(1)
    link = _link(app)
    assert tab.launches == [link, f"{link}&n=2", f"{link}&n=3"]


async def test_who_comes_back_after_a_reload_taps_an_address_of_its_own(chromium: Chromium, app: Running) -> None:
    """After an attempt and a reload, a tap still asks for another address than the attempt did."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.goto(await returned(app))
    await tab.until_launched()
    await tab.page.reload()
    await tab.tap()
    await tab.pass_time(1)
    assert len(tab.launches) == len(set(tab.launches)) == 2


# --- what the page says meanwhile ----------------------------------------------------------------


_WHEN = """
navigation.addEventListener('navigate', event => {
  if (!/^https?:/.test(event.destination.url)) window.__tried ??= performance.now();
});
addEventListener('DOMContentLoaded', () => {
  const note = document.querySelector('[role=status]');
  window.__first = note.textContent.trim();
  new MutationObserver(() => { window.__noted ??= performance.now(); }).observe(note, {childList: true});
});
"""
"""Notes by the document's own time when it first tried to leave for the app, and when it said something."""


async def test_the_note_says_what_to_do_when_nothing_opened(chromium: Chromium, app: Running) -> None:
    """The note is empty at first; two seconds after an attempt that shows no effect, it points to the button."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.add_init_script(_WHEN)
    await tab.page.goto(await returned(app))
    await tab.pass_time(3)
    assert "For You" in await tab.note()
    assert await tab.page.evaluate("window.__first") == ""
    assert await tab.page.evaluate("window.__noted - window.__tried") > 1900


async def test_the_note_says_that_the_tab_may_be_closed(chromium: Chromium, app: Running) -> None:
    """Who has left for the app and comes back reads another note, and finds the help open."""
    notes = {}
    for how in ("late", "hidden", "restored"):
        tab = await chromium.tab(IPHONE, own_browser=True)
        await tab.page.goto(await returned(app))
        if how == "late":
            await tab.pass_time(3)
        elif how == "hidden":
            await tab.hide_and_show()
        else:
            await tab.come_back()
        notes[how] = await tab.note()
        assert await tab.page.locator("details[open]").count() == (0 if how == "late" else 1)
    assert notes["hidden"] == notes["restored"]
    assert "" not in notes.values()
    assert notes["late"] != notes["hidden"]


async def test_without_an_attempt_the_note_stays_empty(chromium: Chromium, app: Running) -> None:
    """On a desktop nothing was tried, so there is nothing to explain until somebody clicks."""
    tab = await chromium.tab(DESKTOP, own_browser=True)
    await tab.page.goto(await returned(app))
    await tab.pass_time(60)
    assert await tab.note() == ""
    await tab.tap()
    await tab.pass_time(3)
    assert await tab.note() != ""
