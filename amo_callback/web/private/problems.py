"""Problem details (RFC 9457): what a backend is told when it gets no token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from aiohttp import web

from amo_callback.errors import (
    AccountRefused,
    AmoCallbackError,
    Busy,
    Forbidden,
    InvalidRequest,
    MustMend,
    MustWait,
    NeedsReauth,
    NotFound,
    RateLimited,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.config import Settings

_RETRY_AFTER = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem, its `code` from a fixed list."""

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)


def render(problem: Problem) -> web.Response:
    """Render a problem as `application/problem+json`."""
    return web.json_response(
        {"status": problem.status, "code": problem.code, "detail": problem.detail, **problem.more},
        status=problem.status,
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", **problem.headers},
    )


def invalid(field_name: str, wanted: str) -> InvalidRequest:
    """Return the error for a bad parameter; it names the field."""
    return InvalidRequest(f"{field_name}: {wanted}")


def problem_of(error: AmoCallbackError, *, settings: Settings) -> Problem:
    """Return what a backend is told of an error, and what it can do."""
    detail = str(error)
    if isinstance(error, InvalidRequest):
        return Problem(status=400, code="invalid_request", detail=detail)
    if isinstance(error, Forbidden):
        return Problem(status=403, code="forbidden", detail=detail, more={"scope": error.scope})
    if isinstance(error, NotFound):
        return Problem(status=404, code="not_found", detail=detail)
    if isinstance(error, NeedsReauth):
        return Problem(status=409, code="needs_reauth", detail=detail, more=_reauth(error, settings))
    if isinstance(error, AccountRefused):
        return Problem(status=502, code="amo_refused", detail=detail)
    if isinstance(error, MustMend):
        return _wait("amo_credentials", detail, settings.refresh.retry_cap)
    if isinstance(error, StoreUnavailable):
        return _wait("store_unavailable", detail, _RETRY_AFTER)
    if isinstance(error, Busy | RateLimited):
        return _wait("amo_unavailable", detail, error.retry_after)
    if isinstance(error, MustWait):
        return _wait("amo_unavailable", detail, _RETRY_AFTER)
    return Problem(status=500, code="internal_error", detail=detail)


def _wait(code: str, detail: str, seconds: float) -> Problem:
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return Problem(status=503, code=code, detail=detail, headers=headers)


def _reauth(error: NeedsReauth, settings: Settings) -> dict[str, object]:
    query = urlencode({"client_id": settings.amo.client_id, "mode": "popup"})
    return {"reason": error.reason, "reconnect_url": f"{settings.amo.authorize_url}?{query}"}
