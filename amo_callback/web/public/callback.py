"""The callback, `GET {base}/callback`, and the return page with its result, `GET {base}/return/{handle}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from amo_callback.errors import AmoCallbackError, NotFound, StoreUnavailable
from amo_callback.grant import CallbackParams, CodePresentation, CodeSource, WayBack, support_code
from amo_callback.web.public.api import ERROR_PAGES, PREFETCHED, TEXT, TO_APP, head_route, is_prefetch
from amo_callback.web.public.return_response import (
    ResponseKind,
    choose,
    expired_page,
    failed,
    known_error,
    redirect,
    respond,
    return_address,
    show,
    unavailable_page,
)
from amo_callback.web.route import Reply, Route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.grant import GrantResult
    from amo_callback.web.route import Call

_HTML = ("text/html",)
_RECORDED = frozenset({"error", "host"})
"""The refused items of a redirect whose error is recorded for the app: AMO's `error`, and the account's host."""


class CallbackQuery(BaseModel):
    """The query of AMO's redirect. The handler parses the raw bytes; this model is only documentation."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str | None = None
    """AMO's authorization code."""
    state: str | None = None
    """The state; a state that the service has not issued is returned to the app byte for byte."""
    referer: str | None = None
    """The account's host."""
    error: str | None = None
    """AMO's error; `access_denied` if the user declined."""
    from_exchange: Literal["1"] | None = None
    """`1` if AMO's server sent the request instead of a browser."""
    from_widget: Literal["1"] | None = None
    """`1` if the integration was installed inside AMO."""


async def callback(call: Call[None, None]) -> web.Response:
    """Exchange the authorization code in AMO's redirect, store the token pair, and return the user to the app."""
    if is_prefetch(call.request):
        return web.Response(status=204)
    params = call.services.core.amo.read_redirect(raw_query(call.request))
    kind = choose(call, params)
    if params.code is None or params.domain is None:
        refused = {"refused": params.refused, "host": params.refused_host}
        error = params.error or AmoCallbackError.deep_link_error
        if params.refused in _RECORDED:
            await _record_refusal(call, params.state, error)
        return await _failed(call, kind, params, error=error, support=params.support, fields=refused)
    visit = CodePresentation(
        code=params.code,
        state=params.state,
        host=params.domain,
        address=call.address,
        source=CodeSource.VENDOR if params.from_server or params.from_widget else CodeSource.BROWSER,
    )
    support = support_code(visit.code_hash)
    try:
        outcome = await call.services.oauth.connect.complete(visit)
    except Exception as error:  # noqa: BLE001 -- a bug is logged, and the user still gets a page
        known = known_error(call, error)
        return await _failed(call, kind, params, error=known.deep_link_error, support=support, fields=known.fields)
    call.services.metrics.called_back(outcome.error or outcome.status.value)
    back = outcome.way_back if params.state == outcome.state else await _way_back(call, params.state)
    return respond(call, kind, outcome=outcome, back=back)


async def _failed(
    call: Call[None, None],
    kind: ResponseKind,
    params: CallbackParams,
    *,
    error: str,
    support: str | None,
    fields: Mapping[str, object],
) -> web.Response:
    call.services.metrics.called_back(error)
    back = await _way_back(call, params.state)
    return failed(call, kind, error=error, back=back, support=support, domain=params.domain, fields=fields)


async def _record_refusal(call: Call[None, None], state: bytes | None, error: str) -> None:
    try:
        await call.services.oauth.authorizations.record_refusal(state, error=error)
    except StoreUnavailable as lost:
        call.services.log.warning("callback.refusal_not_stored", **lost.fields)


async def _way_back(call: Call[None, None], state: bytes | None) -> WayBack:
    """Return the way back of the request for which `state` was issued, otherwise the default with `state`."""
    try:
        return await call.services.oauth.authorizations.way_back(state)
    except AmoCallbackError:
        return WayBack(state=state)  # the result of the request matters more than this error
    except Exception:
        call.services.log.exception("http.bug")
        return WayBack(state=state)


def raw_query(request: web.Request) -> bytes:
    """Return the raw query; `request.query` would replace invalid UTF-8 with U+FFFD."""
    return request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")


class PageQuery(BaseModel):
    """The query of the return page; other parameters are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    again: Literal["1"] | None = None
    """`1` to retry the exchange before the page is shown, if it failed temporarily."""


async def return_page(call: Call[None, None]) -> web.Response:
    """Show the result of a return handle; `?again=1` first retries the exchange if it failed temporarily."""
    retry = call.request.query.getall("again", []) == ["1"]
    if retry and is_prefetch(call.request):
        return web.Response(status=204)
    try:
        outcome = await call.services.oauth.connect.result(call.request.match_info["handle"])
    except NotFound:
        return expired_page(call)
    except Exception as error:  # noqa: BLE001 -- a bug is logged, and the user still gets a page
        return unavailable_page(call, known_error(call, error))
    if retry:
        return await _retry(call, outcome)
    return show(call, outcome, back=outcome.way_back, retry_url="?again=1")


async def _retry(call: Call[None, None], before: GrantResult) -> web.Response:
    """Exchange the grant's code again, and redirect to the page with the result."""
    try:
        outcome = await call.services.oauth.connect.retry(before.handle, address=call.address)
    except NotFound:
        return expired_page(call)  # the grant has just expired
    except Exception as error:  # noqa: BLE001 -- a bug is logged, and the user still gets a page
        known = known_error(call, error)
        return failed(
            call,
            ResponseKind.PAGE,
            error=known.deep_link_error,
            back=before.way_back,
            support=before.support,
            domain=before.domain,
            fields=known.fields,
        )
    return redirect(303, return_address(call, outcome))


ROUTES = (
    Route(
        "GET",
        "/callback",
        callback,
        unparsed_query=CallbackQuery,
        replies={
            200: Reply(about="The result, as a page or as plain text.", type=str, media=TEXT),
            204: PREFETCHED,
            302: TO_APP,
            303: Reply(about="Redirects to the page that returns the user to the app.", headers=("Location",)),
            **ERROR_PAGES,
        },
    ),
    head_route("/callback"),  # HEAD must not spend the code
    Route(
        "GET",
        "/return/{handle}",
        return_page,
        unparsed_query=PageQuery,
        replies={
            200: Reply(
                about="The result, with a link to the app once the exchange has finished.", type=str, media=_HTML
            ),
            204: PREFETCHED,
            303: Reply(about="Redirects to the page with the result of the retried exchange.", headers=("Location",)),
            404: Reply(about="The return handle is unknown or older than 20 minutes.", type=str, media=_HTML),
            **ERROR_PAGES,
        },
    ),
    head_route("/return/{handle}"),  # HEAD must not retry the exchange
)
