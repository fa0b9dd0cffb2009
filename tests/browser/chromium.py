"""A real browser, and a record of a tab's requests, navigations, dialogs and messages."""

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, CDPSession, ConsoleMessage, Dialog, Page, Playwright, Request

from tests.wait_limit import WAIT_LIMIT

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
SCHEME = "foryoure:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A browser's user agent and screen."""

    user_agent: str | None = None
    """`None` keeps Chromium's own desktop user agent."""
    width: int = 1280
    height: int = 800
    pixels: float = 1
    touch: bool = False


def _phone(user_agent: str) -> Device:
    return Device(user_agent=user_agent, width=390, height=760, pixels=2, touch=True)


_IOS = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_ANDROID = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko)"

DESKTOP = Device()
IPHONE = _phone(f"{_IOS} Version/18.5 Mobile/15E148 Safari/604.1")
ANDROID = _phone(
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36"
)

IPAD = Device(
    user_agent="Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Safari/605.1.15",
    width=768,
    height=1024,
    touch=True,
)
"""An iPad, which identifies itself as a Mac."""
ANDROID_TABLET = Device(
    user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    width=800,
    height=1280,
    touch=True,
)
"""An Android tablet that requests desktop pages."""
TOUCH_LAPTOP = Device(
    user_agent="Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
    "Safari/537.36",
    touch=True,
)

WITHOUT_ATTEMPT = {
    "desktop": DESKTOP,
    "ios-instagram": _phone(f"{_IOS} Mobile/15E148 Instagram 350.0.0.0.0 (iPhone15,2; iOS 18_5; uk_UA)"),
    "android-web-view": _phone(
        "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/AP1A; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
        "Chrome/140.0.0.0 Mobile Safari/537.36"
    ),
    "android-telegram": _phone(f"{_ANDROID} Chrome/140.0.0.0 Mobile Safari/537.36 Telegram-Android/11.0 (Pixel 8)"),
}
"""Browsers in which the page makes no automatic attempt: a desktop browser and in-app browsers.

tests/web/agents.py has all kinds of browsers.
"""

_WATCH = """
window.__attempts = [];
let loaded = false;
addEventListener('load', () => { loaded = true }, true);
navigation.addEventListener('navigate', event => {
  const to = event.destination.url;
  if (/^https?:/.test(to)) return;
  window.__attempts.push({
    to, loaded, ready: document.readyState, button: !!document.querySelector('#open'),
    last: document.body.lastElementChild !== null && !!document.querySelector('main > :last-child'),
  });
});
"""
"""Records the document's state at each attempt to open the app; it runs before the page's own script."""


@dataclass(kw_only=True, slots=True)
class Tab:
    """A tab with a record of its actions."""

    page: Page
    cdp: CDPSession
    requests: list[str] = field(default_factory=list)
    navigations: list[tuple[str, str]] = field(default_factory=list)
    """Reason and address of each navigation begun by the document."""
    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Failed requests, including every launch, because no app is installed."""
    request_failed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def context(self) -> BrowserContext:
        return self.page.context

    @property
    def launches(self) -> list[str]:
        """The requested addresses with a scheme that the browser does not handle itself."""
        web = ("http:", "https:", "data:", "about:", "blob:", "chrome-error:")
        return [address for address in self.requests if not address.startswith(web)]

    @property
    def hosts(self) -> set[str]:
        """The hosts of all requests."""
        return {urlsplit(address).netloc for address in self.requests if address.startswith(("http:", "https:"))}

    @property
    def violations(self) -> list[str]:
        """The browser's messages about violations of the page's policy."""
        return [text for text in self.console if "Content Security Policy" in text or "violates" in text]

    async def until_launched(self) -> str:
        """Wait until the browser has tried to launch the app, and return the link."""
        while not (links := [address for address in self.failed if address.startswith(SCHEME)]):
            self.request_failed.clear()
            await asyncio.wait_for(self.request_failed.wait(), WAIT_LIMIT)
        return links[-1]

    async def attempts(self) -> list[dict[str, object]]:
        """Return the document's attempts to open the app, with its state at each."""
        found: list[dict[str, object]] = await self.page.evaluate("window.__attempts")
        return found

    async def link(self) -> str | None:
        """Return the address of the button."""
        button = self.page.locator("#open")
        return await button.get_attribute("href") if await button.count() else None

    async def tap(self) -> None:
        """Click the button by script, because Chromium ignores real taps after an attempt."""
        await self.page.evaluate("document.querySelector('#open').click()")

    async def call_itself(self, device: Device) -> None:
        """Change the user agent."""
        if device.user_agent is not None:
            await self.cdp.send("Emulation.setUserAgentOverride", {"userAgent": device.user_agent})

    async def pass_time(self, seconds: float, *, policy: str = "advance") -> None:
        """Advance the document's virtual time, then stop it; while it is stopped, nothing is loaded.

        With the policy `pauseIfNetworkFetchesPending`, no time passes during a request.
        """
        over = asyncio.Event()
        self.cdp.once("Emulation.virtualTimeBudgetExpired", lambda _: over.set())
        await self.cdp.send("Emulation.setVirtualTimePolicy", {"policy": policy, "budget": seconds * 1000})
        await asyncio.wait_for(over.wait(), WAIT_LIMIT)

    async def go_on(self) -> None:
        """Resume the document's virtual time, which skips the delays of timers."""
        await self.cdp.send("Emulation.setVirtualTimePolicy", {"policy": "advance"})

    async def hide_and_show(self) -> None:
        """Simulate a switch to another app and back, because the tests cannot hide a tab."""
        for state in ("hidden", "visible"):
            await self.become(state)

    async def become(self, state: str) -> None:
        """Simulate a change of the document's visibility."""
        await self.page.evaluate(
            """state => {
              Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});
              Object.defineProperty(document, 'hidden', {value: state === 'hidden', configurable: true});
              document.dispatchEvent(new Event('visibilitychange', {bubbles: true}));
            }""",
            state,
        )

    async def come_back(self) -> None:
        """Simulate the page's restoration from the back-forward cache."""
        await self.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")

    async def note(self) -> str:
        """Return the text last announced to a screen reader."""
        return (await self.page.locator("[role=status]").inner_text()).strip()


@dataclass(kw_only=True, slots=True)
class Chromium:
    """A source of tabs in the shared browser or in a new one.

    The whole browser process remembers an accepted launch of the app, so tests of launches need a new browser.
    """

    playwright: Playwright
    shared: Browser
    browsers: list[Browser] = field(default_factory=list)

    async def tab(
        self,
        device: Device = DESKTOP,
        *,
        language: str = "en",
        scheme: Literal["light", "dark"] = "light",
        javascript: bool = True,
        headers: Mapping[str, str] | None = None,
        flags: tuple[str, ...] = (),
        own_browser: bool = False,
        browser: Browser | None = None,
    ) -> Tab:
        """Open a tab in its own context, in a new browser if `own_browser` or `flags` are given."""
        browser = await self.own(*flags) if own_browser or flags else browser or self.shared
        context = await browser.new_context(
            user_agent=device.user_agent,
            viewport={"width": device.width, "height": device.height},
            device_scale_factor=device.pixels,
            has_touch=device.touch,
            is_mobile=device.touch,
            locale=language,
            color_scheme=scheme,
            java_script_enabled=javascript,
            extra_http_headers=dict(headers or {}),
        )
        context.set_default_timeout(1000 * WAIT_LIMIT)
        tab = await self.another(context)
        if device.touch:
            await tab.cdp.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 5})
        return tab

    async def own(self, *flags: str) -> Browser:
        self.browsers.append(await launch(self.playwright, *flags))
        return self.browsers[-1]

    async def another(self, context: BrowserContext) -> Tab:
        """Open another tab in the same context."""
        page = await context.new_page()
        cdp = await context.new_cdp_session(page)
        tab = Tab(page=page, cdp=cdp)

        async def answer(dialog: Dialog) -> None:
            tab.dialogs.append(dialog.message)
            await dialog.dismiss()

        def navigated(event: dict[str, Any]) -> None:
            tab.navigations.append((event["reason"], event["url"]))

        def said(message: ConsoleMessage) -> None:
            tab.console.append(message.text)

        def failed(request: Request) -> None:
            tab.failed.append(request.url)
            tab.request_failed.set()

        page.on("requestfailed", failed)
        page.on("request", lambda request: tab.requests.append(request.url))
        page.on("dialog", answer)
        page.on("console", said)
        page.on("pageerror", lambda error: tab.console.append(f"uncaught: {error}"))
        cdp.on("Page.frameRequestedNavigation", navigated)
        await cdp.send("Page.enable")
        await page.add_init_script(_WATCH)
        return tab

    async def close(self) -> None:
        for context in self.shared.contexts:
            await context.close()
        for browser in self.browsers:
            await browser.close()


def find_chromium() -> str | None:
    """Return the path of a Chromium."""
    return next((found for name in EXECUTABLES if (found := shutil.which(name))), None)


async def launch(playwright: Playwright, *flags: str) -> Browser:
    """Start a browser."""
    return await playwright.chromium.launch(
        executable_path=find_chromium(),
        timeout=1000 * WAIT_LIMIT,
        args=[
            "--no-sandbox",
            "--disable-gpu",
            *flags,
        ],  # as root there is no sandbox; a container may lack it and a GPU
    )


async def picture(tab: Tab, folder: Path | None, name: str) -> None:
    """Save a screenshot if `--screenshots` is given."""
    if folder is not None:
        await tab.page.screenshot(path=folder / f"{name}.png", full_page=True)
