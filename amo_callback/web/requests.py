"""One line a request, and a request id on every line that it causes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.event import REQUEST_ID
from amo_callback.web.keys import CLOCK, PROXIES

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware
    from structlog.typing import FilteringBoundLogger


def log_requests(log: FilteringBoundLogger, *, door: str, access: bool) -> Middleware:
    """Make the middleware; `access` switches the lines, the id is always there."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = request.app[CLOCK].monotonic() if access else 0.0
        request_id = f"{random.getrandbits(64):016x}"  # no secret: it only tells requests apart
        token = REQUEST_ID.set(request_id)
        try:
            response = await handler(request)  # the errors' middleware below lets none through
            response.headers["X-Request-ID"] = request_id
            if access:
                _log(log, request, response, door=door, started=started)
        finally:
            REQUEST_ID.reset(token)
        return response

    return middleware


def _log(
    log: FilteringBoundLogger, request: web.Request, response: web.StreamResponse, *, door: str, started: float
) -> None:
    log.info(
        "http.request",
        door=door,
        method=request.method if request.method in _METHODS else "other",
        route=_route(request),
        status=response.status,
        ms=round((request.app[CLOCK].monotonic() - started) * 1000, 1),
        peer=request.app[PROXIES].client_of(request),
    )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _route(request: web.Request) -> str:
    """Return the route's pattern: a path may hold a handle, a query a code."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical
