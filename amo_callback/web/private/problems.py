"""Problem details (RFC 9457): what a backend is told when it gets no token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NotRequired

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from amo_callback.errors import (
    AccountBlocked,
    Ambiguous,
    AmoCallbackError,
    ClientMismatch,
    Forbidden,
    Frozen,
    HostNotAllowed,
    InvalidClient,
    InvalidRequest,
    NeedsReauth,
    NotFound,
    NotYet,
    OperatorError,
    RetryableError,
    StoreUnavailable,
    VendorRateLimited,
)
from amo_callback.web import challenge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.config import Settings

_RETRY_AFTER = 5.0


class Code(StrEnum):
    """What is wrong, for programs."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NEEDS_REAUTH = "needs_reauth"
    AMBIGUOUS = "ambiguous"
    INTERNAL_ERROR = "internal_error"
    AMO_REFUSED = "amo_refused"
    AMO_UNAVAILABLE = "amo_unavailable"
    AMO_CREDENTIALS = "amo_credentials"
    FROZEN = "frozen"
    HOST_NOT_ALLOWED = "host_not_allowed"
    STORE_UNAVAILABLE = "store_unavailable"


STATUSES = {
    Code.INVALID_REQUEST: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.NEEDS_REAUTH: 409,
    Code.AMBIGUOUS: 409,
    Code.INTERNAL_ERROR: 500,
    Code.AMO_REFUSED: 502,
    Code.AMO_UNAVAILABLE: 503,
    Code.AMO_CREDENTIALS: 503,
    Code.FROZEN: 503,
    Code.HOST_NOT_ALLOWED: 503,
    Code.STORE_UNAVAILABLE: 503,
}
"""The status that goes with each code; what HTTP itself refuses (405, 413) is `invalid_request` with its own."""

TODO = {
    Code.INVALID_REQUEST: "mend the request (405: its method); `detail` names the field",
    Code.UNAUTHORIZED: "send a key that is in `api.keys`",
    Code.FORBIDDEN: "send a key that has the `scope`",
    Code.NOT_FOUND: "there is no such connection, or it was disconnected",
    Code.NEEDS_REAUTH: "the person has to connect again, at `reconnect_url`; `reason` says why",
    Code.AMBIGUOUS: "more than one connection fits, and one must be meant: name it by its id",
    Code.INTERNAL_ERROR: "try again later: a bug, which the log tells as `http.bug`",
    Code.AMO_REFUSED: "the account is not paid, or amoCRM blocks it: its owner has to mend that",
    Code.AMO_UNAVAILABLE: "try again after `Retry-After` seconds",
    Code.AMO_CREDENTIALS: "try again after `Retry-After` seconds; the administrator has to mend it: see `/readyz`",
    Code.FROZEN: "try again after `Retry-After` seconds; somebody has to thaw it: see `/readyz`",
    Code.HOST_NOT_ALLOWED: "try again after `Retry-After` seconds; the administrator has to allow the account's host, "
    "which `detail` names, or the account has to connect again",
    Code.STORE_UNAVAILABLE: "try again after `Retry-After` seconds",
}
"""What a backend should do."""


@with_config(ConfigDict(use_attribute_docstrings=True))
class RefusedRecord(TypedDict):
    """What is wrong with a connection that was sent."""

    place: str
    """Where it stands in what was sent."""
    why: str


@with_config(ConfigDict(use_attribute_docstrings=True))
class ProblemShape(TypedDict):
    """Why there is no answer (RFC 9457)."""

    status: int
    code: Code
    detail: str
    """What is wrong, for people; of a bad request it begins with the field's name."""
    scope: NotRequired[str]
    """What the API key is not allowed."""
    reason: NotRequired[str | None]
    """Why the person has to connect again."""
    reconnect_url: NotRequired[str]
    """Where the person connects again."""
    problems: NotRequired[list[RefusedRecord]]
    """What is wrong with the connections to be imported, the first of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem, its `code` from a fixed list."""

    status: int
    code: Code
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


_CODES: tuple[tuple[type[AmoCallbackError], Code], ...] = (
    (InvalidRequest, Code.INVALID_REQUEST),
    (Forbidden, Code.FORBIDDEN),
    (NotFound, Code.NOT_FOUND),
    (NeedsReauth, Code.NEEDS_REAUTH),
    (Ambiguous, Code.AMBIGUOUS),
    (Frozen, Code.FROZEN),
    (AccountBlocked, Code.AMO_REFUSED),
    (HostNotAllowed, Code.HOST_NOT_ALLOWED),
    (OperatorError, Code.AMO_CREDENTIALS),
    (StoreUnavailable, Code.STORE_UNAVAILABLE),
    (RetryableError, Code.AMO_UNAVAILABLE),
    (AmoCallbackError, Code.INTERNAL_ERROR),
)
"""What each error is to a backend: the first class that fits."""


_WAITED_OUT = {
    AccountBlocked.code: Code.AMO_REFUSED,
    InvalidClient.code: Code.AMO_CREDENTIALS,
    ClientMismatch.code: Code.AMO_CREDENTIALS,
    StoreUnavailable.code: Code.STORE_UNAVAILABLE,
}
"""What is told while the back-off after an error lasts: the same as of the error itself."""


def problem_of(error: AmoCallbackError, *, settings: Settings) -> Problem:
    """Return what a backend is told of an error, and what it can do."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    if isinstance(error, NotYet):
        code = _WAITED_OUT.get(error.cause_code or "", code)
    status = STATUSES[code]
    more: dict[str, object] = {}
    if isinstance(error, Forbidden):
        more = {"scope": error.scope}
    elif isinstance(error, NeedsReauth):
        more = _reauth(error, settings)
    headers = {"Retry-After": _retry_after(error, settings)} if status in {502, 503} else {}
    if isinstance(error, Forbidden):
        headers["WWW-Authenticate"] = challenge.insufficient(error.scope)
    return Problem(status=status, code=code, detail=str(error), headers=headers, more=more)


def _retry_after(error: AmoCallbackError, settings: Settings) -> str:
    seconds = settings.refresh.retry_cap if isinstance(error, OperatorError | AccountBlocked | Frozen) else _RETRY_AFTER
    if isinstance(error, NotYet | VendorRateLimited):
        seconds = error.retry_after
    return str(max(1, math.ceil(seconds)))


def _reauth(error: NeedsReauth, settings: Settings) -> dict[str, object]:
    return {"reason": error.reason, "reconnect_url": settings.amo.connect_url}
