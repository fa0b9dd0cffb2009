"""The JSON envelope of the public API, which the existing app reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from aiohttp import web

from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.model import Status
from amo_callback.web.route import shape

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection

_RETRY_AFTER = "5"
Data = TypeVar("Data")


@shape
class Success(Generic[Data]):
    """The answer to a request that succeeded."""

    success: Literal[True] = True
    data: Data
    message: str
    """For people."""


@shape
class Failure:
    """The answer to a request that failed."""

    success: Literal[False] = False
    error: str
    message: str
    """What is wrong, for people."""


@shape
class AppStatus:
    """A connection, as the app knows it."""

    connected: bool
    hasTokens: bool  # noqa: N815 -- because the existing app reads it
    """Whether a valid access token is held."""
    domain: str | None
    accountId: str | None  # noqa: N815 -- likewise

    @property
    def message(self) -> str:
        """The status in words."""
        return "amoCRM is connected." if self.connected else "amoCRM is not connected."


NOT_CONNECTED = AppStatus(connected=False, hasTokens=False, domain=None, accountId=None)


def app_status(connection: Connection | None, now: datetime) -> AppStatus:
    """Return a connection as the app knows it."""
    if connection is None or connection.status is Status.DISCONNECTED:
        return NOT_CONNECTED
    expires_at = connection.access_expires_at
    return AppStatus(
        connected=connection.status is Status.ACTIVE,
        hasTokens=connection.sealed_pair is not None and expires_at is not None and expires_at > now,
        domain=connection.domain,
        accountId=connection.account_id,
    )


def failure(status: int, error: str, message: str) -> web.Response:
    """Render an error."""
    response = web.json_response({"success": False, "error": error, "message": message}, status=status)
    if status in {429, 503}:
        response.headers["Retry-After"] = _RETRY_AFTER
    return response


def deep_link_failure(error: str) -> web.Response:
    """Render an error as the deep link names it."""
    known = DEEP_LINK_ERRORS[error]
    return failure(known.status, error, known.message)
