"""The return page's one automatic attempt to open the app, and its button."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.browser.chromium import (
    ANDROID,
    ANDROID_TABLET,
    DESKTOP,
    IPAD,
    IPHONE,
    TOUCH_LAPTOP,
    WITHOUT_ATTEMPT,
    Chromium,
    Device,
    Tab,
)
from tests.browser.page_states import STATE, public, returned
from tests.service import BASE, LINK, Running


def _link(app: Running, *, state: str = STATE) -> str:
    """Return the link expected after the only exchange."""
    [exchange] = app.amo.fake.ledger.exchanges()
    return f"{LINK}?code={exchange.presented}&state={quote(state, safe='')}"


async def _automatic_actions(tab: Tab) -> list[object]:
    """Check that the page has its button, and return the page's automatic actions within a minute."""
    await tab.page.wait_for_load_state("load")
    assert await tab.page.locator("#open").is_visible()
    await tab.pass_time(60)
    return [*tab.launches, *await tab.attempts(), *tab.navigations]


# --- automatic attempt ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", [IPHONE, ANDROID], ids=["iphone", "android"])
async def test_page_on_phone_attempts_once_after_load(chromium: Chromium, app: Running, device: Device) -> None:
    """The page makes one attempt with the button's link once it is loaded, and its address records the attempt."""
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


async def test_page_elsewhere_makes_no_attempt(chromium: Chromium, app: Running) -> None:
    """In an app's view an attempt can destroy the page, and a desktop has no app, so there is only the button."""
    address = await returned(app)
    for touch in (False, True):
        tab = await chromium.tab(IPHONE if touch else DESKTOP, own_browser=True)
        for name, device in WITHOUT_ATTEMPT.items():
            if device.touch == touch:
                await tab.call_itself(device)
                await tab.page.goto(address)
                assert (name, await tab.page.locator("[data-auto]:not([data-tablet])").count()) == (name, 0)
                assert (name, await _automatic_actions(tab)) == (name, [])
                assert await tab.link() == _link(app)
                await tab.go_on()


@pytest.mark.parametrize("device", [IPAD, ANDROID_TABLET], ids=["ipad", "android"])
async def test_page_on_tablet_is_phones_page(chromium: Chromium, run: Any, device: Device) -> None:
    """A tablet with a desktop's user agent attempts once, and gets neither the desktop's note nor its QR code."""
    async with run(APP__ANDROID_PACKAGE="ae.foryoure.app") as app:
        tab = await chromium.tab(device, own_browser=True)
        await tab.page.goto(await returned(app))
        assert await tab.until_launched() == _link(app)
        await tab.pass_time(60)
        assert tab.launches == [_link(app)]
        for part in ("#scan", ".note"):
            assert (await tab.page.locator(part).count(), await tab.page.locator(part).is_visible()) == (1, False)
        assert await tab.page.locator("#intent").is_visible() == (device is ANDROID_TABLET)


@pytest.mark.parametrize("device", [DESKTOP, TOUCH_LAPTOP], ids=["linux", "windows-touch"])
async def test_page_on_desktop_shows_its_address_as_qr_code(chromium: Chromium, run: Any, device: Device) -> None:
    """A desktop without a touch screen, and any Windows, shows the note and the QR code and makes no attempt."""
    async with run(APP__ANDROID_PACKAGE="ae.foryoure.app") as app:
        tab = await chromium.tab(device, own_browser=True, scheme="dark")
        await tab.page.goto(await returned(app))
        assert await _automatic_actions(tab) == []
        assert await tab.page.locator(".note").is_visible()
        code = tab.page.get_by_role("img", name="QR code with the address of this page")
        assert await code.is_visible()
        assert await code.evaluate("each => getComputedStyle(each).backgroundColor") == "rgb(255, 255, 255)"
        assert await code.locator("path").evaluate("each => getComputedStyle(each).stroke") == "rgb(0, 0, 0)"
        assert not await tab.page.locator("#intent").is_visible()


async def test_page_in_background_attempts_when_shown(chromium: Chromium, app: Running) -> None:
    """A page that loads in the background attempts once when it is shown, and shows the note after a return."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.add_init_script("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    await tab.page.goto(await returned(app))
    assert await _automatic_actions(tab) == []
    assert "?n=" not in tab.page.url
    await tab.go_on()
    await tab.become("visible")
    assert await tab.until_launched() == _link(app)
    assert "n=1" in tab.page.url
    await tab.hide_and_show()
    assert "close this tab" in await tab.note()
    assert tab.launches == [_link(app)]


async def test_https_link_is_never_opened_automatically(chromium: Chromium, run: Any) -> None:
    """A script would leave the page for an https link, so the user presses a button or, on Android, the intent link."""
    async with run(APP__DEEP_LINK="https://open.example.com/amo", APP__ANDROID_PACKAGE="ae.foryoure.app") as app:
        tab = await chromium.tab(ANDROID, own_browser=True)
        address = await returned(app)
        await tab.page.goto(address)
        assert await _automatic_actions(tab) == []
        assert tab.page.url == address
        intent = await tab.page.locator("#intent").get_attribute("href") or ""
        assert intent.startswith("intent://open.example.com/amo?code=")
        assert intent.endswith("#Intent;scheme=https;package=ae.foryoure.app;end")
        assert (await tab.link() or "").startswith("https://open.example.com/amo?code=")


@pytest.mark.parametrize("javascript", [True, False])
async def test_app_link_page_opens_app_by_its_own_scheme(chromium: Chromium, run: Any, *, javascript: bool) -> None:
    """At an https link's own address, a tap opens the app by the app's own scheme, also without JavaScript."""
    async with run(APP__DEEP_LINK=f"https://open.example.com/amo {LINK}") as app:
        tab = await chromium.tab(ANDROID, own_browser=True, javascript=javascript)
        await tab.page.goto(public(app, "/amo?code=c&state=s"))
        assert await _automatic_actions(tab) == []
        await tab.tap()
        await tab.pass_time(1)
        assert tab.launches == [f"{LINK}?code=c&state=s"]


async def test_gone_page_opens_app_without_parameters(chromium: Chromium, app: Running) -> None:
    """The page of an expired handle opens the app only by its button, with the bare link."""
    tab = await chromium.tab(ANDROID, own_browser=True)
    await tab.page.goto(public(app, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA"))
    assert await _automatic_actions(tab) == []
    for _ in range(2):
        await tab.tap()
    await tab.pass_time(1)
    assert tab.launches == [LINK, f"{LINK}?n=2"]


@pytest.mark.parametrize("again", ["reload", "back", "forward", "n=1", "n=2", "another visit"])
async def test_page_visited_again_makes_no_attempt(chromium: Chromium, app: Running, again: str) -> None:
    """After a reload, a move in the history, a recorded attempt or another visit, there is only the button."""
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
    assert await _automatic_actions(tab) == []


# --- button --------------------------------------------------------------------------------------


async def test_button_click_requests_exact_link(chromium: Chromium, app: Running) -> None:
    """A click is one request with the exact bytes of the link, begun by the user."""
    tab = await chromium.tab(DESKTOP, own_browser=True)
    state = "a+b c/й%25&x=1#f\"'<>"
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state=state)}"))
    await tab.page.click("#open")
    await tab.pass_time(60)
    assert tab.launches == [_link(app, state=state)]
    assert tab.navigations == [("anchorClick", _link(app, state=state))]


async def test_page_without_javascript_has_working_button(chromium: Chromium, app: Running) -> None:
    """Without JavaScript there is no attempt, and the button works as a link."""
    tab = await chromium.tab(ANDROID, javascript=False, own_browser=True)
    await tab.page.goto(public(app, f"{BASE}/callback?{app.query(state=STATE)}"))
    assert await tab.page.locator("#open").is_visible()
    assert (await tab.link(), tab.launches) == (_link(app), [])
    await tab.page.click("#open")
    assert tab.navigations == [("anchorClick", _link(app))]


@pytest.mark.parametrize("device", ["phone", "desktop"])
async def test_page_attempts_have_distinct_addresses(chromium: Chromium, app: Running, device: str) -> None:
    """The first attempt uses the plain link, each later one a new one, because Safari refuses a cancelled link."""
    tab = await chromium.tab(IPHONE if device == "phone" else DESKTOP, own_browser=True)
    await tab.page.goto(await returned(app))
    for _ in range(2 if device == "phone" else 3):
        await tab.tap()
    await tab.pass_time(1)
    link = _link(app)
    assert tab.launches == [link, f"{link}&n=2", f"{link}&n=3"]


async def test_button_after_reload_uses_another_address(chromium: Chromium, app: Running) -> None:
    """After an attempt and a reload, a tap uses another address than the attempt."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.goto(await returned(app))
    await tab.until_launched()
    await tab.page.reload()
    await tab.tap()
    await tab.pass_time(1)
    assert len(tab.launches) == len(set(tab.launches)) == 2


# --- note ----------------------------------------------------------------------------------------


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
"""Records, in the document's time, the first attempt to open the app and the first note."""


async def test_note_explains_button_if_app_did_not_open(chromium: Chromium, app: Running) -> None:
    """The note is empty at first, and names the button two seconds after an attempt without effect."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    await tab.page.add_init_script(_WHEN)
    await tab.page.goto(await returned(app))
    await tab.pass_time(3)
    assert "For You" in await tab.note()
    assert await tab.page.evaluate("window.__first") == ""
    assert await tab.page.evaluate("window.__noted - window.__tried") > 1900


async def test_note_after_return_says_that_tab_can_be_closed(chromium: Chromium, app: Running) -> None:
    """After a return from the app the note has changed, and the help is open."""
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


async def test_note_without_attempt_is_empty(chromium: Chromium, app: Running) -> None:
    """On a desktop the note is empty until a click, because there was no attempt."""
    tab = await chromium.tab(DESKTOP, own_browser=True)
    await tab.page.goto(await returned(app))
    await tab.pass_time(60)
    assert await tab.note() == ""
    await tab.tap()
    await tab.pass_time(3)
    assert await tab.note() != ""
