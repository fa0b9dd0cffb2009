"""The demo in a real browser: the phone page in its frame, the service's page and the panel."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from amo_callback.demo.scenarios import SLOW
from tests.browser.accessibility import OVERFLOW, axe
from tests.browser.chromium import Chromium, Device, picture
from tests.browser.conftest import Site
from tests.demo.walkthrough import open_walkthrough

_WIDE = Device(width=1440, height=900)
_IS_SHOWN = """selector => {
  const box = document.querySelector(selector).getBoundingClientRect();
  const bar = document.querySelector('nav').getBoundingClientRect();
  return box.top >= bar.bottom && box.top < innerHeight - 100;
}"""
"""Whether the upper edge of an element is in the viewport, below the bar with the links."""


async def test_demo_phone_connects_beside_panel(chromium: Chromium, pictures: Path | None) -> None:
    """After the consent the app opens by itself in the phone's frame, and the panel shows the connection."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        phone = tab.page.frame_locator("#phone")
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.wait_for()
        await picture(tab, pictures, "demo-consent")
        await phone.locator("a.allow").first.click()
        await phone.get_by_text("Back in the app").wait_for()
        await tab.page.locator("article .domain").wait_for()
        await tab.page.get_by_role("button", name="100 backends get a 401").click()
        await tab.page.locator("#lines").get_by_text("different access tokens: 1").wait_for()
        await tab.page.get_by_role("button", name="Lose a request").click()
        await tab.page.locator("#lines").get_by_text("The response: ").wait_for()
        show.pass_lease()
        accepted = "Introspection, which spends nothing, accepts a refresh token."
        await tab.page.locator("#lines").get_by_text(accepted).wait_for()
        await show.until(lambda lifetime: lifetime.spent == 2)
        await tab.page.locator(".pairs", has_text="3").wait_for()
        await picture(tab, pictures, "demo")
        assert await tab.page.locator("article .domain").all_inner_texts() == ["reforyou.amocrm.ru"]
        assert await tab.page.locator("#ready").inner_text() == "service ready"
        assert (tab.violations, tab.dialogs) == ([], [])


async def test_demo_slow_answer_opens_app_by_itself(chromium: Chromium, pictures: Path | None) -> None:
    """The phone shows "Still connecting", and opens the app when AMO has answered."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        phone = tab.page.frame_locator("#phone")
        await tab.page.get_by_role("button", name="Delay the next connection").click()
        await tab.page.locator("#lines").get_by_text("is delayed by").wait_for()
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.click()
        await show.until(lambda lifetime: lifetime.issued == 1)
        show.clock.advance(8)
        await phone.get_by_role("heading", name="Still connecting").wait_for()
        await picture(tab, pictures, "demo-slow")
        show.clock.advance(SLOW - 8)
        await phone.get_by_text("Back in the app").wait_for()
        assert (tab.violations, tab.dialogs) == ([], [])


async def test_demo_lost_link_keeps_page_until_app_has_result(chromium: Chromium, pictures: Path | None) -> None:
    """The page for phones stays, the panel shows the owner, and the app then shows the result."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        phone = tab.page.frame_locator("#phone")
        await tab.page.get_by_role("button", name="Lose the deep link").click()
        await tab.page.locator("#lines").get_by_text("The next deep link does not reach the app").wait_for()
        await phone.locator("#connect").click()
        await tab.page.locator("#lines").get_by_text("404, pending").wait_for()
        await phone.locator("a.allow").first.click()
        await tab.page.locator("#lines").get_by_text("200, The account is connected.").wait_for()
        await phone.get_by_role("heading", name="amoCRM is connected").wait_for()
        assert await phone.locator(".note").count() == 0
        await tab.page.locator("article .owners", has_text="42").wait_for()
        await picture(tab, pictures, "demo-lost-link")
        await tab.page.get_by_role("link", name="Open the app on the phone").click()
        await phone.get_by_text("Connected without the deep link").wait_for()
        await picture(tab, pictures, "demo-lost-link-app")
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


async def test_demo_panel_at_localhost_works(chromium: Chromium) -> None:
    """The panel opened as `localhost` shows the phone, in which the account connects."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        port = show.addresses.panel.rpartition(":")[2]
        await tab.page.goto(f"http://localhost:{port}/")
        phone = tab.page.frame_locator("#phone")
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.click()
        await phone.get_by_text("Back in the app").wait_for()
        assert tab.violations == []


async def test_demo_other_site_changes_nothing(chromium: Chromium, other_site: Site) -> None:
    """A form of another site, and its link to the phone's start, are refused by the panel."""
    async with open_walkthrough() as show:
        await show.connect()
        panel = f"http://{show.addresses.panel}"
        other_site.pages["/"] = (
            f'<!doctype html><form method="post" action="{panel}/phone/disconnect"><button>x</button></form>'
            f'<a href="{panel}/phone/connect">y</a>'
        )
        tab = await chromium.tab(_WIDE)
        for selector in ("button", "a"):
            await tab.page.goto(other_site.address)
            await tab.page.locator(selector).click()
            await tab.page.get_by_text("Another website sent this request").wait_for()
        await tab.page.goto(panel)
        await tab.page.locator("article .owners", has_text="42").wait_for()


@pytest.mark.parametrize("width", [360, 390, 768])
async def test_demo_narrow_panel_leads_to_phone_and_events(chromium: Chromium, width: int) -> None:
    """On a narrow screen, keys lead from the phone to the events and back, and the newest event is always shown."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(Device(width=width, height=760))
        await tab.page.goto(f"http://{show.addresses.panel}/")
        await show.attempt("away")
        latest = tab.page.locator("#latest")
        await latest.get_by_text("you: amoCRM is unreachable.").wait_for()
        for name, target in (("Events", "#lines li"), ("Phone", "#phone"), ("Events", "#lines li")):
            link = tab.page.get_by_role("navigation").get_by_role("link", name=name)
            while not await link.evaluate("link => link === document.activeElement"):
                await tab.page.keyboard.press("Shift+Tab" if name == "Phone" else "Tab")
            await tab.page.keyboard.press("Enter")
            await tab.page.wait_for_function(_IS_SHOWN, arg=target)
            await expect(latest).to_be_in_viewport(ratio=1)


async def test_demo_open_panel_shows_next_demo(chromium: Chromium) -> None:
    """An open panel shows a new demo at the same ports with its secrets and all its lines."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://{show.addresses.panel}/")
        before = await tab.page.locator("footer code").first.inner_text()
        for text in ("amoCRM is unreachable.", "amoCRM is reachable again."):
            await show.attempt("away")
            await tab.page.locator("#lines").get_by_text(text).wait_for()
    await tab.page.get_by_text("the demo has ended").wait_for()
    async with open_walkthrough(show.addresses) as another:
        await another.attempt("away")
        await tab.page.locator("#lines").get_by_text("amoCRM is unreachable.").wait_for()
        await tab.page.locator("#lines").get_by_text("amoCRM is reachable again.").wait_for(state="detached")
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
            for width in (1440, 1280, 1100, 768, 390, 360):
                await tab.page.set_viewport_size({"width": width, "height": 900})
                assert (name, width, await tab.page.evaluate(OVERFLOW)) == (name, width, [])
                assert (name, width, (await axe(tab.page))["violations"]) == (name, width, [])
                await picture(tab, pictures, f"demo-{name}-{scheme}-{width}")
        await tab.page.goto(f"http://{show.addresses.panel}/phone/connect")
        assert (await axe(tab.page))["violations"] == []
        assert tab.violations == []
