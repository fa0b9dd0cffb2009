"""The routes of the access-token hand-out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NotRequired

from aiohttp import web
from pydantic import ConfigDict, Field, with_config
from pydantic_core import to_json
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.errors import (
    AccountBlocked,
    AmoCallbackError,
    Frozen,
    HostNotAllowed,
    NeedsReauth,
    NotFound,
    OperatorError,
    RetryableError,
)
from amo_callback.identity import Scope
from amo_callback.model import Reason
from amo_callback.web.parsing import INTEGER, Body, Query
from amo_callback.web.private.rights import permitted
from amo_callback.web.route import Reply, Route, TimeText

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

    from amo_callback.tokens.access_tokens import HandOut
    from amo_callback.tokens.cache import AccessToken
    from amo_callback.web.route import Call

HAND_OUT_ERRORS = (NotFound, NeedsReauth, AccountBlocked, RetryableError, OperatorError, Frozen, HostNotAllowed)
_HEADERS = {"Content-Type": "application/json; charset=utf-8"}


class TokenQuery(Query):
    """The required remaining lifetime of the token."""

    min_ttl: Annotated[int, Field(ge=0, le=999_999_999), INTEGER] = 300
    """must be a whole number from 0 to 999999999; a token that is valid for fewer seconds is refreshed first"""


class RefreshBody(Body):
    """The access token that AMO rejected, if any."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rejected_access_token": "eyJ0…"}, {}]})

    wanted: ClassVar[str] = 'the body must be {"rejected_access_token": "…"} or empty'

    rejected_access_token: Annotated[
        Annotated[str, Field(min_length=1, max_length=16 * 1024)] | None, Field(repr=False)
    ] = None
    """The rejected token. If another access token is stored and valid, it is returned without a refresh."""


@with_config(ConfigDict(use_attribute_docstrings=True))
class TokenAnswer(TypedDict):  # a dict, because it is fast to create and to encode
    """An access token and the base URL of the account's API."""

    connection_id: str
    access_token: str
    token_type: Literal["Bearer"]
    expires_at: TimeText
    expires_in: int
    """The remaining lifetime in seconds."""
    issued_at: TimeText
    account_id: str
    domain: str
    base_url: str
    """The base URL of AMO's API for this account."""
    stale: NotRequired[Literal[True]]
    """Present if the token could not be refreshed or confirmed as valid."""
    reason: NotRequired[str | None]
    """The reason why the token is stale."""


async def take_token(call: Call[TokenQuery, None]) -> web.Response:
    """Return a connection's access token; if it expires too soon, the token pair is refreshed first."""
    return _rendered(call, await hand_out(call, _token(call)))


async def take_authorization(call: Call[TokenQuery, None]) -> web.Response:
    """Return the access token and the base URL as headers, for the sub-request of a proxy.

    The status, `Retry-After` and `X-Amo-Error` describe a failure, because a proxy does not read the body.
    """
    handed_out = await hand_out(call, _header_value(_token(call)))
    headers = {
        "X-Amo-Authorization": f"Bearer {handed_out.token.value}",
        "X-Amo-Domain": handed_out.connection.domain,
        "X-Amo-Base-Url": handed_out.base_url,
    }
    return web.Response(status=204, headers=headers)


async def refresh_token(call: Call[None, RefreshBody]) -> web.Response:
    """Refresh a connection's token pair now, and return the access token; a stale token is never returned."""
    return _rendered(call, await hand_out(call, _refresh(call)))


async def _token(call: Call[TokenQuery, None]) -> HandOut:
    selector = await permitted(call, call.name)
    return await call.services.lifecycle.access_tokens.token(selector, min_ttl=call.query.min_ttl)


async def _refresh(call: Call[None, RefreshBody]) -> HandOut:
    rejected = call.body.rejected_access_token
    selector = await permitted(call, call.name, rejected=rejected)
    return await call.services.lifecycle.access_tokens.refresh(selector, rejected=rejected)


async def _header_value(handing_out: Awaitable[HandOut]) -> HandOut:
    """Return a hand-out; raises `NeedsReauth` if its access token is not a valid header value."""
    handed_out = await handing_out
    token = handed_out.token.value
    if not (token.isascii() and token.isprintable()):
        raise NeedsReauth(Reason.UNREADABLE)
    return handed_out


async def hand_out(call: Call[Any, Any], handing_out: Awaitable[HandOut]) -> HandOut:
    """Count and log a hand-out."""
    services = call.services
    try:
        handed_out = await handing_out
    except AmoCallbackError as error:
        services.metrics.handed_out(error.api_code)
        raise
    except Exception:
        services.metrics.handed_out(AmoCallbackError.api_code)
        raise
    services.metrics.handed_out("stale" if handed_out.stale else "fresh")
    services.log.info(
        "token.handed_out",
        key=call.caller,
        connection_id=handed_out.connection.id,
        stale=handed_out.stale,
        reason=handed_out.reason,
    )
    return handed_out


def seconds_left(call: Call[Any, Any], token: AccessToken) -> int:
    """Return the remaining lifetime of an access token in seconds."""
    return max(int((token.expires_at - call.services.core.clock.now()).total_seconds()), 0)


def _rendered(call: Call[Any, Any], handed_out: HandOut) -> web.Response:
    token, connection = handed_out.token, handed_out.connection
    shown: TokenAnswer = {
        "connection_id": connection.id,
        "access_token": token.value,
        "token_type": "Bearer",
        "expires_at": rfc3339(token.expires_at),
        "expires_in": seconds_left(call, token),
        "issued_at": rfc3339(token.issued_at),
        "account_id": connection.account_id,
        "domain": connection.domain,
        "base_url": handed_out.base_url,
    }
    if handed_out.stale:
        shown["stale"], shown["reason"] = True, handed_out.reason
    return web.Response(body=to_json(shown), headers=_HEADERS)


ROUTES = (
    Route(
        "GET",
        "/connections/{id}/token",
        take_token,
        Scope.TOKEN,
        query=TokenQuery,
        answer=TokenAnswer,
        errors=HAND_OUT_ERRORS,
        obeys_limits=True,
    ),
    Route(
        "GET",
        "/connections/{id}/authorization",
        take_authorization,
        Scope.TOKEN,
        query=TokenQuery,
        errors=HAND_OUT_ERRORS,
        replies={
            204: Reply(
                about="The access token is in the headers; there is no body.",
                headers=("X-Amo-Authorization", "X-Amo-Domain", "X-Amo-Base-Url"),
            )
        },
        obeys_limits=True,
    ),
    Route(
        "POST",
        "/connections/{id}/refresh",
        refresh_token,
        Scope.TOKEN,
        body=RefreshBody,
        answer=TokenAnswer,
        errors=HAND_OUT_ERRORS,
        obeys_limits=True,
    ),
)
