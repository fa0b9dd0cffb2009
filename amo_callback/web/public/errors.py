"""Errors of the public door into the envelope that the app reads.

A bug is logged with its trace, and answered without it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import (
    AmoCallbackError,
    GrantExpired,
    InvalidRequest,
    NotFound,
    PkceMismatch,
    Unauthorized,
)
from amo_callback.web import challenge
from amo_callback.web.answers import FailureCode, failure, status_of
from amo_callback.web.keys import LOG

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

CODES = {404: FailureCode.NOT_FOUND, 405: FailureCode.METHOD_NOT_ALLOWED}
"""What HTTP itself refuses; the rest of it is a bad request."""

_MESSAGES = {
    "account_not_allowed": "This amoCRM account cannot be connected here.",
    "invalid_state": "The link belongs to another attempt: connect again.",
    "code_expired": "The code has expired: connect again.",
    "code_used": "The code was already used elsewhere: connect again.",
    "amo_unavailable": "amoCRM cannot be asked right now: try again with the same code.",
    "rate_limited": "Too many attempts: wait a minute.",
    "auth_failed": "amoCRM does not accept the code: connect again.",
}

_REFUSALS: tuple[tuple[type[AmoCallbackError], int, FailureCode, str], ...] = (
    (Unauthorized, 401, FailureCode.UNAUTHORIZED, "Send the user's JWT: Authorization: Bearer JWT."),
    (PkceMismatch, 403, FailureCode.FORBIDDEN, "The code_verifier does not fit the code_challenge."),
    (NotFound, 404, FailureCode.NOT_FOUND, "This code is not known here: connect again."),
    (GrantExpired, 410, FailureCode.CODE_EXPIRED, _MESSAGES["code_expired"]),
)
"""What the app is told of errors that no deep link tells: the first class that fits."""


@web.middleware
async def envelope_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors in the envelope."""
    try:
        return await handler(request)
    except AmoCallbackError as error:
        return _refusal(error)
    except web.HTTPException as error:
        return _http_error(error)
    except ConnectionError:
        raise  # the client has gone away in the middle
    except Exception as bug:  # noqa: BLE001 -- because nobody outside may see a trace
        request.app[LOG].error("http.bug", exc_info=bug)
        return failure(FailureCode.INTERNAL_ERROR, "Something went wrong on our side. Please try again.", status=500)


def refuse(word: str) -> web.Response:
    """Answer with one of the deep link's words."""
    return _answer(status_of(word), FailureCode(word), _MESSAGES.get(word, _MESSAGES["auth_failed"]))


def _refusal(error: AmoCallbackError) -> web.Response:
    if isinstance(error, InvalidRequest):
        return _answer(400, FailureCode.INVALID_REQUEST, str(error))
    for kind, status, code, message in _REFUSALS:
        if isinstance(error, kind):
            answer = _answer(status, code, message)
            if isinstance(error, Unauthorized):
                none_came = error.detail in {"missing", "header"}
                answer.headers["WWW-Authenticate"] = challenge.MISSING if none_came else challenge.INVALID
            return answer
    return refuse(error.deep_link_error)


def _answer(status: int, code: FailureCode, message: str) -> web.Response:
    answer = failure(code, message, status=status)
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        answer.headers["Retry-After"] = "5"
    return answer


def _http_error(error: web.HTTPException) -> web.Response:
    phrase = HTTPStatus(error.status).phrase
    code = CODES.get(error.status, FailureCode.INVALID_REQUEST)
    answer = failure(code, f"{error.status} {phrase}", status=error.status)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer
