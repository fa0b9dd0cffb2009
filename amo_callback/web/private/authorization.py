"""Who may come through the private door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import Forbidden
from amo_callback.identity import ApiKey
from amo_callback.web import challenge
from amo_callback.web.keys import API_KEYS
from amo_callback.web.private.problems import Code, Problem, render

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiohttp.typedefs import Handler, Middleware

    from amo_callback.identity import Scope
    from amo_callback.web.private.refusals import Refusals

API_KEY = web.RequestKey("api_key", ApiKey)
_SCHEME = "bearer "


def authorize(*, open_paths: Collection[str], refusals: Refusals) -> Middleware:
    """Make the middleware: every path but the open ones needs a key, also one that does not exist."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in open_paths:
            return await handler(request)
        header = request.headers.get("Authorization", "")
        presented = header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else ""
        key = request.app[API_KEYS].find(presented)
        if key is None:
            refusals.count()
            return render(
                Problem(
                    status=401,
                    code=Code.UNAUTHORIZED,
                    detail="Send a known API key: Authorization: Bearer KEY.",
                    headers={"WWW-Authenticate": challenge.INVALID if presented else challenge.MISSING},
                )
            )
        request[API_KEY] = key
        return await handler(request)

    return middleware


def require(request: web.Request, scope: Scope) -> ApiKey:
    """Return the request's key; raises `Forbidden` where it lacks the scope."""
    key = request[API_KEY]
    if scope not in key.scopes:
        raise Forbidden(scope)
    return key
