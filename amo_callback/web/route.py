"""Routes, and the common wrapper around their handlers.

The wrapper sets the request id, authenticates the caller, parses the query and the body, renders errors, and writes the
log line. `openapi` documents the routes.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar, cast, dataclass_transform

from aiohttp import hdrs, web
from pydantic import ConfigDict, WithJsonSchema, with_config

from amo_callback import probe
from amo_callback.clock import rfc3339
from amo_callback.errors import AmoCallbackError, Forbidden, InternalError, InvalidRequest, Unauthorized, UnknownApiKey
from amo_callback.events import REQUEST_ID
from amo_callback.identity import Scope
from amo_callback.web.access_log import log_request, make_request_id
from amo_callback.web.client_ip import answer_probe
from amo_callback.web.parsing import Body, Query, read_body, read_query

if TYPE_CHECKING:
    from pydantic import BaseModel

    from amo_callback.model import ConnectionLimits
    from amo_callback.web.composition import Services

Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"})]
TimeText = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time as RFC 3339 text."""
Shape = TypeVar("Shape")
QueryType = TypeVar("QueryType")
BodyType = TypeVar("BodyType")
_LOGGED = frozenset({"error", "detail"})
"""The fields of an error in the log line of its request."""
_REALM = 'Bearer realm="amo-callback"'


@dataclass_transform(frozen_default=True, kw_only_default=True)
def shape(cls: type[Shape]) -> type[Shape]:
    """Make a class a frozen dataclass for a JSON object; its attribute docstrings are the OpenAPI descriptions."""
    made = dataclass(frozen=True, kw_only=True, slots=True)(cls)
    return with_config(ConfigDict(use_attribute_docstrings=True))(made)


def shaped(kind: type[Shape], value: object, **more: object) -> Shape:
    """Return a shape of type `kind` with the values in `more`; all other fields are copied from `value`."""
    names = [field.name for field in dataclasses.fields(cast("Any", kind)) if field.name not in more]
    return kind(**{name: getattr(value, name) for name in names}, **more)


def to_json(value: object) -> str:
    """Encode a value made of shapes and JSON types; pydantic is slower, and is used only to document shapes."""
    return json.dumps(value, default=_plain)


def json_response(value: object, status: int = 200) -> web.Response:
    return web.Response(text=to_json(value), status=status, content_type="application/json")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"cannot encode {type(value).__name__} as JSON")


class Caller(NamedTuple):
    """The authenticated sender of a request."""

    name: str = ""
    """The name of the API key or the id of the app user; empty for an unauthenticated caller."""
    limits: ConnectionLimits | None = None
    """The connections for which the API key is valid; `None` for all connections."""


class Call(NamedTuple, Generic[QueryType, BodyType]):
    """The argument of a handler: the request, its parsed input, and the services."""

    request: web.Request
    services: Services
    caller: str
    """The caller's name; see `Caller`."""
    limits: ConnectionLimits | None
    """The connections for which the caller's API key is valid; `None` for all connections."""
    address: str | None
    """The client's IP address; `None` if it is unknown."""
    query: QueryType
    body: BodyType

    @property
    def name(self) -> str:
        """The path parameter `{id}`."""
        return self.request.match_info["id"]


class Jwt(Enum):
    """Whether a route requires an app user's JWT or also accepts requests without a JWT."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class ClientSecret(Enum):
    """The ways in which an OAuth client can authenticate; the handler checks the secret."""

    BASIC_OR_BODY = "basic or body"


def bearer(request: web.Request) -> str | None:
    """Return the bearer token: `None` without an `Authorization` header, an empty string if the header is invalid."""
    headers = request.headers.getall("Authorization", ())
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    return token.strip() if len(headers) == 1 and scheme.lower() == "bearer" else ""


def challenge_for(error: AmoCallbackError) -> str | None:
    """Return an error's `WWW-Authenticate` header, if any.

    The header for a request without a token has no error code (RFC 6750, 3).
    """
    if isinstance(error, Forbidden):
        scope = "" if error.scope is None else f', scope="{error.scope}"'
        return f'{_REALM}, error="insufficient_scope"{scope}'
    if isinstance(error, UnknownApiKey | Unauthorized):
        return f'{_REALM}, error="invalid_token"' if error.presented else _REALM
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The documentation of a route's response with one status."""

    about: str
    type: Any = None
    """The type of the body, documented by pydantic; `None` if there is no body."""
    media: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    """The names of the headers that the response always has."""
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The possible values of body members, by member name."""


def error_reply(actions: Mapping[str, str], *, member: str, **reply: Any) -> Reply:  # noqa: ANN401 -- the fields of `Reply`
    """Return the documentation of errors: the client's action for each code in the body's `member`."""
    codes = sorted(actions)
    about = "\n".join(f"- `{code}`: {actions[code]}" for code in codes)
    return Reply(about=about, values={member: codes}, **reply)


Handler = Callable[[Call[Any, Any]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a path, with its handler and the types of its input and output.

    The handler's name and docstring document the route.
    """

    method: str
    path: str
    handler: Handler
    access: Scope | Jwt | ClientSecret | None = None
    """The scope that the API key must have, or the rule for JWTs or OAuth clients; `None` without authentication."""
    _: KW_ONLY
    query: type[Query] | None = None
    body: type[Body] | None = None
    answer: Any = None
    """The type that the handler returns; `None` if the body is documented only in `replies`."""
    errors: Sequence[type[AmoCallbackError]] = ()
    """Errors that the handler may raise, in addition to those common to all routes with the same access."""
    replies: Mapping[int, Reply] = field(default_factory=dict)
    """Responses that the handler builds itself, by status."""
    unparsed_query: type[BaseModel] | None = None
    """The model that documents a query that the handler parses itself."""
    operation: str | None = None
    """The OpenAPI operation id, if several routes have the same handler; by default, the handler's name."""
    render_error: Callable[[AmoCallbackError, Services], web.Response] | None = None
    """The function that renders errors, if their format differs from that of the API."""
    obeys_limits: bool = False
    """Whether the handler obeys the limits of an API key; a limited key is refused on every other route."""


class Api(ABC):
    """The routes of one listener; subclasses define authentication and the format of responses and errors."""

    name: ClassVar[str]
    headers: ClassVar[Mapping[str, str]]
    """Headers of every response that does not set them itself."""
    takes_over_request_ids: ClassVar[bool]
    access_errors: ClassVar[Sequence[type[AmoCallbackError]]]
    """Errors that any route with authentication may raise."""

    def __init__(self, services: Services, routes: Sequence[Route]) -> None:
        self.services = services
        self.routes = routes
        self._clock = services.core.clock
        self._logs_requests = services.settings.log.access

    def make_app(self) -> web.Application:
        """Return the application; the wrapper also handles requests that match no route."""
        app = web.Application()
        has_own_head = {route.path for route in self.routes if route.method == hdrs.METH_HEAD}
        for route in self.routes:
            app.router.add_route(route.method, route.path, partial(self._answer, route))
            if route.method == hdrs.METH_GET and route.path not in has_own_head:
                app.router.add_route(hdrs.METH_HEAD, route.path, partial(self._answer, route))
        unmatched = Unmatched("/{path}")
        app.router.register_resource(unmatched)
        unmatched.add_route(hdrs.METH_ANY, partial(self._answer, None))
        return app

    @abstractmethod
    async def authenticate(self, request: web.Request, route: Route) -> Caller:
        """Return the caller; raises an error if the caller does not have access to the route."""

    @abstractmethod
    async def check_unmatched(self, request: web.Request) -> None:
        """Raise the error, if any, that takes precedence over 404 and 405."""

    @abstractmethod
    def render_error(self, error: AmoCallbackError) -> web.Response: ...

    @abstractmethod
    def render_http_error(self, error: web.HTTPException) -> web.Response:
        """Render an HTTP error raised by aiohttp."""

    @classmethod
    @abstractmethod
    def describe(cls, error: type[AmoCallbackError]) -> tuple[int, str, str]:
        """Return an error's status, its code, and the client's action."""

    @classmethod
    @abstractmethod
    def error_reply(cls, status: int, actions: Mapping[str, str]) -> Reply:
        """Return the documentation of a status: the client's action for each code."""

    @classmethod
    def error_replies(cls, route: Route) -> Mapping[int, Reply]:
        """Return the documentation of a route's errors, including errors that other routes share."""
        errors: list[type[AmoCallbackError]] = [InternalError, *route.errors]
        errors += cls.access_errors if isinstance(route.access, Scope | Jwt) else ()
        if route.query is not None or route.body is not None:
            errors.append(InvalidRequest)
        found: dict[int, dict[str, str]] = defaultdict(dict)
        for status, code, action in map(cls.describe, errors):
            found[status][code] = action
        if route.body is not None:
            _, code, action = cls.describe(InvalidRequest)
            found[408][code] = found[413][code] = action
        return {status: cls.error_reply(status, actions) for status, actions in found.items()}

    async def _answer(self, route: Route | None, request: web.Request) -> web.StreamResponse:
        services, started = self.services, self._clock.monotonic()
        client = services.proxies.client_of(request)
        request_id = make_request_id(request, take_over=self.takes_over_request_ids)
        token = REQUEST_ID.set(request_id)
        failure: Mapping[str, object] = {}
        try:
            try:
                response = await self._call(route, request, client)
            except AmoCallbackError as error:
                response = self._render(route, error)
                failure = {name: value for name, value in error.fields.items() if name in _LOGGED}
            except web.HTTPException as error:
                response = self.render_http_error(error)
                if "Allow" in error.headers:
                    response.headers["Allow"] = error.headers["Allow"]
            except ConnectionError:
                raise  # the client has disconnected
            except Exception:
                services.log.exception("http.bug")
                response = self._render(route, InternalError())
            for name, value in self.headers.items():
                response.headers.setdefault(name, value)
            response.headers["X-Request-ID"] = request_id
            if request.method == "HEAD" and (seen := answer_probe(request, services.core.cipher, client=client)):
                response.headers[probe.HEADER] = seen
            if self._logs_requests:
                log_request(
                    services.log,
                    request,
                    listener=self.name,
                    route="none" if route is None else route.path,
                    status=response.status,
                    seconds=self._clock.monotonic() - started,
                    peer=client,
                    failure=failure,
                )
            return response
        finally:
            REQUEST_ID.reset(token)

    def _render(self, route: Route | None, error: AmoCallbackError) -> web.Response:
        if route is not None and route.render_error is not None:
            return route.render_error(error, self.services)
        response = self.render_error(error)
        if challenge := challenge_for(error):
            response.headers["WWW-Authenticate"] = challenge
        return response

    async def _call(self, route: Route | None, request: web.Request, client: str | None) -> web.StreamResponse:
        if route is None:
            await self.check_unmatched(request)
            raise await _http_error(request)
        caller = await self.authenticate(request, route)
        query = None if route.query is None else read_query(request, route.query)
        body = None if route.body is None else await read_body(request, route.body)
        answer = await route.handler(Call(request, self.services, *caller, client, query, body))
        return answer if isinstance(answer, web.StreamResponse) else json_response(answer)


class Unmatched(web.DynamicResource):
    """The resource for requests that match no route, including requests for `*`."""

    def _match(self, path: str) -> dict[str, str]:  # noqa: ARG002 -- aiohttp's signature
        return {}


async def _http_error(request: web.Request) -> web.HTTPException:
    """Return 405 if the path has routes for other methods, otherwise 404."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if not isinstance(resource, Unmatched):
            allowed |= (await resource.resolve(request))[1]
    return web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound()
