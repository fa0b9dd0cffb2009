"""The public API: authentication of app users, and the JSON envelope that the existing app expects."""

from __future__ import annotations

import math
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from aiohttp import web

from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.errors import (
    AmoCallbackError,
    InternalError,
    InvalidRequest,
    NotFound,
    Pending,
    PkceMismatch,
    StoreUnavailable,
    Unauthorized,
)
from amo_callback.model import Status
from amo_callback.web.route import Api, Caller, Jwt, Reply, Route, bearer, error_reply, shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from amo_callback.model import Connection
    from amo_callback.web.route import Call

TEXT = ("text/html", "text/plain")
METHOD_NOT_ALLOWED = "method_not_allowed"
PREFETCHED = Reply(about="A browser prefetched the URL; nothing was done.")
TO_APP = Reply(about="Redirects to the app's deep link.", headers=("Location",))
ERROR_PAGES = {
    400: Reply(about="The error, as a page with a link to the app or as plain text.", type=str, media=TEXT),
    429: Reply(about="Too many attempts from this address.", type=str, media=TEXT),
    503: Reply(about="Temporary failure: try again in a minute.", type=str, media=TEXT),
}
_HTTP_ERRORS = {404: NotFound.code, 405: METHOD_NOT_ALLOWED}
"""The codes of HTTP errors, by status; every other status has the code `invalid_request`."""
_TEMPORARY = frozenset({429, 503})
"""The statuses whose responses always have a `Retry-After` header."""
_RETRY_AFTER = 5.0
"""The seconds in `Retry-After` of an error without a time of its own."""
Data = TypeVar("Data")


@shape
class Success(Generic[Data]):
    """The response to a successful request."""

    success: Literal[True] = True
    data: Data
    message: str
    """A human-readable message."""


@shape
class Failure:
    """The response to a failed request."""

    success: Literal[False] = False
    error: str
    message: str
    """A human-readable description of the error."""


@shape
class AppStatus:
    """A connection in the format of the existing app."""

    connected: bool
    hasTokens: bool  # noqa: N815 -- the existing app expects this name
    """Whether there is a valid access token."""
    domain: str | None
    accountId: str | None  # noqa: N815 -- the existing app expects this name

    @property
    def message(self) -> str:
        return "The account is connected." if self.connected else "The account is not connected."


NOT_CONNECTED = AppStatus(connected=False, hasTokens=False, domain=None, accountId=None)


def app_status(connection: Connection, now: datetime) -> AppStatus:
    expires_at = connection.access_expires_at
    return AppStatus(
        connected=connection.status is Status.ACTIVE,
        hasTokens=connection.sealed_pair is not None and expires_at is not None and expires_at > now,
        domain=connection.domain,
        accountId=connection.account_id,
    )


def failure(status: int, error: str, message: str, *, retry_after: float | None = None) -> web.Response:
    response = web.json_response({"success": False, "error": error, "message": message}, status=status)
    if retry_after is not None or status in _TEMPORARY:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after or _RETRY_AFTER)))
    return response


def error_actions() -> Mapping[str, str]:
    """Return the app's action for each error code of the envelope."""
    shown = {error: known.action for error, known in DEEP_LINK_ERRORS.items()}
    own = (InvalidRequest, Unauthorized, PkceMismatch, NotFound, Pending, StoreUnavailable, InternalError)
    own_actions = {error.code: error.action for error in own}
    return {**shown, **own_actions, METHOD_NOT_ALLOWED: "use a method listed in the `Allow` header"}


class PublicApi(Api):
    name = "public"
    takes_over_request_ids = False
    access_errors = (Unauthorized,)
    headers = MappingProxyType(
        {
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",  # the URL may contain a code
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "X-Robots-Tag": "noindex",
            "Content-Security-Policy": (  # pages send their own policy with a nonce
                "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
        }
    )

    async def authenticate(self, request: web.Request, route: Route) -> Caller:
        """Return the app user; a caller without a JWT has an empty name.

        Raises `Unauthorized` and `JwksUnavailable`.
        """
        if route.access is None:
            return Caller()
        verifier = self.services.users
        token = None if verifier is None else bearer(request)
        if token is None and route.access is Jwt.OPTIONAL:
            return Caller()
        if verifier is None or not token:
            raise Unauthorized("missing" if token is None else "header")
        return Caller(await verifier.verify(token))

    async def check_unmatched(self, request: web.Request) -> None: ...

    def render_error(self, error: AmoCallbackError) -> web.Response:
        if isinstance(error, InvalidRequest):
            return failure(error.http_status, error.code, str(error))
        status, code, message = error.http_status, error.code, error.app_message
        if message is None:
            code = error.deep_link_error
            status, message = DEEP_LINK_ERRORS[code].status, DEEP_LINK_ERRORS[code].message
        can_retry = status in _TEMPORARY or isinstance(error, Pending)
        return failure(status, code, message, retry_after=error.retry_after if can_retry else None)

    def render_http_error(self, error: web.HTTPException) -> web.Response:
        code = _HTTP_ERRORS.get(error.status, InvalidRequest.code)
        return failure(error.status, code, f"{error.status} {HTTPStatus(error.status).phrase}")

    @classmethod
    def describe(cls, error: type[AmoCallbackError]) -> tuple[int, str, str]:
        if error.app_message is not None:
            return error.http_status, error.code, error_actions()[error.code]
        code = error.deep_link_error
        return DEEP_LINK_ERRORS[code].status, code, error_actions()[code]

    @classmethod
    def error_reply(cls, status: int, actions: Mapping[str, str]) -> Reply:
        return failure_reply(status, *actions)


def failure_reply(status: int, *codes: str) -> Reply:
    """Return the documentation of errors in the envelope."""
    known, always = error_actions(), {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
    headers = (always[status],) if status in always else ()
    return error_reply({code: known[code] for code in codes}, member="error", type=Failure, headers=headers)


async def head_ok(_call: Call[None, None]) -> web.Response:
    """Respond to a HEAD request without side effects."""
    return web.Response()


def head_route(path: str) -> Route:
    """Return a HEAD route for a path whose GET has side effects."""
    return Route("HEAD", path, head_ok, replies={200: Reply(about="An empty response; nothing was done.")})


def is_prefetch(request: web.Request) -> bool:
    """Return whether the request is a browser's prefetch, which must not spend the authorization code."""
    purposes = (request.headers.get(name, "") for name in ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"))
    return any("prefetch" in value.lower() or "preview" in value.lower() for value in purposes)
