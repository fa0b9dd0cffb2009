"""How an outcome becomes an answer: a redirect to the app, a page that leads there, or plain text."""

from __future__ import annotations

import dataclasses
import secrets
from enum import Enum
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.deeplink import failure_link, intent_link, success_link
from amo_callback.grant import GrantStatus, Outcome, Redirect
from amo_callback.web.answers import status_of
from amo_callback.web.keys import LOG, PAGES, SETTINGS
from amo_callback.web.pages.view import View
from amo_callback.web.pages.visitor import Kind, Visitor, read_visitor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.config import App
    from amo_callback.errors import AmoCallbackError

LATE = "amo_unavailable"
_PASSING = frozenset({LATE, "rate_limited"})
"""The words of what may be over in a minute."""


class Way(Enum):
    """How this requester is answered."""

    REDIRECT = "redirect"
    PAGE = "page"
    PLAIN = "plain"


def choose_way(app: App, redirect: Redirect, request: web.Request) -> Way:
    """Choose by who calls: AMO's server gets plain text, browsers a page, whatever else a redirect."""
    html = _accepts_html(request)
    if redirect.from_server or (redirect.from_widget and not html):
        return Way.PLAIN
    if app.return_mode == "page" or (app.return_mode == "auto" and html):
        return Way.PAGE
    return Way.REDIRECT


def _accepts_html(request: web.Request) -> bool:
    """Tell whether `Accept` names HTML; `*/*` does not count."""
    for item in ",".join(request.headers.getall("Accept", [])).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        if kind in {"text/html", "application/xhtml+xml"} and not _refused(parameters):
            return True
    return False


def _refused(parameters: list[str]) -> bool:
    return any(p.startswith("q=") and not p.removeprefix("q=").strip("0.") for p in parameters)


def _link_to_app(app: App, outcome: Outcome, *, state: bytes | None) -> str | None:
    """Return the deep link that tells an outcome; `None` while there is none to tell."""
    if outcome.status is GrantStatus.EXCHANGING:
        return None
    state = _state_for_app(outcome, state)
    if outcome.error is not None:
        return failure_link(app.deep_link, error=outcome.error, state=state)
    code = outcome.code
    if app.hand_back == "ticket" and outcome.ticket:  # a grant of a version before has none
        code = outcome.ticket.encode()
    return success_link(app.deep_link, hand_back=app.hand_back, code=code, state=state)


def _state_for_app(outcome: Outcome, state: bytes | None) -> bytes | None:
    """Return what the app gets back for the state that came: its own, or where its grant began here the one it gave."""
    return outcome.handed_back if state == outcome.state else state


def show(request: web.Request, outcome: Outcome, *, state: bytes | None, again: str = "") -> web.Response:
    """Answer with the page for an outcome; `again` is where a failed one is tried again: here, if it is empty."""
    connected = outcome.status is GrantStatus.CONNECTED
    tried = any(value != "0" for value in request.query.getall("n", []))
    view = View(
        variant=outcome.error or outcome.status.value,
        status=status_of(outcome.error) if outcome.error is not None else 200,
        link=_link_to_app(request.app[SETTINGS].app, outcome, state=state),
        sends=connected and not tried and _visitor_of(request).may_be_sent,
        tried=tried,
        again=again if outcome.status is GrantStatus.FAILED else None,
        domain=outcome.domain if connected else None,
        support=outcome.support,
    )
    return _page(request, view)


def gone(request: web.Request) -> web.Response:
    """Answer with the page for a return address that is unknown or over."""
    return _page(request, View(variant="gone", status=404))


def away(request: web.Request, error: AmoCallbackError) -> web.Response:
    """Answer with the page for a store that cannot be asked: not even the state is known that the app waits for."""
    support = _log_failure(request, error=LATE, support=None, fields=error.fields)
    return _page(request, View(variant=LATE, status=status_of(LATE), again="", support=support))


def lead_back(request: web.Request, way: Way, *, outcome: Outcome, state: bytes | None) -> web.Response:
    """Answer the callback with an outcome."""
    if way is Way.PAGE:
        if outcome.state == state:
            return send_on(303, return_address(request, outcome))
        # The address is the first one's, who sent another state: this one gets its own back, here.
        return show(request, outcome, state=state)
    if way is Way.PLAIN and outcome.error is None:
        return web.Response(text=f"{outcome.status.value}\n")  # also while it goes on: AMO's server cannot wait
    link = _link_to_app(request.app[SETTINGS].app, outcome, state=state)
    if link is None:
        still = {"error": outcome.status.value}
        state = _state_for_app(outcome, state)
        return fail(request, way, error=LATE, state=state, support=outcome.support, fields=still)
    if way is Way.PLAIN:
        return _failed(request, way, error=outcome.error or LATE, state=state, support=outcome.support)
    return send_on(302, link)


def fail(
    request: web.Request,
    way: Way,
    *,
    error: str,
    state: bytes | None,
    support: str | None = None,
    fields: Mapping[str, object] | None = None,
) -> web.Response:
    """Log an error that was found before AMO was asked, and answer with its word, at the address that was asked for.

    Nothing was written, so where the word is one of patience, the same address can be tried again. `fields` say in the
    log which value is refused.
    """
    support = _log_failure(request, error=error, support=support, fields=fields or {})
    return _failed(request, way, error=error, state=state, support=support)


def _log_failure(request: web.Request, *, error: str, support: str | None, fields: Mapping[str, object]) -> str:
    """Write the line that a support code leads to, and return the code: a new one where no code came."""
    support = support or secrets.token_hex(4)
    known = {name: value for name, value in fields.items() if value is not None}
    log = request.app[LOG].warning if error == LATE else request.app[LOG].info
    log("callback.refused", support_code=support, word=error, **known)
    return support


def _failed(request: web.Request, way: Way, *, error: str, state: bytes | None, support: str) -> web.Response:
    if way is Way.PLAIN:
        return web.Response(text=f"{error}\n", status=status_of(error))
    link = failure_link(request.app[SETTINGS].app.deep_link, error=error, state=state)
    if way is Way.PAGE:
        again = "" if error in _PASSING else None
        view = View(variant=error, status=status_of(error), link=link, again=again, support=support)
        return _page(request, view)
    return send_on(302, link)


def send_on(status: int, address: str) -> web.Response:
    """Redirect by hand: `web.HTTPFound` would rewrite the address, and this one may be an app's."""
    return web.Response(status=status, headers={"Location": address})


def return_address(request: web.Request, outcome: Outcome) -> str:
    """Return the clean address of an outcome's page."""
    return f"{request.app[SETTINGS].server.base_path}/return/{outcome.handle}"


def _visitor_of(request: web.Request) -> Visitor:
    """Return who has sent a request."""
    return read_visitor(
        user_agent=request.headers.get("User-Agent", ""),
        accept_language=",".join(request.headers.getall("Accept-Language", [])),
    )


def _page(request: web.Request, view: View) -> web.Response:
    visitor, package = _visitor_of(request), request.app[SETTINGS].app.android_package
    if view.link and package and visitor.kind is Kind.ANDROID:
        view = dataclasses.replace(view, intent=intent_link(view.link, package=package))
    return request.app[PAGES].render(view, visitor)
