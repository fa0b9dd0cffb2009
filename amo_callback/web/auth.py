"""Who sends a request: a backend by its API key, or the app's user by the app's JWT (RFC 6750)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from amo_callback.errors import Forbidden, Unauthorized, UnknownApiKey

if TYPE_CHECKING:
    from aiohttp import web

    from amo_callback.errors import AmoCallbackError
    from amo_callback.identity import ApiKey, ApiKeys
    from amo_callback.identity.jwt import JwtVerifier

_REALM = 'Bearer realm="amo-callback"'


class Jwt(Enum):
    """Whether a route needs the JWT of the app's user."""

    REQUIRED = "required"
    OPTIONAL = "optional"


def bearer(request: web.Request) -> str | None:
    """Return the bearer token; `None` where no `Authorization` came, an empty text where it cannot be used."""
    headers = request.headers.getall("Authorization", ())
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    return token.strip() if len(headers) == 1 and scheme.lower() == "bearer" else ""


def find_api_key(request: web.Request, keys: ApiKeys) -> ApiKey:
    """Return the request's API key; raises `UnknownApiKey`."""
    presented = bearer(request) or ""
    key = keys.find(presented)
    if key is None:
        raise UnknownApiKey(presented=bool(presented))
    return key


async def find_user(request: web.Request, verifier: JwtVerifier | None, *, required: bool) -> str | None:
    """Return the id of the request's user, `None` where no JWT came; raises `Unauthorized`, `JwksUnavailable`."""
    token = None if verifier is None else bearer(request)
    if verifier is None or token is None:
        if required:
            raise Unauthorized("missing")
        return None
    if not token:
        raise Unauthorized("header")
    return await verifier.verify(token)


def challenge_for(error: AmoCallbackError) -> str | None:
    """Return the `WWW-Authenticate` header of an error (RFC 6750, section 3); where no token came it names no error."""
    if isinstance(error, Forbidden):
        return f'{_REALM}, error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, UnknownApiKey | Unauthorized):
        return f'{_REALM}, error="invalid_token"' if error.presented else _REALM
    return None
