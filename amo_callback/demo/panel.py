"""The panel: the phone, and beside it the connections' life, what may be tried, and what everybody says."""

from __future__ import annotations

import re
from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.demo.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiohttp.typedefs import Handler

    from amo_callback.demo.feed import Feed, FeedEntry
    from amo_callback.demo.render import Renderer
    from amo_callback.demo.scenarios import Scenarios
    from amo_callback.demo.snapshot import Snapshot


_HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE)


@web.middleware
async def loopback_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that name another host than this machine's loopback.

    A page elsewhere may have its name resolve to 127.0.0.1, and would read the API key.
    """
    named = request.headers.getall("Host", [])
    if len(named) != 1 or not is_loopback(named[0]):
        return web.Response(status=421, text="The panel answers at 127.0.0.1 and localhost only.\n")
    return await handler(request)


def is_loopback(host: str) -> bool:
    """Tell whether a `Host` header names the loopback: `localhost`, or an address."""
    match = _HOST.fullmatch(host)
    name = match["name"].lower() if match is not None else ""
    if name == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class Panel:
    """Its routes."""

    def __init__(
        self, *, life: Callable[[], Snapshot], feed: Feed, scenarios: Scenarios, renderer: Renderer, curl: str
    ) -> None:
        self._life = life
        self._feed = feed
        self._trials = scenarios
        self._renderer = renderer
        self._curl = curl

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the panel's routes."""
        return [
            web.get("/", self._page),
            web.get("/snapshot", self._now),
            web.post("/scenarios/{name}", self._try),
        ]

    async def _page(self, _request: web.Request) -> web.Response:
        return self._renderer.page("panel.html", scenarios=SCENARIOS, curl=self._curl)

    async def _now(self, request: web.Request) -> web.Response:
        seen = request.query.get("after", "")
        after = int(seen) if seen.isdecimal() and len(seen) < 10 else 0
        lines = [told(line) for line in self._feed.lines if line.number > after]
        return web.json_response({**asdict(self._life()), "lines": lines}, headers={"Cache-Control": "no-store"})

    async def _try(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # which no page of another origin may send unasked
            return web.Response(status=415)
        connection = request.query.get("connection", "")
        found = next((one for one in self._life().connections if one.id == connection), None)
        done = await self._trials.run(request.match_info["name"], found)
        return web.Response(status=204 if done else 404)


def told(line: FeedEntry) -> Mapping[str, object]:
    """Return a line as the page shows it."""
    return {
        "number": line.number,
        "at": f"{line.at:%H:%M:%S}",
        "who": line.who,
        "text": line.text,
        "domain": line.domain,
        "level": line.level,
    }
