"""`POST /authorizations`: a backend starts a grant for one of its users, and answers for him."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from pydantic import Field

from amo_callback.identity import Scope
from amo_callback.identity.users import MAX_USER
from amo_callback.web.keys import AUTHORIZATIONS, LOG
from amo_callback.web.private.authorization import require
from amo_callback.web.private.bodies import read_body
from amo_callback.web.private.operation import operation
from amo_callback.web.private.problems import Code, invalid
from amo_callback.web.starting import STARTED, StartBody, StartedShape, read_request, started_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

_WANTED = 'the body is {"owner": "…"}, with "state", "code_challenge" and "code_challenge_method" as text or not at all'


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.post("/authorizations", start)]


class OwnedStartBody(StartBody):
    """What a backend sends: for whom, beside what the app may send."""

    owner: Annotated[str, Field(min_length=1, max_length=MAX_USER)] | int


@operation(
    "start_grant",
    scope=Scope.TOKEN,
    body=OwnedStartBody,
    answer=StartedShape,
    example=STARTED,
    problems=[Code.AMO_UNAVAILABLE, Code.STORE_UNAVAILABLE],
)
async def start(request: web.Request) -> web.Response:
    """Start a grant for `owner`, who is bound once it is completed."""
    key = require(request, Scope.TOKEN)
    body = await read_body(request, OwnedStartBody, wanted=_WANTED)
    owner = str(body.owner)
    if len(owner) > MAX_USER or not owner.isprintable():
        raise invalid("owner", f"at most {MAX_USER} printable characters")
    started = await request.app[AUTHORIZATIONS].start(read_request(body, user=owner, vouched=True))
    request.app[LOG].info("grant.started", key=key.name, owner=owner)
    return web.json_response(started_shape(started), headers={"Cache-Control": "no-store"})
