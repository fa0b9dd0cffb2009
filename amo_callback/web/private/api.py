"""The private API: authentication by API key, and errors as problem details (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, NotRequired

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from amo_callback.errors import (
    AmoCallbackError,
    Forbidden,
    InvalidRequest,
    NeedsReauth,
    NotFound,
    StoreUnavailable,
    UnknownApiKey,
)
from amo_callback.identity import Scope
from amo_callback.web.route import Api, Caller, Reply, bearer, error_reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amo_callback.web.composition import Services
    from amo_callback.web.route import Route

_ERROR_HEADER = "X-Amo-Error"


@with_config(ConfigDict(use_attribute_docstrings=True))
class RejectedConnection(TypedDict):
    """A connection that an import rejected."""

    place: str
    """The position of the connection in the body."""
    why: str


@with_config(ConfigDict(use_attribute_docstrings=True))
class Problem(TypedDict):
    """The problem details of an error (RFC 9457)."""

    status: int
    title: str
    """The reason phrase of the status."""
    code: str
    detail: str
    """A human-readable description; for an invalid request, it begins with the name of the field."""
    scope: NotRequired[str]
    """The scope that the API key lacks."""
    reason: NotRequired[str | None]
    """The reason why the user has to connect again."""
    reconnect_url: NotRequired[str]
    """The URL at which the user connects again."""
    problems: NotRequired[list[RejectedConnection]]
    """The connections that an import rejected; only the first 20 are listed."""


class PrivateApi(Api):
    name = "private"
    takes_over_request_ids = True
    access_errors = (UnknownApiKey, Forbidden, StoreUnavailable)
    headers = MappingProxyType({"Cache-Control": "no-store"})

    def __init__(self, services: Services, routes: Sequence[Route]) -> None:
        super().__init__(services, routes)
        self._open_paths = {route.path for route in routes if route.access is None}

    async def authenticate(self, request: web.Request, route: Route) -> Caller:
        """Return the API key's name and limits; raises `UnknownApiKey` and `Forbidden`."""
        if not isinstance(route.access, Scope):
            return Caller()
        key = self.services.api_keys.find(bearer(request))
        if route.access not in key.scopes:
            raise Forbidden(route.access.value)
        if key.limits is not None and not route.obeys_limits:
            raise Forbidden
        return Caller(key.name, key.limits)

    async def check_unmatched(self, request: web.Request) -> None:
        """Require an API key, so that callers without a key do not learn which paths exist."""
        if request.path not in self._open_paths:
            self.services.api_keys.find(bearer(request))

    def render_error(self, error: AmoCallbackError) -> web.Response:
        members = dict(error.members)
        if isinstance(error, NeedsReauth):
            members["reconnect_url"] = self.services.settings.amo.connect_url
        response = _problem(error.http_status, error.api_code, str(error), members)
        if error.http_status in {502, 503}:
            response.headers["Retry-After"] = retry_after_of(error, self.services)
        return response

    def render_http_error(self, error: web.HTTPException) -> web.Response:
        code = NotFound.api_code if error.status == HTTPStatus.NOT_FOUND else InvalidRequest.api_code
        return _problem(error.status, code, error.reason)

    @classmethod
    def describe(cls, error: type[AmoCallbackError]) -> tuple[int, str, str]:
        return error.http_status, error.api_code, error.action

    @classmethod
    def error_reply(cls, status: int, actions: Mapping[str, str]) -> Reply:
        always = {401: "WWW-Authenticate", 403: "WWW-Authenticate", 502: "Retry-After", 503: "Retry-After"}
        headers = (_ERROR_HEADER, *((always[status],) if status in always else ()))
        return error_reply(actions, member="code", type=Problem, media=("application/problem+json",), headers=headers)


def retry_after_of(error: AmoCallbackError, services: Services) -> str:
    """Return the value of `Retry-After` for an error that may pass."""
    seconds = services.settings.refresh.retry_cap if error.retry_after is None else error.retry_after
    return str(max(1, math.ceil(seconds)))


def _problem(status: int, code: str, detail: str, members: Mapping[str, object] = MappingProxyType({})) -> web.Response:
    title = HTTPStatus(status).phrase
    return web.json_response(
        {"status": status, "title": title, "code": code, "detail": detail, **members},
        status=status,
        headers={_ERROR_HEADER: code},
        content_type="application/problem+json",
    )
