"""The whole demonstration in this process, and somebody who walks through it as a browser would."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from amo_callback.clock import SystemClock
from amo_callback.demo.stage import choose_sites, open_stage
from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from amo_callback.demo.life import ConnectionLife, Life
    from amo_callback.demo.stage import Sites, Stage
    from amo_callback.demo.story import Line

TOKEN_LIFE = 3600.0
"""Seconds: nothing is refreshed in a test but what is asked for."""


@dataclass(kw_only=True, slots=True)
class Show:
    """The demonstration, as whoever looks at it has it."""

    sites: Sites
    http: aiohttp.ClientSession
    stage: Stage
    lines: list[Line]
    looked: asyncio.Event
    """Set by each look."""

    async def until(self, fits: Callable[[Life], bool]) -> Life:
        """Wait until what is seen fits."""
        async with asyncio.timeout(PATIENCE):
            while not fits(self.stage.watcher.life):
                self.looked.clear()
                await self.looked.wait()
        return self.stage.watcher.life

    async def page(self, address: str) -> str:
        """Open a page as a browser does."""
        async with self.http.get(address) as response:
            return await response.text()

    async def connect(self, host: str = "reforyou.amocrm.ru") -> ConnectionLife:
        """Connect an account on the phone, and return to the app."""
        consent = await self.page(f"http://{self.sites.panel}/phone/connect")
        allow = link(consent, rf'class="allow[^>]*href="([^"]+host={re.escape(host)}[^"]+)"')
        page = await self.page(f"http://{self.sites.amo}{allow}")
        assert "Back in the app" in await self.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
        life = await self.until(lambda life: any(one.domain == host for one in life.connections))
        return next(one for one in life.connections if one.domain == host)

    async def attempt(self, name: str, connection: str = "") -> int:
        """Press a button of the panel's."""
        address = f"http://{self.sites.panel}/trials/{name}?connection={connection}"
        async with self.http.post(address, json={}) as response:
            return response.status

    def said(self, who: str) -> list[str]:
        return [line.says for line in self.lines if line.who == who]

    async def now(self) -> Any:
        """Return what the panel is told."""
        async with self.http.get(f"http://{self.sites.panel}/life") as response:
            return await response.json()


def link(html: str, pattern: str) -> str:
    """Return where a link of a page leads."""
    found = re.search(pattern, html)
    assert found, html
    return found[1].replace("&amp;", "&")


@asynccontextmanager
async def open_show(sites: Sites | None = None) -> AsyncIterator[Show]:
    lines: list[Line] = []
    looked = asyncio.Event()
    sites = sites or choose_sites(None)
    async with (
        open_stage(
            sites, token_life=TOKEN_LIFE, clock=SystemClock(), told=lines.append, seen=lambda _: looked.set()
        ) as stage,
        aiohttp.ClientSession(headers={"Accept": "text/html"}) as http,
    ):
        watching = asyncio.create_task(stage.watcher.run())
        try:
            yield Show(sites=sites, http=http, stage=stage, lines=lines, looked=looked)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
