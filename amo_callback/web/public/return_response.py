"""The response that returns the user to the app: a redirect, a page, or plain text for AMO's server."""

from __future__ import annotations

import dataclasses
import secrets
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from aiohttp import web

from amo_callback.deeplink import DEEP_LINK_ERRORS, failure_link, intent_link, is_web_link, success_link
from amo_callback.errors import AmoCallbackError, RetryableError, TooManyAttempts
from amo_callback.grant import CallbackParams, GrantResult, GrantStatus
from amo_callback.web.pages import UserAgent, View, parse_user_agent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.config.settings import App
    from amo_callback.grant import WayBack
    from amo_callback.web.route import Call

UNAVAILABLE = RetryableError.deep_link_error
_TEMPORARY = frozenset({UNAVAILABLE, TooManyAttempts.deep_link_error})
"""Deep link errors that may be resolved within a minute."""
_GONE = "gone"
"""The variant of the page for an unknown or expired return handle."""


class ResponseKind(Enum):
    """The form of the response."""

    REDIRECT = "redirect"
    PAGE = "page"
    PLAIN = "plain"


def choose(call: Call[Any, Any], params: CallbackParams) -> ResponseKind:
    """Choose the form of the response.

    AMO's server gets plain text, and so does an installation inside AMO without a browser. Other clients get the form
    in `app.return_mode`; with `auto`, browsers get the page, and other clients a redirect.
    """
    app, html = call.services.settings.app, _accepts_html(call.request)
    if params.from_server or (params.from_widget and not html):
        return ResponseKind.PLAIN
    if app.return_mode == "page" or (app.return_mode == "auto" and html):
        return ResponseKind.PAGE
    return ResponseKind.REDIRECT


def _accepts_html(request: web.Request) -> bool:
    """Return whether `Accept` names HTML explicitly, as browsers do; `*/*` does not count."""
    for item in ",".join(request.headers.getall("Accept", [])).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        refused = any(p.startswith("q=") and not p.removeprefix("q=").strip("0.") for p in parameters)
        if kind in {"text/html", "application/xhtml+xml"} and not refused:
            return True
    return False


def respond(call: Call[Any, Any], kind: ResponseKind, *, outcome: GrantResult, back: WayBack) -> web.Response:
    """Return the callback's response for a grant's result."""
    if kind is ResponseKind.PAGE:
        if outcome.way_back == back:
            return redirect(303, return_address(call, outcome))
        # The return handle's page uses the state of the code's first callback, but this callback has another state.
        return show(call, outcome, back=back)
    if kind is ResponseKind.PLAIN and outcome.error is None:
        # AMO's server cannot wait for the exchange, so it gets the grant's status, even if that is `exchanging`.
        return web.Response(text=f"{outcome.status.value}\n")
    link = _link_to_app(call.services.settings.app, outcome, back=back)
    if link is None:
        still = {"error": outcome.status.value}
        return failed(call, kind, error=UNAVAILABLE, back=back, support=outcome.support, fields=still)
    if kind is ResponseKind.PLAIN:
        return _failed(call, kind, error=outcome.error or UNAVAILABLE, back=back, support=outcome.support)
    return redirect(302, link)


def failed(
    call: Call[Any, Any],
    kind: ResponseKind,
    *,
    error: str,
    back: WayBack,
    support: str | None = None,
    domain: str | None = None,
    fields: Mapping[str, object],
) -> web.Response:
    """Log an error that is not the result of a grant, and return its response.

    After a temporary error, the same URL can be requested again. `domain` is the account's host, if it is known.
    `fields` are added to the log line.
    """
    support = _log_failure(call, error=error, support=support, fields=fields)
    return _failed(call, kind, error=error, back=back, support=support, domain=domain)


def known_error(call: Call[Any, Any], error: Exception) -> AmoCallbackError:
    """Return an error of this service; any other exception is a bug, which is logged."""
    if isinstance(error, AmoCallbackError):
        return error
    call.services.log.error("http.bug", exc_info=error)
    return AmoCallbackError()


def show(call: Call[Any, Any], outcome: GrantResult, *, back: WayBack, retry_url: str = "") -> web.Response:
    """Return the page with a result; `retry_url` retries a failed exchange (empty: the requested URL)."""
    settings = call.services.settings
    attempted = any(value != "0" for value in call.request.query.getall("n", []))
    opens = outcome.status is GrantStatus.CONNECTED and not attempted and _user_agent(call.request).allows_auto_open
    if outcome.abandoned:
        _log_failure(call, error=UNAVAILABLE, support=outcome.support, fields={"error": "process_exited"})
    view = View(
        variant=outcome.error or outcome.status.value,
        status=200 if outcome.error is None else DEEP_LINK_ERRORS[outcome.error].status,
        link=_link_to_app(settings.app, outcome, back=back),
        auto_open=opens,
        attempted=attempted,
        retry_url=retry_url if outcome.status is GrantStatus.FAILED else None,
        domain=outcome.domain,
        # With another way back, the page at the return address has another link.
        address=urljoin(settings.amo.redirect_uri, return_address(call, outcome)) if outcome.way_back == back else None,
        support=outcome.support,
    )
    return _page(call, view)


def expired_page(call: Call[Any, Any]) -> web.Response:
    """Return the page for an unknown or expired return handle; its link opens the app without parameters."""
    support = _log_failure(call, error=_GONE, support=None, fields={"refused": "handle"})
    return _page(
        call, View(variant=_GONE, status=404, link=call.services.settings.app.default_deep_link, support=support)
    )


def app_link_page(call: Call[Any, Any], link: str) -> web.Response:
    """Return the page of an https deep link, which a browser has opened instead of the app."""
    return _page(call, View(variant="app_link", status=200, link=link))


def unavailable_page(call: Call[Any, Any], error: AmoCallbackError) -> web.Response:
    """Return the page for a result that cannot be read; the page cannot link to the app without the app's state."""
    support = _log_failure(call, error=UNAVAILABLE, support=None, fields=error.fields)
    status = DEEP_LINK_ERRORS[UNAVAILABLE].status
    return _page(call, View(variant=UNAVAILABLE, status=status, retry_url="", support=support))


def redirect(status: int, address: str) -> web.Response:
    """Return a redirect; `web.HTTPFound` would normalize the URL, which may be a deep link."""
    return web.Response(status=status, headers={"Location": address})


def return_address(call: Call[Any, Any], outcome: GrantResult) -> str:
    """Return the path of a result's page."""
    return f"{call.services.settings.server.base_path}/return/{outcome.handle}"


def _link_to_app(app: App, outcome: GrantResult, *, back: WayBack) -> str | None:
    """Return the deep link for a result; `None` while the code is being exchanged."""
    if outcome.status is GrantStatus.EXCHANGING:
        return None
    base = app.known_deep_link(back.deep_link)
    if outcome.error is not None:
        return failure_link(base, error=outcome.error, state=back.state)
    code = outcome.ticket.encode() if app.hand_back == "ticket" else outcome.code
    return success_link(base, hand_back=app.hand_back, code=code, state=back.state)


def _failed(
    call: Call[Any, Any],
    kind: ResponseKind,
    *,
    error: str,
    back: WayBack,
    support: str,
    domain: str | None = None,
) -> web.Response:
    status = DEEP_LINK_ERRORS[error].status
    if kind is ResponseKind.PLAIN:
        return web.Response(text=f"{error}\n", status=status)
    base = call.services.settings.app.known_deep_link(back.deep_link)
    link = failure_link(base, error=error, state=back.state)
    if kind is ResponseKind.PAGE:
        retry_url = "" if error in _TEMPORARY else None
        view = View(variant=error, status=status, link=link, retry_url=retry_url, domain=domain, support=support)
        return _page(call, view)
    return redirect(302, link)


def _log_failure(call: Call[Any, Any], *, error: str, support: str | None, fields: Mapping[str, object]) -> str:
    """Log a failure with its support code, and return the code; without `support`, a random code is generated."""
    support = support or secrets.token_hex(4)
    known = {name: value for name, value in fields.items() if value is not None}
    log = call.services.log.warning if error == UNAVAILABLE else call.services.log.info
    log("callback.refused", support_code=support, word=error, **known)
    return support


def _user_agent(request: web.Request) -> UserAgent:
    return parse_user_agent(
        user_agent=request.headers.get("User-Agent", ""),
        accept_language=",".join(request.headers.getall("Accept-Language", [])),
    )


def _page(call: Call[Any, Any], view: View) -> web.Response:
    agent, package = _user_agent(call.request), call.services.settings.app.android_package
    if view.link and is_web_link(view.link):
        view = dataclasses.replace(view, auto_open=False)
    if view.link and package and agent.may_be_android:
        view = dataclasses.replace(view, intent=intent_link(view.link, package=package))
    return call.services.pages.render(view, agent)
