"""The hand-out of access tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.identity import Scope
from amo_callback.web.keys import CLOCK, HANDOUT, LOG, SETTINGS
from amo_callback.web.private.authorization import require
from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.handout import HandedOut

_DEFAULT_MIN_TTL = "300"


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get("/connections/{id}/token", token, allow_head=False)]


async def token(request: web.Request) -> web.Response:
    """Hand out a connection's access token, refreshed first where it has too little life left."""
    key = require(request, Scope.TOKEN)
    handed_out = await request.app[HANDOUT].token(request.match_info["id"], min_ttl=_min_ttl(request))
    request.app[LOG].info(
        "token.handed_out",
        key=key.name,
        connection_id=handed_out.connection.id,
        stale=handed_out.stale,
        reason=handed_out.reason,
    )
    return web.json_response(_shape(request, handed_out), headers={"Cache-Control": "no-store"})


def _min_ttl(request: web.Request) -> int:
    given = request.query.getall("min_ttl", [_DEFAULT_MIN_TTL])
    if len(given) > 1 or not re.fullmatch(r"[0-9]{1,9}", given[0]):
        raise invalid("min_ttl", "seconds, a whole number from 0")
    return int(given[0])


def _shape(request: web.Request, handed_out: HandedOut) -> dict[str, object]:
    connection, pair = handed_out.connection, handed_out.pair
    left = (pair.expires_at - request.app[CLOCK].now()).total_seconds()
    shape: dict[str, object] = {
        "connection_id": connection.id,
        "access_token": pair.access_token,
        "token_type": "Bearer",
        "expires_at": rfc3339(pair.expires_at),
        "expires_in": max(int(left), 0),
        "issued_at": rfc3339(pair.issued_at),
        "account_id": connection.account_id,
        "domain": connection.domain,
        "base_url": request.app[SETTINGS].amo.endpoint.replace("{domain}", connection.domain),
    }
    if handed_out.stale:
        shape |= {"stale": True, "reason": handed_out.reason}
    return shape


def rfc3339(moment: datetime) -> str:
    """Write a time as the contract has it: RFC 3339, UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
