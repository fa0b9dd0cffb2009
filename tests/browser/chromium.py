"""A real browser, and what it did: every request, navigation, dialog and complaint of a tab."""

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
    """What a browser says that it is, and how large it is."""

    user_agent: str | None = None
    """`None`: Chromium's own, on a desktop."""
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

ELSEWHERE = {
    "desktop": DESKTOP,
    "ios-instagram": _phone(f"{_IOS} Mobile/15E148 Instagram 350.0.0.0.0 (iPhone15,2; iOS 18_5; uk_UA)"),
    "android-web-view": _phone(
        "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/AP1A; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 "
        "Chrome/140.0.0.0 Mobile Safari/537.36"
    ),
    "android-telegram": _phone(f"{_ANDROID} Chrome/140.0.0.0 Mobile Safari/537.36 Telegram-Android/11.0 (Pixel 8)"),
}
"""Where an attempt by itself would cost something: the page in an app's own view, or the desktop's one free launch.

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
"""Notes at each attempt to leave for the app how far the document had come; it goes in before the page's own script."""


@dataclass(kw_only=True, slots=True)
class Tab:
    """A tab, and all that it did."""

    page: Page
    cdp: CDPSession
    requests: list[str] = field(default_factory=list)
    navigations: list[tuple[str, str]] = field(default_factory=list)
    """Why and where to, for each navigation that the document itself began."""
    dialogs: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Requests that came to nothing: among them every launch, for no app is installed here."""
    something_failed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def context(self) -> BrowserContext:
        return self.page.context

    @property
    def launches(self) -> list[str]:
        """The addresses that were asked for outside of the web."""
        web = ("http:", "https:", "data:", "about:", "blob:", "chrome-error:")
        return [address for address in self.requests if not address.startswith(web)]

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked for anything."""
        return {urlsplit(address).netloc for address in self.requests if address.startswith(("http:", "https:"))}

    @property
    def violations(self) -> list[str]:
        """What the browser refused for the page's policy."""
        return [text for text in self.console if "Content Security Policy" in text or "violates" in text]

    async def until_launched(self) -> str:
        """Wait until the browser has tried to launch the app (moving on earlier would call it off); return the link."""
        while not (links := [address for address in self.failed if address.startswith(SCHEME)]):
            self.something_failed.clear()
            await asyncio.wait_for(self.something_failed.wait(), WAIT_LIMIT)
        return links[-1]

    async def attempts(self) -> list[dict[str, object]]:
        """Return the document's attempts to leave for the app, and how far it had come at each."""
        found: list[dict[str, object]] = await self.page.evaluate("window.__attempts")
        return found

    async def link(self) -> str | None:
        """Return the address behind the button, as it stands on the page."""
        button = self.page.locator("#open")
        return await button.get_attribute("href") if await button.count() else None

    async def tap(self) -> None:
        """Tap the button by script: after one attempt, Chromium swallows what real fingers do."""
        await self.page.evaluate("document.querySelector('#open').click()")

    async def call_itself(self, device: Device) -> None:
        """Say from now on that this is another browser."""
        if device.user_agent is not None:
            await self.cdp.send("Emulation.setUserAgentOverride", {"userAgent": device.user_agent})

    async def pass_time(self, seconds: float) -> None:
        """Let the document's time pass, in a moment of ours; then it stands still, and nothing is loaded."""
        over = asyncio.Event()
        self.cdp.once("Emulation.virtualTimeBudgetExpired", lambda _: over.set())
        await self.cdp.send("Emulation.setVirtualTimePolicy", {"policy": "advance", "budget": seconds * 1000})
        await asyncio.wait_for(over.wait(), WAIT_LIMIT)

    async def go_on(self) -> None:
        """Let time run again; timers do not wait any more."""
        await self.cdp.send("Emulation.setVirtualTimePolicy", {"policy": "advance"})

    async def hide_and_show(self) -> None:
        """Play what the document sees when another app comes to the front, and this one again: no tab can be hidden."""
        for state in ("hidden", "visible"):
            await self.page.evaluate(
                """state => {
                  Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});
                  Object.defineProperty(document, 'hidden', {value: state === 'hidden', configurable: true});
                  document.dispatchEvent(new Event('visibilitychange', {bubbles: true}));
                }""",
                state,
            )

    async def come_back(self) -> None:
        """Play what the document sees when it is taken out of the back-forward cache."""
        await self.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")

    async def note(self) -> str:
        """Return what a screen reader was last told."""
        return (await self.page.locator("[role=status]").inner_text()).strip()


@dataclass(kw_only=True, slots=True)
class Chromium:
    """Opens tabs, in the browser of all tests or in one of their own.

    A launch of the app, once accepted, is remembered by the whole process.
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
        """Open a tab as a person of its own; where the app is launched, in a fresh browser."""
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
        return await self.another(context)

    async def own(self, *flags: str) -> Browser:
        self.browsers.append(await launch(self.playwright, *flags))
        return self.browsers[-1]

    async def another(self, context: BrowserContext) -> Tab:
        """Open one more tab beside others."""
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
            tab.something_failed.set()

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
    """Return where a Chromium is."""
    return next((found for name in EXECUTABLES if (found := shutil.which(name))), None)


async def launch(playwright: Playwright, *flags: str) -> Browser:
    """Start a browser."""
    return await playwright.chromium.launch(
        executable_path=find_chromium(),
        timeout=1000 * WAIT_LIMIT,
        args=["--no-sandbox", "--disable-gpu", *flags],  # root has no sandbox, and a container may have neither
    )


async def picture(tab: Tab, folder: Path | None, name: str) -> None:
    """Save what a person sees, where pictures were asked for."""
    if folder is not None:
        await tab.page.screenshot(path=folder / f"{name}.png", full_page=True)
