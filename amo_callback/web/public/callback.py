"""`GET {base}/callback`: AMO's redirect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from amo_callback.errors import AmoCallbackError
from amo_callback.grant import Arrival, Redirect, Visit, support_code
from amo_callback.web.keys import AMO, AUTHORIZATIONS, CONNECT, LOG, METRICS, PROXIES, SETTINGS
from amo_callback.web.operation import Reply
from amo_callback.web.public.look import is_prefetch, without_work
from amo_callback.web.public.operation import PAGES, PREFETCH, TEXT, TO_APP, page_operation
from amo_callback.web.public.way_back import Way, choose_way, fail, lead_back

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes; HEAD is not GET here, or it would spend the code."""
    return [
        web.get(f"{base}/callback", callback, allow_head=False),
        web.head(f"{base}/callback", without_work),
    ]


class CallbackQuery(BaseModel):
    """What AMO's redirect says. It is read from the query's bytes, so this documents it, and validates nothing."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str | None = None
    """AMO's authorization code."""
    state: str | None = None
    """Goes back to the app byte for byte."""
    referer: str | None = None
    """The account's host."""
    error: str | None = None
    """`access_denied`, where the person refused."""
    from_exchange: Literal["1"] | None = None
    """AMO's server is calling, not a browser."""
    from_widget: Literal["1"] | None = None
    """The integration was installed from inside AMO."""


@page_operation(
    "callback",
    query=CallbackQuery,
    replies={
        200: Reply(about="What became of the code.", shape=str, media=TEXT),
        204: PREFETCH,
        302: TO_APP,
        303: Reply(about="To the page that returns the person to the app.", headers=("Location",)),
        **PAGES,
    },
)
async def callback(request: web.Request) -> web.Response:
    """Exchange the code that AMO's redirect brings, store the pair, and lead the person back to the app."""
    if is_prefetch(request):
        return web.Response(status=204)
    redirect = request.app[AMO].read_redirect(raw_query(request))
    way = choose_way(request.app[SETTINGS].app, redirect, request)
    if redirect.code is None or redirect.domain is None:
        refused = {"refused": redirect.refused, "host": redirect.refused_host}
        error = redirect.error or "auth_failed"
        return await _fail(request, way, redirect, error=error, support=redirect.support, fields=refused)
    visit = _visit(request, redirect.code, redirect)
    support = support_code(visit.code_hash)
    try:
        outcome = await request.app[CONNECT].complete(visit)
    except AmoCallbackError as known:
        return await _fail(request, way, redirect, error=known.deep_link_error, support=support, fields=known.fields)
    except Exception as bug:  # noqa: BLE001 -- because the person must get back to the app even then
        request.app[LOG].error("http.bug", exc_info=bug)
        fields = {"error": AmoCallbackError.code}
        return await _fail(request, way, redirect, error="auth_failed", support=support, fields=fields)
    request.app[METRICS].called_back(outcome.error or outcome.status.value)
    state = redirect.state if redirect.state == outcome.state else await _handed_back(request, redirect.state)
    return lead_back(request, way, outcome=outcome, state=state)


def _visit(request: web.Request, code: bytes, redirect: Redirect) -> Visit:
    return Visit(
        code=code,
        state=redirect.state,
        host=redirect.domain,
        address=request.app[PROXIES].client_of(request),
        arrival=Arrival.VENDOR if redirect.from_server or redirect.from_widget else Arrival.BROWSER,
    )


async def _fail(
    request: web.Request,
    way: Way,
    redirect: Redirect,
    *,
    error: str,
    support: str | None,
    fields: Mapping[str, object],
) -> web.Response:
    request.app[METRICS].called_back(error)
    state = await _handed_back(request, redirect.state)
    return fail(request, way, error=error, state=state, support=support, fields=fields)


async def _handed_back(request: web.Request, state: bytes | None) -> bytes | None:
    """Return the state that the app gets back: its own, where the one that came was issued for it."""
    try:
        return await request.app[AUTHORIZATIONS].handed_back(state)
    except AmoCallbackError:
        return state  # the word matters more: the state goes back as it came
    except Exception as bug:  # noqa: BLE001 -- because the person must get back to the app even then
        request.app[LOG].error("http.bug", exc_info=bug)
        return state


def raw_query(request: web.Request) -> bytes:
    """Return the query as it came: `request.query` would turn what is no UTF-8 into U+FFFD."""
    return request.raw_path.partition("?")[2].encode("utf-8", "surrogateescape")
