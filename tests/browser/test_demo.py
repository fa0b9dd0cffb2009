"""The demo in a real browser: the phone page in its frame, the service's page and the panel."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import FrameLocator, Locator

from tests.browser.accessibility import OVERFLOW, axe
from tests.browser.chromium import Chromium, Device, Tab, picture
from tests.browser.conftest import Site
from tests.demo.walkthrough import Walkthrough, open_walkthrough

_WIDE = Device(width=1440, height=900)
_WIDTHS = (1440, 1280, 1100, 768, 390, 360)
_IN_VIEW = """selector => {
  const {top, left, right, height, width} = document.querySelector(selector).getBoundingClientRect();
  const at = document.elementFromPoint(left + width / 2, Math.max(top, 0) + Math.min(height, 20) / 2);
  return left >= 0 && right <= innerWidth && top >= 0 && top < innerHeight
    && document.querySelector(selector).contains(at);
}"""
"""Whether the beginning of an element is on the screen, and not behind another one."""


async def _open_panel(chromium: Chromium, show: Walkthrough, **options: Any) -> tuple[Tab, FrameLocator]:
    """Open the panel, and return its tab and the phone's frame."""
    tab = await chromium.tab(options.pop("device", _WIDE), **options)
    await tab.page.goto(f"http://{show.addresses.panel}/")
    return tab, tab.page.frame_locator("#phone")


def _event(tab: Tab, text: str) -> Locator:
    """Return the lines of the feed with the text."""
    return tab.page.locator("#lines .says", has_text=text)


async def test_demo_phone_connects_beside_panel(chromium: Chromium, pictures: Path | None) -> None:
    """Start, consent, return page and app follow each other in the frame, and the panel shows the connection."""
    async with open_walkthrough() as show:
        tab, phone = await _open_panel(chromium, show)
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.wait_for()
        await picture(tab, pictures, "demo-consent")
        await phone.locator("a.allow").first.click()
        await phone.get_by_role("heading", name="Back in the app").wait_for()
        await tab.page.locator("article .domain").wait_for()
        await tab.page.get_by_role("button", name="100 backends get a 401").click()
        await _event(tab, "different access tokens: 1").wait_for()
        await tab.page.get_by_role("button", name="Lose a request").click()
        await _event(tab, "Introspection, which spends nothing, accepts a refresh token.").wait_for()
        await picture(tab, pictures, "demo")
        assert await tab.page.locator("article .domain").all_inner_texts() == ["reforyou.amocrm.ru"]
        await tab.page.locator("article .owners", has_text="42").wait_for()
        assert await tab.page.locator("#ready").inner_text() == "service ready"
        assert (tab.violations, tab.dialogs) == ([], [])


async def test_demo_return_page_opens_app_without_click(chromium: Chromium) -> None:
    """The page in the frame opens the app by itself, once, and no other program is launched."""
    async with open_walkthrough() as show:
        tab, phone = await _open_panel(chromium, show)
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.click()
        await phone.get_by_role("heading", name="Back in the app").wait_for()
        await phone.locator(".good", has_text="amoCRM is connected").wait_for()
        opened = [address for address in tab.requests if "/phone/return?" in address]
        pages = [address for address in tab.requests if "/api/amo-crm/return/" in address]
        assert (len(opened), len(pages), tab.launches) == (1, 1, [])
        await tab.page.locator("article .owners", has_text="42").wait_for()


async def test_demo_slow_answer_opens_app_without_click(chromium: Chromium, pictures: Path | None) -> None:
    """While amoCRM does not answer, the phone shows "Still connecting"; then the page opens the app by itself."""
    async with open_walkthrough() as show:
        tab, phone = await _open_panel(chromium, show)
        await tab.page.get_by_role("button", name="Delay the next connection").click()
        await _event(tab, "delayed by 9 s").wait_for()
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.click()
        await phone.get_by_role("heading", name="Still connecting").wait_for()
        assert await tab.page.locator("article").count() == 0
        await picture(tab, pictures, "demo-slow-waiting")
        await phone.get_by_role("heading", name="Back in the app").wait_for()
        await tab.page.locator("article .owners", has_text="42").wait_for()
        await picture(tab, pictures, "demo-slow")
        assert (tab.violations, tab.launches) == ([], [])


async def test_demo_lost_link_connects_all_the_same(chromium: Chromium, pictures: Path | None) -> None:
    """The page's link does not reach the app, which asks for the result; the panel shows the owner and each request."""
    async with open_walkthrough() as show:
        tab, phone = await _open_panel(chromium, show)
        await tab.page.get_by_role("button", name="Lose the deep link").click()
        await _event(tab, "The next deep link does not reach the app").wait_for()
        await phone.locator("#connect").click()
        await _event(tab, "The app asks for the result: 404, pending. The app asks again every 2 s.").wait_for()
        await phone.locator("a.allow").first.click()
        await _event(tab, "The deep link is lost: the app does not receive it.").wait_for()
        await phone.locator("#open").wait_for()
        await _event(tab, "The app asks for the result: 200, connected.").wait_for()
        await tab.page.locator("article .owners", has_text="42").wait_for()
        await picture(tab, pictures, "demo-lost-link-page")
        await tab.page.get_by_role("link", name="Open the app on the phone").click()
        await phone.get_by_role("heading", name="Connected without the deep link").wait_for()
        await picture(tab, pictures, "demo-lost-link")
        assert (tab.violations, tab.launches) == ([], [])


async def test_demo_other_website_changes_nothing(chromium: Chromium, other_site: Site) -> None:
    """A page of another website can neither run a scenario nor start a flow nor allow access."""
    async with open_walkthrough() as show:
        panel, amo, proxy = (f"http://{address}" for address in astuple(show.addresses))
        changes = [f"{panel}/phone/connect", f"{amo}/oauth/allow?host=reforyou.amocrm.ru&state=s"]
        posts = [f"{panel}/scenarios/away", f"{panel}/phone/disconnect", f"{proxy}/api/amo-crm/authorizations"]
        other_site.pages["/"] = f"""<!doctype html><form method="post" action="{posts[0]}"><button>Go</button></form>
            <script>
            const get = {changes}.map(address => fetch(address, {{mode: "no-cors"}}));
            const post = {posts}.map(address => fetch(address, {{mode: "no-cors", method: "POST", body: "{{}}"}}));
            Promise.all([...get, ...post]).then(() => document.title = "done");
            </script>"""
        tab = await chromium.tab()
        statuses: dict[str, int] = {}
        tab.page.on("response", lambda response: statuses.update({response.url: response.status}))
        await tab.page.goto(other_site.address)
        await tab.page.wait_for_function("document.title === 'done'")
        assert statuses.items() >= dict.fromkeys([*changes, *posts], 403).items()
        await tab.page.get_by_role("button").click()
        await tab.page.get_by_text("Another website sent this request").wait_for()
        assert show.lines == []


async def test_demo_refusal_returns_to_app(chromium: Chromium) -> None:
    """A refusal returns through the service's page to the app, which shows the error."""
    async with open_walkthrough() as show:
        tab, phone = await _open_panel(chromium, show)
        await phone.locator("#connect").click()
        await phone.locator("a.refuse").click()
        await phone.locator("#open").click()
        await phone.get_by_text("The deep link contains error=access_denied.").wait_for()
        assert await tab.page.locator("#empty").is_visible()


async def test_demo_open_panel_shows_next_demo(chromium: Chromium) -> None:
    """An open panel shows a new demo at the same ports with its secrets and all its lines."""
    async with open_walkthrough() as show:
        tab, _ = await _open_panel(chromium, show)
        before = await tab.page.locator("footer code").first.inner_text()
        for text in ("amoCRM is unreachable.", "amoCRM is reachable again."):
            await show.attempt("away")
            await _event(tab, text).wait_for()
    await tab.page.get_by_text("the demo has ended").wait_for()
    async with open_walkthrough(show.addresses) as another:
        await another.attempt("away")
        await _event(tab, "amoCRM is unreachable.").wait_for()
        await _event(tab, "amoCRM is reachable again.").wait_for(state="detached")
        assert await tab.page.locator("footer code").first.inner_text() != before


async def test_demo_panel_opened_as_localhost_works(chromium: Chromium) -> None:
    """A panel that is opened as `localhost` continues at 127.0.0.1, and the phone connects."""
    async with open_walkthrough() as show:
        tab = await chromium.tab(_WIDE)
        await tab.page.goto(f"http://localhost:{show.addresses.panel.rpartition(':')[2]}/")
        assert tab.page.url == f"http://{show.addresses.panel}/"
        phone = tab.page.frame_locator("#phone")
        await phone.locator("#connect").click()
        await phone.locator("a.allow").first.click()
        await phone.get_by_role("heading", name="Back in the app").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_demo_pages_are_accessible(chromium: Chromium, pictures: Path | None, scheme: Any) -> None:
    """Axe-core finds no violation on panel, app and consent page, and nothing is wider than the screen."""
    async with open_walkthrough() as show:
        await show.attempt("lost_link")
        await show.allow(await show.consent())
        await show.until_said("app", "The app asks for the result: 200")
        await show.connect("gingersnaps.amocrm.ru")
        tab = await chromium.tab(_WIDE, scheme=scheme)
        for name, site in (
            ("panel", f"{show.addresses.panel}/"),
            ("app", f"{show.addresses.panel}/phone"),
            ("consent", f"{show.addresses.panel}/phone/connect"),
        ):
            await tab.page.goto(f"http://{site}")
            if name == "panel":
                await tab.page.locator("article .owners", has_text="42").nth(1).wait_for()
                await _event(tab, "The app asks for the result: 200").wait_for()
            for width in _WIDTHS:
                await tab.page.set_viewport_size({"width": width, "height": 900})
                found = await axe(tab.page)
                assert (name, width, found["violations"]) == (name, width, [])
                assert (name, width, await tab.page.evaluate(OVERFLOW)) == (name, width, [])
                await picture(tab, pictures, f"demo-{name}-{scheme}-{width}")
        assert tab.violations == []


@pytest.mark.parametrize("width", [360, 390, 768])
async def test_demo_narrow_panel_reaches_events_by_keyboard(chromium: Chromium, width: int) -> None:
    """On a narrow screen, the navigation stays visible with the latest event, and the keyboard reaches the events."""
    async with open_walkthrough() as show:
        tab, _ = await _open_panel(chromium, show, device=Device(width=width, height=760))
        await show.attempt("away")
        await _event(tab, "amoCRM is unreachable.").wait_for()
        assert await tab.page.locator("#latest").inner_text() == f"{_time(show)} you: amoCRM is unreachable."
        for name in ("Phone", "Connections", "Scenarios", "Events"):
            await tab.page.keyboard.press("Tab")
            assert await tab.page.evaluate("document.activeElement.textContent") == name
        await tab.page.keyboard.press("Enter")
        await tab.page.wait_for_function(_IN_VIEW, arg="#lines li")
        assert await tab.page.evaluate(_IN_VIEW, "#latest")
        await tab.page.keyboard.press("Tab")
        focused = tab.page.locator(".scroll:focus")
        assert await focused.count() == 1
        assert await tab.page.evaluate(_IN_VIEW, "#events-heading")


async def test_demo_wide_panel_has_no_navigation(chromium: Chromium) -> None:
    """On a wide screen, all parts are beside each other, without a navigation."""
    async with open_walkthrough() as show:
        tab, _ = await _open_panel(chromium, show, device=Device(width=1280, height=900))
        assert not await tab.page.locator("nav").is_visible()
        for part in ("#the-phone", "#the-connections", "#the-events"):
            assert await tab.page.evaluate(_IN_VIEW, part)


def _time(show: Walkthrough) -> str:
    return f"{show.lines[-1].at:%H:%M:%S}"
