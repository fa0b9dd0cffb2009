"""One line a request, and a request id on every line that it causes."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from aiohttp import web
from structlog.contextvars import bound_contextvars

from amo_callback.web.keys import CLOCK, PROXIES

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware
    from structlog.typing import FilteringBoundLogger


def log_requests(log: FilteringBoundLogger, *, door: str, access: bool) -> Middleware:
    """Make the middleware; `access` switches the lines, the id is always there."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        clock = request.app[CLOCK]
        started = clock.monotonic()
        request_id = secrets.token_hex(8)
        with bound_contextvars(request_id=request_id):
            response = await handler(request)  # the errors' middleware below lets none through
            response.headers["X-Request-ID"] = request_id
            if access:
                log.info(
                    "http.request",
                    door=door,
                    method=request.method if request.method in _METHODS else "other",
                    route=_route(request),
                    status=response.status,
                    ms=round((clock.monotonic() - started) * 1000, 1),
                    peer=request.app[PROXIES].client_of(request),
                )
            return response

    return middleware


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _route(request: web.Request) -> str:
    """Return the route's pattern: a path may hold a handle, a query a code."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical
