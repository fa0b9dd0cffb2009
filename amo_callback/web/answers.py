"""The JSON envelope that the existing app reads."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from amo_callback.deeplink import WORDS
from amo_callback.model import Status

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection


Data = TypeVar("Data")


class FailureCode(StrEnum):
    """What went wrong, for the app: the deep link's words, and those of HTTP."""

    INVALID_REQUEST = "invalid_request"
    INVALID_STATE = "invalid_state"
    ACCOUNT_NOT_ALLOWED = "account_not_allowed"
    CODE_EXPIRED = "code_expired"
    CODE_USED = "code_used"
    AUTH_FAILED = "auth_failed"
    RATE_LIMITED = "rate_limited"
    AMO_UNAVAILABLE = "amo_unavailable"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL_ERROR = "internal_error"


TODO = {
    **{code: WORDS[code].todo for code in FailureCode if code in WORDS},
    FailureCode.INVALID_REQUEST: "mend the request: `message` says what is wrong",
    FailureCode.UNAUTHORIZED: "send the user's JWT, one that has not expired",
    FailureCode.FORBIDDEN: "send the `code_verifier` that fits",
    FailureCode.NOT_FOUND: "start again: the code, or the address, is not known here",
    FailureCode.METHOD_NOT_ALLOWED: "use a method that `Allow` names",
    FailureCode.STORE_UNAVAILABLE: "try again after `Retry-After` seconds",
    FailureCode.INTERNAL_ERROR: "try again later: a bug, which the log tells as `http.bug`",
}
"""What the app should do."""


class Success(TypedDict, Generic[Data]):
    """What was asked for."""

    success: Literal[True]
    data: Data
    message: str


class FailureShape(TypedDict):
    """Why there is nothing."""

    success: Literal[False]
    error: FailureCode
    message: str


@with_config(ConfigDict(use_attribute_docstrings=True))
class ToldConnection(TypedDict):
    """A connection as the app knows it."""

    connected: bool
    hasTokens: bool
    """Whether a live access token is held."""
    domain: str | None
    accountId: str | None


TOLD: ToldConnection = {"connected": True, "hasTokens": True, "domain": "example.amocrm.ru", "accountId": "31920194"}
"""An example."""
NOBODYS: ToldConnection = {"connected": False, "hasTokens": False, "domain": None, "accountId": None}


def success(data: object, message: str) -> web.Response:
    """Answer `{"success": true, "data": …, "message": …}`."""
    told: Success[object] = {"success": True, "data": data, "message": message}
    return web.json_response(told)


def failure(error: FailureCode, message: str, *, status: int) -> web.Response:
    """Answer `{"success": false, "error": CODE, "message": …}`."""
    told: FailureShape = {"success": False, "error": error, "message": message}
    return web.json_response(told, status=status)


def told_connection(connection: Connection | None, now: datetime) -> ToldConnection:
    """Return a connection as the app knows it."""
    if connection is None or connection.status is Status.DISCONNECTED:
        return NOBODYS
    expires_at = connection.access_expires_at
    return {
        "connected": connection.status is Status.ACTIVE,
        "hasTokens": connection.sealed_pair is not None and expires_at is not None and expires_at > now,
        "domain": connection.domain,
        "accountId": connection.account_id,
    }


def connected_message(connection: ToldConnection) -> str:
    """Return the message for a connection as it is now."""
    return "amoCRM is connected." if connection["connected"] else "amoCRM is not connected."


def status_of(word: str) -> int:
    """Return the status for a deep link's error word: the person's or sender's fault, or ours."""
    return {"rate_limited": 429, "amo_unavailable": 503}.get(word, 400)
