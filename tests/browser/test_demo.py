"""The demo in a real browser: the phone page in its frame, the service's page and the panel."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser.accessibility import OVERFLOW, axe
from tests.browser.chromium import Chromium, Device, picture
from tests.demo.walkthrough import open_walkthrough

_WIDE = Device(width=1440, height=900)


async def test_demo_phone_connects_beside_panel(chromium: Chromium, pictures: Path | None) -> None:
    """Start, consent, return page and app follow each other in the frame, and the panel shows the connection."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        phone = tab.page.frame_locator("#phone")
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.wait_for()
        await picture(tab, pictures, "demo-consent")
        await phone.locator("a.allow").first.click()
        await phone.locator("#open").wait_for()
        await tab.page.locator("article .domain").wait_for()
        await picture(tab, pictures, "demo-return")
        await phone.locator("#open").click()
        await phone.get_by_text("Back in the app").wait_for()
        await tab.page.get_by_role("button", name="100 backends get a 401").click()
        await tab.page.get_by_text("different access tokens: 1").wait_for()
        await tab.page.get_by_role("button", name="Lose a request").click()
        await tab.page.get_by_text("Introspection, which spends nothing, accepts a refresh token.").wait_for()
        await picture(tab, pictures, "demo")
        assert await tab.page.locator("article .domain").all_inner_texts() == ["reforyou.amocrm.ru"]
        assert await tab.page.locator("#ready").inner_text() == "service ready"
        assert (tab.violations, tab.dialogs) == ([], [])


async def test_demo_refusal_returns_to_app(chromium: Chromium) -> None:
    """A refusal returns through the service's page to the app, which shows the error."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        phone = tab.page.frame_locator("#phone")
        await phone.locator("#connect").click()
        await phone.locator("a.refuse").click()
        await phone.locator("#open").click()
        await phone.get_by_text("The deep link contains error=access_denied.").wait_for()
        assert await tab.page.locator("#empty").is_visible()


async def test_demo_open_panel_shows_next_demo(chromium: Chromium) -> None:
    """An open panel shows a new demo at the same ports with its secrets and all its lines."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        before = await tab.page.locator("footer code").first.inner_text()
        for text in ("amoCRM is unreachable.", "amoCRM is reachable again."):
            await show.attempt("away")
            await tab.page.get_by_text(text).wait_for()
    await tab.page.get_by_text("the demo has ended").wait_for()
    async with open_walkthrough(show.addresses) as another:
        await another.attempt("away")
        await tab.page.get_by_text("amoCRM is unreachable.").wait_for()
        await tab.page.get_by_text("amoCRM is reachable again.").wait_for(state="detached")
        assert await tab.page.locator("footer code").first.inner_text() != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_demo_pages_are_accessible(chromium: Chromium, pictures: Path | None, scheme: Any) -> None:
    """Axe-core finds no violation on panel, app and consent page, and nothing is wider than the screen."""
    async with open_walkthrough() as show:
        await show.connect()
        tab = await chromium.tab(_WIDE, scheme=scheme)
        for name, site in (("panel", f"{show.addresses.panel}/"), ("app", f"{show.addresses.panel}/phone")):
            await tab.page.goto(f"http://{site}")
            if name == "panel":
                await tab.page.locator("article .domain").wait_for()
            found = await axe(tab.page)
            assert (name, found["violations"]) == (name, [])
            for width in (1440, 1100, 390):
                await tab.page.set_viewport_size({"width": width, "height": 900})
                assert (name, width, await tab.page.evaluate(OVERFLOW)) == (name, width, [])
                await picture(tab, pictures, f"demo-{name}-{scheme}-{width}")
        await tab.page.goto(f"http://{show.addresses.panel}/phone/connect")
        assert (await axe(tab.page))["violations"] == []
        assert tab.violations == []
