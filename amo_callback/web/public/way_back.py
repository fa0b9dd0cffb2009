"""How an outcome becomes an answer: a redirect to the app, a page that leads there, or plain text."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.deeplink import failure_link, success_link
from amo_callback.grant import GrantStatus, Outcome, Redirect
from amo_callback.web.answers import status_of

if TYPE_CHECKING:
    from amo_callback.config import App
    from amo_callback.web.pages.render import Pages

LATE = "amo_unavailable"


class Way(Enum):
    """How this requester is answered."""

    REDIRECT = "redirect"
    PAGE = "page"
    PLAIN = "plain"


def choose_way(app: App, redirect: Redirect, request: web.Request) -> Way:
    """Choose by who calls: AMO's server gets plain text, browsers a page, whatever else a redirect."""
    html = accepts_html(request)
    if redirect.from_server or (redirect.from_widget and not html):
        return Way.PLAIN
    if app.return_mode == "page" or (app.return_mode == "auto" and html):
        return Way.PAGE
    return Way.REDIRECT


def accepts_html(request: web.Request) -> bool:
    """Tell whether `Accept` names HTML; `*/*` does not count."""
    for item in ",".join(request.headers.getall("Accept", [])).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        if kind in {"text/html", "application/xhtml+xml"} and not _refused(parameters):
            return True
    return False


def _refused(parameters: list[str]) -> bool:
    return any(p.startswith("q=") and not p.removeprefix("q=").strip("0.") for p in parameters)


def link_to_app(app: App, outcome: Outcome, *, state: bytes | None) -> str | None:
    """Return the deep link that tells an outcome; `None` while there is none to tell."""
    if outcome.status is GrantStatus.EXCHANGING:
        return None
    if outcome.error is not None:
        return failure_link(app.deep_link, error=outcome.error, state=state)
    return success_link(app.deep_link, hand_back=app.hand_back, code=code_of(app, outcome), state=state)


def code_of(app: App, outcome: Outcome) -> bytes:
    """Return what the app may present: AMO's code, or the ticket that stands for it."""
    return outcome.ticket.encode() if app.hand_back == "ticket" else outcome.code


def show(app: App, pages: Pages, outcome: Outcome, *, state: bytes | None) -> web.Response:
    """Answer with the page for an outcome."""
    link = link_to_app(app, outcome, state=state)
    if outcome.error is not None:
        return pages.render(outcome.error, status=status_of(outcome.error), link=link)
    return pages.render(outcome.status.value, status=200, link=link)


def lead_back(
    app: App, pages: Pages, way: Way, *, outcome: Outcome, state: bytes | None, return_path: str
) -> web.Response:
    """Answer the callback with an outcome."""
    if way is Way.PAGE:
        if outcome.state == state:
            return _location(303, return_path + outcome.handle)
        # The address is the first one's, who sent another state: this one gets its own back, here.
        return show(app, pages, outcome, state=state)
    if way is Way.PLAIN and outcome.error is None:
        return web.Response(text=f"{outcome.status.value}\n")  # also while it goes on: AMO's server cannot wait
    if outcome.error is not None or outcome.status is GrantStatus.EXCHANGING:
        return fail(app, pages, way, error=outcome.error or LATE, state=state)
    return _location(302, success_link(app.deep_link, hand_back=app.hand_back, code=code_of(app, outcome), state=state))


def fail(app: App, pages: Pages, way: Way, *, error: str, state: bytes | None) -> web.Response:
    """Answer the callback with an error's word, at once."""
    if way is Way.PLAIN:
        return web.Response(text=f"{error}\n", status=status_of(error))
    link = failure_link(app.deep_link, error=error, state=state)
    if way is Way.PAGE:
        return pages.render(error, status=status_of(error), link=link)
    return _location(302, link)


def _location(status: int, address: str) -> web.Response:
    """Redirect by hand: `web.HTTPFound` would rewrite the address, and this one is an app's."""
    return web.Response(status=status, headers={"Location": address})
