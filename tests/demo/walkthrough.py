"""The whole demo in this process, and a client that uses it as a browser does."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from amo_callback.demo.backend import ConnectionSnapshot, Snapshot
from amo_callback.demo.environment import Addresses, Demo, choose_addresses, open_demo
from amo_callback.demo.feed import FeedEntry
from amo_callback.demo.scenarios import SLOW
from tests.fakes import ShiftedClock
from tests.wait_limit import WAIT_LIMIT

TOKEN_LIFE = 3600.0
"""The access tokens' lifetime in seconds, long enough that only requested refreshes happen."""


@dataclass(kw_only=True, slots=True)
class Walkthrough:
    """The running demo, its clock, its HTTP client and the lines of its feed."""

    addresses: Addresses
    clock: ShiftedClock
    http: aiohttp.ClientSession
    demo: Demo
    lines: list[FeedEntry]

    async def until(self, fits: Callable[[Snapshot], bool]) -> Snapshot:
        async with asyncio.timeout(WAIT_LIMIT):
            while not fits(self.demo.poller.snapshot):  # noqa: ASYNC110 -- the poller has no event
                await asyncio.sleep(0.02)
        return self.demo.poller.snapshot

    async def page(self, address: str) -> str:
        _, text = await self.visit(address)
        return text

    async def visit(self, address: str) -> tuple[str, str]:
        """Return the address and the text of the page to which an address leads."""
        async with self.http.get(address) as response:
            return str(response.url), await response.text()

    async def connect(self, host: str = "reforyou.amocrm.ru") -> ConnectionSnapshot:
        """Connect an account on the phone page and return to the app."""
        page = await self.page(await self.allow(host))
        assert "Back in the app" in await self.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
        lifetime = await self.until(lambda lifetime: any(one.domain == host for one in lifetime.connections))
        return next(one for one in lifetime.connections if one.domain == host)

    async def allow(self, host: str = "reforyou.amocrm.ru") -> str:
        """Start on the phone page, and return the address of the link that allows access."""
        consent = await self.page(f"http://{self.addresses.panel}/phone/connect")
        allow = link(consent, rf'class="allow[^>]*href="([^"]+host={re.escape(host)}[^"]+)"')
        return f"http://{self.addresses.amo}{allow}"

    async def attempt(self, name: str, connection: str = "") -> int:
        """Start a scenario as the panel's button does."""
        address = f"http://{self.addresses.panel}/scenarios/{name}?connection={connection}"
        async with self.http.post(address, json={}) as response:
            return response.status

    def pass_lease(self) -> None:
        """Advance the clock to the next try of a refresh whose outcome is unknown."""
        self.clock.advance(SLOW + 3)

    async def until_said(self, who: str, text: str) -> None:
        async with asyncio.timeout(WAIT_LIMIT):
            while text not in self.said(who):  # noqa: ASYNC110 -- the feed has no event
                await asyncio.sleep(0.02)

    def said(self, who: str) -> list[str]:
        return [line.text for line in self.lines if line.who == who]


def link(html: str, pattern: str) -> str:
    """Return the target of a link in a page."""
    found = re.search(pattern, html)
    assert found, html
    return found[1].replace("&amp;", "&")


@asynccontextmanager
async def open_walkthrough(addresses: Addresses | None = None) -> AsyncIterator[Walkthrough]:
    lines: list[FeedEntry] = []
    clock = ShiftedClock()
    addresses = addresses or choose_addresses(None)
    async with (
        open_demo(addresses, token_life=TOKEN_LIFE, clock=clock, on_entry=lines.append) as demo,
        aiohttp.ClientSession(headers={"Accept": "text/html", "Sec-Fetch-Dest": "iframe"}) as http,
    ):
        yield Walkthrough(addresses=addresses, clock=clock, http=http, demo=demo, lines=lines)
