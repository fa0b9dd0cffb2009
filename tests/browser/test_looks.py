"""The return page's appearance in each state, language, colour scheme and size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from amo_callback.web.pages import LANGUAGES
from tests.browser.accessibility import OVERFLOW, axe
from tests.browser.chromium import ANDROID, ANDROID_TABLET, DESKTOP, IPAD, IPHONE, WITHOUT_ATTEMPT, Chromium, picture
from tests.browser.page_states import SETTINGS, STATES, public, returned, titles
from tests.service import LINK, Running

_SIZES = {
    "small phone": (320, 568),
    "narrow phone": (360, 640),
    "phone": (390, 760),
    "desktop": (1280, 800),
    "desktop at 200 %": (640, 400),
    "desktop at 400 %": (320, 200),
}
LONG_NAME = "Застосунок із дуже довгою назвоюбезжодногопробілувсередині та ще двома словами"
LONG_HOST = "a-very-long-name-of-an-account-that-has-as-many-letters-as-dns.amocrm.ru"


async def _open_all(page: Page) -> None:
    await page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")


async def _check_fits(page: Page, case: str) -> None:
    """Check that nothing is wider than the screen at any size."""
    for size, (width, height) in _SIZES.items():
        await page.set_viewport_size({"width": width, "height": height})
        assert (case, size, await page.evaluate(OVERFLOW)) == (case, size, [])
    await page.set_viewport_size({"width": IPHONE.width, "height": IPHONE.height})


@pytest.mark.parametrize("language", LANGUAGES)
async def test_page_of_each_state_is_accessible(
    chromium: Chromium, run: Any, pictures: Path | None, record_property: Callable[[str, object], None], language: str
) -> None:
    """Axe-core finds no violation in either scheme with open help, and nothing is wider than the screen."""
    texts = titles(language)
    looked = 0
    violations: list[str] = []
    tab = await chromium.tab(WITHOUT_ATTEMPT["android-telegram"], language=language)
    page = tab.page
    for state, reach in STATES.items():
        async with run(APP__ANDROID_PACKAGE="ae.foryoure.app", **SETTINGS.get(state, {})) as app:
            await page.goto(await reach(app))
            title = texts[state]
            assert (await page.locator("h1").inner_text(), await page.title()) == (title, title)
            assert await page.evaluate("document.documentElement.lang") == language
            await picture(tab, pictures, f"{state}-{language}-closed")
            await _open_all(page)
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                found = await axe(page, contrast_only=scheme == "dark")
                looked += 1
                case = f"{state}, {language}, {scheme}"
                violations += [f"{case}: {what}" for what in found["violations"] + found["undecided"]]
                assert {"h1", "p"} <= set(found["contrast"]), case
                await picture(tab, pictures, f"{state}-{language}-{scheme}")
            await page.set_viewport_size({"width": 320, "height": 568})
            await picture(tab, pictures, f"{state}-{language}-320")
            await _check_fits(page, state)
            await page.goto("about:blank")
            app.amo.sandbox.go_on.set()
    record_property("pages looked at", looked)
    record_property("axe violations", len(violations))
    assert violations == []


_LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 32"><style>.a { fill: #059669 }</style>
<rect class="a" width="32" height="32" rx="8"/><circle class="a" cx="56" cy="16" r="14"/></svg>"""
_STORES = {"APP__IOS_STORE_URL": "https://apps.apple.com/app/id1", "APP__ANDROID_STORE_URL": "https://play.example/a"}


@pytest.mark.parametrize("language", LANGUAGES)
async def test_page_of_each_device_is_accessible_with_app_colors(
    chromium: Chromium, run: Any, pictures: Path | None, tmp_path: Path, language: str
) -> None:
    """With accent, logo, stores, a QR code or a second button, axe-core finds no violation and everything fits."""
    logo = tmp_path / "logo.svg"
    logo.write_text(_LOGO)
    app_colors = {"APP__ACCENT": "#059669", "APP__LOGO": str(logo), "APP__ANDROID_PACKAGE": "ae.foryoure.app"}
    violations: list[str] = []
    devices = {"desktop": DESKTOP, "iphone": IPHONE, "android": ANDROID, "ipad": IPAD, "tablet": ANDROID_TABLET}
    async with run(**app_colors, **_STORES) as app:
        address = f"{await returned(app)}?n=1"
        for name, device in devices.items():
            tab = await chromium.tab(device, language=language)
            await tab.page.goto(address)
            await _open_all(tab.page)
            assert await tab.page.locator("#scan").is_visible() == (device is DESKTOP)
            assert await tab.page.locator("#intent").is_visible() == (device in {ANDROID, ANDROID_TABLET})
            assert await tab.page.evaluate("document.querySelector('.logo').naturalWidth") > 0
            for scheme in ("light", "dark"):
                await tab.page.emulate_media(color_scheme=scheme)
                found = await axe(tab.page, contrast_only=scheme == "dark")
                violations += [f"{name}, {scheme}: {what}" for what in found["violations"] + found["undecided"]]
                await picture(tab, pictures, f"{name}-{language}-{scheme}")
            await _check_fits(tab.page, name)
            assert tab.violations == []
            await tab.context.close()
    assert violations == []


@pytest.mark.parametrize("language", LANGUAGES)
async def test_app_link_page_is_accessible(chromium: Chromium, run: Any, pictures: Path | None, language: str) -> None:
    """The page at an app link's own address has no violation in either scheme, and fits every screen."""
    async with run(APP__DEEP_LINK=f"{LINK} https://open.example.com/amo", **_STORES) as app:
        for name, device in {"phone": ANDROID, "tablet": IPAD, "desktop": DESKTOP}.items():
            tab = await chromium.tab(device, language=language)
            await tab.page.goto(public(app, "/amo?code=c&state=s"))
            assert await tab.link() == f"{LINK}?code=c&state=s"
            await _open_all(tab.page)
            for scheme in ("light", "dark"):
                await tab.page.emulate_media(color_scheme=scheme)
                found = await axe(tab.page, contrast_only=scheme == "dark")
                assert found["violations"] + found["undecided"] == []
                await picture(tab, pictures, f"app-link-{name}-{language}-{scheme}")
            await _check_fits(tab.page, "app link")
            assert (tab.violations, tab.launches) == ([], [])
            await tab.context.close()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_page_with_long_names_fits_screen(
    chromium: Chromium, run: Any, pictures: Path | None, language: str
) -> None:
    """The longest host and a long app name wrap at every size, also with text twice as large."""
    async with run(APP__NAME=LONG_NAME) as app:
        app.amo.account.host = LONG_HOST
        query = f"code={app.amo.code()}&state=s&referer={LONG_HOST}"
        address = await returned(app, query)
        for kind, device in {"desktop": DESKTOP, "phone": IPHONE, "view": WITHOUT_ATTEMPT["ios-instagram"]}.items():
            tab = await chromium.tab(device, language=language)
            await tab.page.goto(f"{address}?n=1")
            assert LONG_HOST in await tab.page.locator("main").inner_text()
            for text in ("100%", "200%"):
                await tab.page.evaluate("size => { document.documentElement.style.fontSize = size }", text)
                for size, (width, height) in _SIZES.items():
                    await tab.page.set_viewport_size({"width": width, "height": height})
                    assert (kind, text, size, await tab.page.evaluate(OVERFLOW)) == (kind, text, size, [])
                    if size == "small phone":
                        await picture(tab, pictures, f"long-{language}-{kind}-{text.removesuffix('%')}")
            await tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_keyboard_order_follows_reading_order(chromium: Chromium, run: Any, scheme: Any) -> None:
    """The Tab key reaches the button first, then the help in reading order, with a visible focus."""
    async with run() as app:
        tab = await chromium.tab(DESKTOP, scheme=scheme)
        await tab.page.goto(await returned(app))
        await _open_all(tab.page)
        stops = await tab.page.evaluate("[...document.querySelectorAll('a, summary')].map(each => each.outerHTML)")
        assert 'id="open"' in stops[0]
        for stop in stops:
            await tab.page.keyboard.press("Tab")
            seen = await tab.page.evaluate(
                """() => {
                  const [at, style] = [document.activeElement, getComputedStyle(document.activeElement)];
                  return [at.outerHTML, style.outlineStyle, parseFloat(style.outlineWidth)];
                }"""
            )
            assert seen == [stop, "solid", 3]


async def test_page_tap_targets_are_large_enough(chromium: Chromium, app: Running) -> None:
    """Each tap target is as wide as the text and at least 48 pixels high."""
    tab = await chromium.tab(ANDROID)
    await tab.page.goto(f"{await returned(app)}?n=1")
    boxes = await tab.page.evaluate(
        """[...document.querySelectorAll('a.button, a.second, summary')].map(each => {
          const main = document.querySelector('main'), box = each.getBoundingClientRect();
          const style = getComputedStyle(main);
          return [each.id || each.localName, box.height,
            box.width - (main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight))];
        })"""
    )
    assert len(boxes) >= 2
    for what, height, wider in boxes:
        assert (what, height >= 48, abs(wider) < 1) == (what, True, True)


async def test_page_has_no_animation(chromium: Chromium, app: Running) -> None:
    """No element is animated, in particular if reduced motion is requested."""
    tab = await chromium.tab(IPHONE)
    await tab.page.emulate_media(reduced_motion="reduce")
    await tab.page.goto(f"{await returned(app)}?n=1")
    await _open_all(tab.page)
    assert await tab.page.evaluate("document.getAnimations().length") == 0
