"""Problem details (RFC 9457): what a backend is told when it gets no token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import (
    AccountRefused,
    Ambiguous,
    AmoCallbackError,
    Busy,
    ClientRefused,
    Forbidden,
    Frozen,
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


_CODES: tuple[tuple[type[AmoCallbackError], int, str], ...] = (
    (InvalidRequest, 400, "invalid_request"),
    (Forbidden, 403, "forbidden"),
    (NotFound, 404, "not_found"),
    (NeedsReauth, 409, "needs_reauth"),
    (Ambiguous, 409, "ambiguous"),
    (Frozen, 503, "frozen"),
    (AccountRefused, 502, "amo_refused"),
    (MustMend, 503, "amo_credentials"),
    (StoreUnavailable, 503, "store_unavailable"),
    (MustWait, 503, "amo_unavailable"),
    (AmoCallbackError, 500, "internal_error"),
)
"""What each error is to a backend: the first class that fits."""


_WAITED_OUT = {
    AccountRefused.code: (502, "amo_refused"),
    ClientRefused.code: (503, "amo_credentials"),
    StoreUnavailable.code: (503, "store_unavailable"),
}
"""What is told while the back-off after an error lasts: the same as of the error itself."""


def problem_of(error: AmoCallbackError, *, settings: Settings) -> Problem:
    """Return what a backend is told of an error, and what it can do."""
    status, code = next((status, code) for kind, status, code in _CODES if isinstance(error, kind))
    if isinstance(error, Busy):
        status, code = _WAITED_OUT.get(error.because or "", (status, code))
    more: dict[str, object] = {}
    if isinstance(error, Forbidden):
        more = {"scope": error.scope}
    elif isinstance(error, NeedsReauth):
        more = _reauth(error, settings)
    headers = {"Retry-After": _retry_after(error, settings)} if status in {502, 503} else {}
    return Problem(status=status, code=code, detail=str(error), headers=headers, more=more)


def _retry_after(error: AmoCallbackError, settings: Settings) -> str:
    seconds = settings.refresh.retry_cap if isinstance(error, MustMend | AccountRefused | Frozen) else _RETRY_AFTER
    if isinstance(error, Busy | RateLimited):
        seconds = error.retry_after
    return str(max(1, math.ceil(seconds)))


def _reauth(error: NeedsReauth, settings: Settings) -> dict[str, object]:
    return {"reason": error.reason, "reconnect_url": f"{settings.amo.redirect_uri.removesuffix('/callback')}/connect"}
