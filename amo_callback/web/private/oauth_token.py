"""`POST /oauth/token`: the token endpoint for standard OAuth clients (https://www.rfc-editor.org/rfc/rfc6749#section-6).

The client's secret is an API key, and its refresh token is the name of a connection, which it keeps. The client never
holds AMO's refresh token.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NotRequired, Self
from urllib.parse import parse_qsl, unquote_plus

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from amo_callback.errors import (
    AmoCallbackError,
    Forbidden,
    InternalError,
    InvalidRequest,
    NeedsReauth,
    NotFound,
    RetryableError,
    UnknownApiKey,
    UnsupportedGrantType,
)
from amo_callback.identity import Scope
from amo_callback.web.parsing import Body, invalid
from amo_callback.web.private.api import retry_after_of
from amo_callback.web.private.rights import permitted
from amo_callback.web.private.tokens import hand_out, seconds_left
from amo_callback.web.route import ClientSecret, Reply, Route, json_response

if TYPE_CHECKING:
    from aiohttp import web

    from amo_callback.identity import ApiKey
    from amo_callback.tokens.access_tokens import HandOut
    from amo_callback.web.composition import Services
    from amo_callback.web.route import Call

_GRANT_TYPE = "refresh_token"
_MAX_FIELDS = 20
_STATUSES = {"invalid_client": 401, "server_error": 500, "temporarily_unavailable": 503}
"""The statuses of errors; every other error has the status 400."""
_NOT_ALLOWED = re.compile(r"[^ !#-\[\]-~]")
"""The characters that `error_description` must not contain."""


class TokenRequest(Body):
    """The parameters of a refresh request, as a form or as a JSON object; unknown parameters are ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"grant_type": "refresh_token", "refresh_token": "owner:42"}]}
    )

    wanted: ClassVar[str] = "required exactly once: grant_type=refresh_token, and refresh_token, a connection's name"
    media: ClassVar[str] = "application/x-www-form-urlencoded"

    grant_type: Annotated[str, Field(json_schema_extra={"const": _GRANT_TYPE})]
    refresh_token: Annotated[str, Field(min_length=1, max_length=512, repr=False)]
    """A connection's id, `account:ID` or `owner:ID`."""
    client_id: str | None = Field(default=None, repr=False)
    """Any text; it is ignored."""
    client_secret: str | None = Field(default=None, repr=False)
    """The API key, unless the client authenticates by HTTP Basic."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Parse a body; an empty parameter of a form is missing, and a repeated one is invalid (RFC 6749, 3.2)."""
        if content.lstrip().startswith(b"{"):
            return cls.model_validate_json(content)
        try:
            given = parse_qsl(content.decode(), errors="strict", max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise invalid("body", cls.wanted) from None
        repeated = next((name for name, count in Counter(name for name, _ in given).items() if count > 1), None)
        if repeated is not None:
            raise invalid(repeated, cls.wanted)
        return cls.model_validate(dict(given))


@with_config(ConfigDict(use_attribute_docstrings=True))
class OAuthToken(TypedDict):
    """A successful token response (RFC 6749, 5.1)."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    """The remaining lifetime in seconds."""
    refresh_token: str
    """The name of the connection, unchanged."""
    base_url: str
    """The base URL of AMO's API for this account."""
    domain: str


@with_config(ConfigDict(use_attribute_docstrings=True))
class OAuthError(TypedDict):
    """An error response (RFC 6749, 5.2)."""

    error: str
    error_description: NotRequired[str]
    """A human-readable description; if the user has to connect again, it contains the URL."""


async def issue_token(call: Call[None, TokenRequest]) -> web.Response:
    """Return a connection's access token to a standard OAuth client.

    The client authenticates by HTTP Basic or by `client_secret`; the secret is an API key with the scope `token`, and
    `client_id` is ignored. `refresh_token` is a connection's name. If this key was handed the same access token more
    than ten seconds ago, the service introspects the token, at most once a minute, and refreshes it if AMO rejects it.
    """
    key = _authenticate(call)
    if call.body.grant_type != _GRANT_TYPE:
        raise UnsupportedGrantType
    if Scope.TOKEN not in key.scopes:
        raise Forbidden(Scope.TOKEN.value)
    known = call._replace(caller=key.name, limits=key.limits)
    handed_out = await hand_out(known, _token(known))
    answer: OAuthToken = {
        "access_token": handed_out.token.value,
        "token_type": "Bearer",
        "expires_in": seconds_left(call, handed_out.token),
        "refresh_token": call.body.refresh_token,
        "base_url": handed_out.base_url,
        "domain": handed_out.connection.domain,
    }
    return json_response(answer)


async def _token(call: Call[None, TokenRequest]) -> HandOut:
    selector = await permitted(call, call.body.refresh_token)
    return await call.services.lifecycle.oauth_tokens.token(selector, key=call.caller)


def _authenticate(call: Call[None, TokenRequest]) -> ApiKey:
    """Return the client's API key; raises `UnknownApiKey`, and `InvalidRequest` for two ways of authentication."""
    keys, headers = call.services.api_keys, call.request.headers.getall("Authorization", ())
    if not headers:
        return keys.find(call.body.client_secret)
    if call.body.client_secret is not None:
        raise InvalidRequest("client_secret: must not be sent in addition to the Authorization header")
    secret = _basic_secret(headers[0]) if len(headers) == 1 else ""
    # RFC 6749 requires clients to form-encode the secret first (2.3.1), but not all of them do.
    return keys.find(secret, unquote_plus(secret))


def _basic_secret(header: str) -> str:
    """Return the password of HTTP Basic authentication; an empty string if the header is invalid."""
    scheme, _, encoded = header.partition(" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return pair.partition(":")[2] if scheme.lower() == "basic" else ""


def render_error(error: AmoCallbackError, services: Services) -> web.Response:
    """Render an error in the format of RFC 6749."""
    description = str(error)
    if isinstance(error, NotFound | NeedsReauth):
        description += f" The user can connect the account at {services.settings.amo.connect_url}"
    answer: OAuthError = {
        "error": error.oauth_error,
        "error_description": _NOT_ALLOWED.sub("'", description),
    }
    response = json_response(answer, status=_STATUSES.get(error.oauth_error, HTTPStatus.BAD_REQUEST))
    if response.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Basic realm="amo-callback"'
    elif response.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = retry_after_of(error, services)
    return response


def _failure(about: str, *errors: type[AmoCallbackError], headers: tuple[str, ...] = ()) -> Reply:
    values = {"error": sorted({error.oauth_error for error in errors})}
    return Reply(about=about, type=OAuthError, headers=headers, values=values)


ROUTES = (
    Route(
        "POST",
        "/oauth/token",
        issue_token,
        ClientSecret.BASIC_OR_BODY,
        body=TokenRequest,
        answer=OAuthToken,
        replies={
            400: _failure(
                "The request is invalid, the key lacks the right, or the user has to connect the account again.",
                InvalidRequest,
                UnsupportedGrantType,
                Forbidden,
                NeedsReauth,
            ),
            401: _failure("The API key is missing or unknown.", UnknownApiKey, headers=("WWW-Authenticate",)),
            500: _failure("An internal error occurred.", InternalError),
            503: _failure("There is no token now: try again later.", RetryableError, headers=("Retry-After",)),
        },
        render_error=render_error,
    ),
)
