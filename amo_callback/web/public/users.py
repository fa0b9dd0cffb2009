"""The app's users: who comes with a request, what is connected for them, and how that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import NotFound, Unauthorized
from amo_callback.web.answers import (
    NOBODYS,
    TOLD,
    FailureCode,
    ToldConnection,
    connected_message,
    success,
    told_connection,
)
from amo_callback.web.keys import CLOCK, CUSTODY, LOG, STORE, USERS
from amo_callback.web.operation import Jwt
from amo_callback.web.public.operation import app_operation

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEME = "bearer "


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes: they are there where users' JWTs are configured."""
    return [web.get(f"{base}/status", status, allow_head=False), web.post(f"{base}/disconnect", disconnect)]


async def user_if_told(request: web.Request) -> str | None:
    """Return whose JWT came; `None` where none came, or none is configured. Raises `Unauthorized` for a bad one."""
    users = request.app.get(USERS)
    headers = request.headers.getall("Authorization", [])
    if users is None or not headers:
        return None
    if len(headers) > 1 or headers[0][: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthorized("header")
    return await users.user_of(headers[0][len(_SCHEME) :].strip())


async def user_of(request: web.Request) -> str:
    """Return whose JWT came; raises `Unauthorized` where none did."""
    user = await user_if_told(request)
    if user is None:
        raise Unauthorized("missing")
    return user


async def status_for(request: web.Request, user: str) -> ToldConnection:
    """Return the status of the user's connection in the app's form."""
    try:
        [connection, *_] = await request.app[CUSTODY].selection.find(f"owner:{user}")
    except NotFound:
        connection = None
    return told_connection(connection, request.app[CLOCK].now())


@app_operation(
    "status",
    jwt=Jwt.REQUIRED,
    answer=ToldConnection,
    example=TOLD,
    failures={503: [FailureCode.AMO_UNAVAILABLE]},
)
async def status(request: web.Request) -> web.Response:
    """Tell the user what is connected."""
    told = await status_for(request, await user_of(request))
    return success(told, connected_message(told))


@app_operation(
    "disconnect",
    jwt=Jwt.REQUIRED,
    answer=ToldConnection,
    example=NOBODYS,
    failures={503: [FailureCode.AMO_UNAVAILABLE]},
)
async def disconnect(request: web.Request) -> web.Response:
    """Remove the user from their connections; the tokens of those that nobody else owns are erased."""
    user = await user_of(request)
    for event in await request.app[STORE].unbind(user):
        request.app[LOG].info(event.name, connection_id=event.connection_id, **event.fields)
    return success(
        told_connection(None, request.app[CLOCK].now()),
        "amoCRM is disconnected here. To withdraw the permission in amoCRM too, remove the integration there.",
    )
