"""The demonstration's own pages: the panel, and the app's screen."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATIC = {
    "panel.css": "text/css",
    "panel.js": "text/javascript",
    "phone.css": "text/css",
    "phone.js": "text/javascript",
}


class Renderer:
    """Render them; `phone_sites` are the addresses that the phone's browser goes to."""

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
        """Render a page."""
        html = self._environment.get_template(name).render(values)
        headers = {"Content-Security-Policy": self._policy, "Cache-Control": "no-store"}
        return web.Response(text=html, content_type="text/html", headers=headers)

    def routes(self) -> Sequence[web.RouteDef]:
        """Return what the pages load."""
        return [web.get("/static/{name}", self._static)]

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in _STATIC:
            raise web.HTTPNotFound
        text = (resources.files("amo_callback.demo") / "pages" / name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=_STATIC[name], charset="utf-8")
