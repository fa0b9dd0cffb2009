"""The page that returns a person to the app."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from amo_callback.web.pages.visitor import LANGUAGES, Kind
from amo_callback.web.pages.wording import fill, read_texts

if TYPE_CHECKING:
    from amo_callback.web.pages.view import View
    from amo_callback.web.pages.visitor import Visitor
    from amo_callback.web.pages.wording import Texts

_LOOK_AGAIN = 2
"""Seconds after which a page that waits for its result is loaded again."""
_POLICY = (
    "default-src 'none'; {script}style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_NOTES = {Kind.OTHER: "on_phone", Kind.IN_APP: "in_app"}


class Pages:
    """Render the page in its variants and languages."""

    def __init__(self, *, app_name: str) -> None:
        self._app_name = app_name
        self._texts = {language: read_texts(language) for language in LANGUAGES}
        environment = Environment(
            loader=PackageLoader("amo_callback.web", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._template = environment.get_template("page.html")

    def render(self, view: View, visitor: Visitor) -> web.Response:
        """Render what `view` says, for whom it is."""
        texts = fill(self._texts[visitor.language], {"app": self._app_name, "domain": view.domain or ""})
        nonce = secrets.token_urlsafe(16)
        html = self._template.render(
            view=view,
            language=visitor.language,
            texts=texts,
            text=texts[view.variant],
            todo=_todo(view, texts),
            note=_note(view, visitor, texts),
            nonce=nonce,
        )
        answer = web.Response(text=html, status=view.status, content_type="text/html", charset="utf-8")
        script = f"script-src 'nonce-{nonce}'; " if view.link else ""
        answer.headers["Content-Security-Policy"] = _POLICY.format(nonce=nonce, script=script)
        answer.headers["Vary"] = "Accept, Accept-Language, User-Agent"
        if view.variant == "exchanging":
            # A header, since `<meta http-equiv=refresh>` is held against a page by those who test for accessibility.
            answer.headers["Refresh"] = str(_LOOK_AGAIN)
        return answer


def _note(view: View, visitor: Visitor, texts: Texts) -> str | None:
    """Return what to know of the button where it may not work; where there is another one first, that is enough."""
    if view.link is None or view.again is not None or visitor.kind not in _NOTES:
        return None
    return texts["page"][_NOTES[visitor.kind]]


def _todo(view: View, texts: Texts) -> str | None:
    return texts["todo"]["again"] if view.again is not None else texts[view.variant].get("todo")
