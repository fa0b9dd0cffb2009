"""The hand-out of access tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NotRequired

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, with_config
from pydantic_core import to_json
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.errors import AmoCallbackError
from amo_callback.identity import Scope
from amo_callback.web.keys import CLOCK, HANDOUT, LOG, METRICS, SETTINGS
from amo_callback.web.operation import Time
from amo_callback.web.private.authorization import require
from amo_callback.web.private.bodies import read_body
from amo_callback.web.private.operation import HANDS_OUT, operation
from amo_callback.web.private.parameters import WHOLE, Query, read_query
from amo_callback.web.private.problems import Code, problem_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from datetime import datetime

    from amo_callback.custody.handout import HandedOut
    from amo_callback.identity import ApiKey
    from amo_callback.model import Connection, TokenPair

MAX_TOKEN = 16 * 1024
_WANTED = 'the body is {"rejected_access_token": "…"}, or nothing'


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.get("/connections/{id}/token", token, allow_head=False),
        web.post("/connections/{id}/refresh", refresh),
    ]


class TokenQuery(Query):
    """How much life the token must have."""

    min_ttl: Annotated[int, Field(ge=0, le=999_999_999), WHOLE] = 300
    """a whole number from 0 to 999999999: the seconds that the token lives at least, else it is refreshed first"""


class RefreshBody(BaseModel):
    """What a backend may send: the access token that AMO has rejected."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"rejected_access_token": "eyJ0…"}, {}]},
    )

    rejected_access_token: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)] | None, Field(repr=False)
    ] = None
    """Only where this is still the stored one it is refreshed; else the stored one is handed out."""


@with_config(ConfigDict(use_attribute_docstrings=True))
class HandedOutToken(TypedDict):
    """An access token, and where it is good."""

    connection_id: str
    access_token: str
    token_type: Literal["Bearer"]
    expires_at: Time
    expires_in: int
    """Seconds."""
    issued_at: Time
    account_id: str
    domain: str
    base_url: str
    """Where AMO's API is for this account."""
    stale: NotRequired[Literal[True]]
    """It has less life than was asked for, since the refresh failed."""
    reason: NotRequired[str | None]
    """Why it is stale."""


_DEFAULTS = TokenQuery()
_EXAMPLE: HandedOutToken = {
    "connection_id": "6ca5af66-2b5a-5a4f-9b53-5d9a6c0b6f5e",
    "access_token": "eyJ0…",
    "token_type": "Bearer",
    "expires_at": "2026-11-24T12:00:00Z",
    "expires_in": 86399,
    "issued_at": "2026-11-23T12:00:00Z",
    "account_id": "31920194",
    "domain": "example.amocrm.ru",
    "base_url": "https://example.amocrm.ru",
}


@operation(
    "take_token", scope=Scope.TOKEN, query=TokenQuery, answer=HandedOutToken, example=_EXAMPLE, problems=HANDS_OUT
)
async def token(request: web.Request) -> web.Response:
    """Hand out a connection's access token, refreshed first where it has too little life left."""
    key = require(request, Scope.TOKEN)
    query = read_query(request, TokenQuery) if request.query_string else _DEFAULTS
    taking = request.app[HANDOUT].token(request.match_info["id"], min_ttl=query.min_ttl)
    handed_out = await _counted(request, taking)
    return _hand_out(request, key, handed_out)


@operation(
    "refresh_token", scope=Scope.TOKEN, body=RefreshBody, answer=HandedOutToken, example=_EXAMPLE, problems=HANDS_OUT
)
async def refresh(request: web.Request) -> web.Response:
    """Refresh a connection's pair now, and hand out its access token; never a stale one."""
    key = require(request, Scope.TOKEN)
    body = await read_body(request, RefreshBody, wanted=_WANTED)
    taking = request.app[HANDOUT].refresh(request.match_info["id"], rejected=body.rejected_access_token)
    handed_out = await _counted(request, taking)
    return _hand_out(request, key, handed_out)


async def _counted(request: web.Request, taking: Awaitable[HandedOut]) -> HandedOut:
    """Count what comes of a hand-out."""
    metrics = request.app[METRICS]
    try:
        handed_out = await taking
    except AmoCallbackError as error:
        metrics.handed_out(problem_of(error, settings=request.app[SETTINGS]).code)
        raise
    except Exception:
        metrics.handed_out(Code.INTERNAL_ERROR)
        raise
    metrics.handed_out("stale" if handed_out.stale else "fresh")
    return handed_out


def _hand_out(request: web.Request, key: ApiKey, handed_out: HandedOut) -> web.Response:
    app, stale = request.app, handed_out.stale
    app[LOG].info(
        "token.handed_out",
        key=key.name,
        connection_id=handed_out.connection.id,
        stale=stale,
        reason=handed_out.reason,
    )
    shape = token_shape(handed_out.connection, handed_out.pair, now=app[CLOCK].now(), base_url=handed_out.base_url)
    if stale:
        shape["stale"], shape["reason"] = True, handed_out.reason
    return web.Response(body=to_json(shape), headers=_HEADERS)


_HEADERS = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}


def token_shape(connection: Connection, pair: TokenPair, *, now: datetime, base_url: str) -> HandedOutToken:
    """Return an access token as the contract shows it."""
    return {
        "connection_id": connection.id,
        "access_token": pair.access_token,
        "token_type": "Bearer",
        "expires_at": rfc3339(pair.expires_at),
        "expires_in": max(int((pair.expires_at - now).total_seconds()), 0),
        "issued_at": rfc3339(pair.issued_at),
        "account_id": connection.account_id,
        "domain": connection.domain,
        "base_url": base_url,
    }
