"""The hand-out of access tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.web.keys import CLOCK, HANDOUT, LOG, SETTINGS
from amo_callback.web.private.authorization import require
from amo_callback.web.private.bodies import read_body
from amo_callback.web.private.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.custody.handout import HandedOut
    from amo_callback.identity import ApiKey
    from amo_callback.model import Connection, TokenPair

MAX_TOKEN = 16 * 1024
_DEFAULT_MIN_TTL, _MOST_MIN_TTL = 300, 999_999_999
_WANTED = 'the body is {"rejected_access_token": "…"}, or nothing'


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.get("/connections/{id}/token", token, allow_head=False),
        web.post("/connections/{id}/refresh", refresh),
    ]


class RefreshBody(BaseModel):
    """What a backend may send: the access token that AMO has rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    rejected_access_token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)] | None = None


async def token(request: web.Request) -> web.Response:
    """Hand out a connection's access token, refreshed first where it has too little life left."""
    key = require(request, Scope.TOKEN)
    handed_out = await request.app[HANDOUT].token(request.match_info["id"], min_ttl=_min_ttl(request))
    return _hand_out(request, key, handed_out)


async def refresh(request: web.Request) -> web.Response:
    """Refresh a connection's pair now, and hand out its access token; never a stale one."""
    key = require(request, Scope.TOKEN)
    body = await read_body(request, RefreshBody, wanted=_WANTED)
    handed_out = await request.app[HANDOUT].refresh(request.match_info["id"], rejected=body.rejected_access_token)
    return _hand_out(request, key, handed_out)


def _hand_out(request: web.Request, key: ApiKey, handed_out: HandedOut) -> web.Response:
    request.app[LOG].info(
        "token.handed_out",
        key=key.name,
        connection_id=handed_out.connection.id,
        stale=handed_out.stale,
        reason=handed_out.reason,
    )
    return web.json_response(_shape(request, handed_out), headers={"Cache-Control": "no-store"})


def _min_ttl(request: web.Request) -> int:
    parameters = Parameters(request, known={"min_ttl"})
    return parameters.number("min_ttl", default=_DEFAULT_MIN_TTL, least=0, most=_MOST_MIN_TTL)


def _shape(request: web.Request, handed_out: HandedOut) -> dict[str, object]:
    settings, now = request.app[SETTINGS], request.app[CLOCK].now()
    shape = token_shape(handed_out.connection, handed_out.pair, now=now, endpoint=settings.amo.endpoint)
    if handed_out.stale:
        shape |= {"stale": True, "reason": handed_out.reason}
    return shape


def token_shape(connection: Connection, pair: TokenPair, *, now: datetime, endpoint: str) -> dict[str, object]:
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
        "base_url": endpoint.replace("{domain}", connection.domain),
    }
