"""`amo-callback demo`: one command, nothing to configure."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import TYPE_CHECKING

import aiohttp

from tests.e2e.process import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_demo_leads_through_consent_to_the_app_and_shows_refreshes(tmp_path: Path) -> None:
    """Start page, consent, return page, app; the terminal tells of the connection and of a refresh."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", "demo", "--token-life", "2",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    told = ""

    async def until(pattern: str) -> str:
        nonlocal told
        assert process.stdout is not None
        while not (found := re.search(pattern, told)):
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
            assert line, told
            told += line.decode()
        return found[1]

    start = await until(r"Open +(http://\S+)")
    async with aiohttp.ClientSession(headers={"Accept": "text/html"}) as http:

        async def follow(address: str, link: str) -> str:
            """Open a page, and return where one of its links leads."""
            async with http.get(address) as response:
                html = await response.text()
            found = re.search(link, html)
            assert found, html
            return found[1].replace("&amp;", "&")

        consent = start.rstrip("/") + await follow(start, r'id="connect" href="([^"]+)"')
        allow = start.rstrip("/") + await follow(consent, r'class="allow" href="([^"]+)"')
        app = await follow(allow, r'id="open" [^>]*href="([^"]+)"')
        async with http.get(app) as response:
            landed = await response.text()
    assert "Back in the app" in landed
    assert "The state is the one the app made." in landed
    assert "&#34;success&#34;: true" in landed
    await until(r"(connected +reforyou\.amocrm\.ru)")
    await until(r"(refreshed +reforyou\.amocrm\.ru)")
    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert "nothing of it is left" in rest.decode()
    assert list(tmp_path.iterdir()) == []
