"""The panel: the phone, the connections, the scenarios and the event feed."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from amo_callback.demo.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.demo.backend import Poller
    from amo_callback.demo.feed import Feed
    from amo_callback.demo.scenarios import Scenarios

_STATIC = {
    "panel.css": "text/css",
    "panel.js": "text/javascript",
    "phone.css": "text/css",
    "phone.js": "text/javascript",
}


class Renderer:
    """Renders the panel and the phone page; the phone's frame may also show the addresses in `phone_sites`."""

    def __init__(self, *, phone_sites: Sequence[str]) -> None:
        self._environment = Environment(
            loader=PackageLoader("amo_callback.demo", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        frames = " ".join(f"http://{site}" for site in phone_sites)
        self._policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
            f"form-action 'self'; base-uri 'none'; frame-ancestors 'self'; frame-src 'self' {frames}"
        )

    def page(self, name: str, **values: object) -> web.Response:
        html = self._environment.get_template(name).render(values)
        headers = {"Content-Security-Policy": self._policy, "Cache-Control": "no-store"}
        return web.Response(text=html, content_type="text/html", headers=headers)

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/static/{name}", self._static)]

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _STATIC:
            raise web.HTTPNotFound
        text = (resources.files("amo_callback.demo") / "pages" / name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=_STATIC[name], charset="utf-8")


def panel_routes(
    poller: Poller, feed: Feed, scenarios: Scenarios, renderer: Renderer, *, curl: str
) -> Sequence[web.RouteDef]:
    async def show_page(_request: web.Request) -> web.Response:
        return renderer.page("panel.html", scenarios=SCENARIOS, curl=curl)

    async def show_snapshot(request: web.Request) -> web.Response:
        seen = request.query.get("after", "")
        after = int(seen) if seen.isdecimal() and len(seen) < 10 else 0
        lines = [{**asdict(line), "at": f"{line.at:%H:%M:%S}"} for line in feed.lines if line.number > after]
        return web.json_response({**asdict(poller.snapshot), "lines": lines}, headers={"Cache-Control": "no-store"})

    async def run_scenario(request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # other origins cannot send JSON without a preflight
            return web.Response(status=415)
        connection = request.query.get("connection", "")
        found = next((one for one in poller.snapshot.connections if one.id == connection), None)
        done = await scenarios.run(request.match_info["name"], found)
        return web.Response(status=204 if done else 404)

    return [
        web.get("/", show_page),
        web.get("/snapshot", show_snapshot),
        web.post("/scenarios/{name}", run_scenario),
    ]
