"""The page that returns a person to the app."""

from __future__ import annotations

import secrets
import tomllib
from importlib import resources

from aiohttp import web
from jinja2 import Environment, StrictUndefined

_FOLDER = resources.files("amo_callback.web.pages")
_RELOAD_SECONDS = 2
_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Pages:
    """Render the page in its variants: `connected`, `exchanging`, `gone`, and each of the deep link's words."""

    def __init__(self, *, app_name: str) -> None:
        texts = tomllib.loads((_FOLDER / "en.toml").read_text(encoding="utf-8"))
        self._texts = _named(texts, app_name)
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        self._template = environment.from_string((_FOLDER / "page.html").read_text(encoding="utf-8"))

    def render(self, variant: str, *, status: int, link: str | None = None) -> web.Response:
        """Render one variant, with a link to the app where it makes sense."""
        nonce = secrets.token_urlsafe(16)
        html = self._template.render(
            text=self._texts[variant],
            open=self._texts["open"],
            hint=self._texts["hint"],
            link=link,
            nonce=nonce,
            reload=_RELOAD_SECONDS if variant == "exchanging" else None,
        )
        return web.Response(
            text=html,
            status=status,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": _POLICY.format(nonce=nonce)},
        )


def _named(texts: dict[str, object], app_name: str) -> dict[str, object]:
    named: dict[str, object] = {}
    for key, value in texts.items():
        named[key] = _named(value, app_name) if isinstance(value, dict) else str(value).replace("{app}", app_name)
    return named
