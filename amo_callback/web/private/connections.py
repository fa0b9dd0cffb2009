"""Connections, shown and frozen; never a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.model import Filter, Status
from amo_callback.web.keys import CUSTODY, LOG, STORE
from amo_callback.web.private.authorization import require
from amo_callback.web.private.events import event_shape
from amo_callback.web.private.parameters import Parameters
from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.model import Connection

_LAST_EVENTS = 20


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.get("/connections", index, allow_head=False),
        web.get("/connections/{id}", show, allow_head=False),
        web.delete("/connections/{id}", disconnect),
        web.post("/connections/{id}/freeze", freeze),
        web.post("/connections/{id}/thaw", thaw),
        web.post("/freeze", freeze_all),
        web.post("/thaw", thaw_all),
    ]


async def index(request: web.Request) -> web.Response:
    """List connections, by their ids."""
    require(request, Scope.READ)
    parameters = Parameters(request, known={"limit", "cursor", "account_id", "owner", "status", "domain"})
    status = parameters.text("status")
    if status is not None and status not in set(Status):
        raise invalid("status", f"one of {', '.join(Status)}")
    only = Filter(
        account_id=parameters.text("account_id"),
        owner=parameters.text("owner"),
        status=None if status is None else Status(status),
        domain=parameters.text("domain"),
    )
    limit = parameters.limit()
    all_frozen = await request.app[STORE].frozen() is not None
    found = await request.app[STORE].page(after=parameters.text("cursor") or "", limit=limit + 1, only=only)
    owners = await request.app[STORE].owners_of([connection.id for connection in found])
    return web.json_response(
        {
            "items": [
                connection_shape(connection, owners[connection.id], frozen=all_frozen or connection.frozen)
                for connection in found[:limit]
            ],
            "next_cursor": found[limit - 1].id if len(found) > limit else None,
        }
    )


async def show(request: web.Request) -> web.Response:
    """Show one connection, with its last events."""
    require(request, Scope.READ)
    [connection, *_] = await request.app[CUSTODY].selection.find(request.match_info["id"])
    events = await request.app[STORE].events(connection_id=connection.id, limit=_LAST_EVENTS)
    return web.json_response({**await _shape(request, connection), "events": [event_shape(event) for event in events]})


async def disconnect(request: web.Request) -> web.Response:
    """Forget one connection and erase its tokens; AMO's side lives on until the integration is removed there."""
    key = require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    connection = await custody.selection.only(request.match_info["id"])
    forgotten = await custody.farewell.disconnect(connection, why=f"asked by {key.name}")
    return web.json_response(await _shape(request, forgotten))


async def freeze(request: web.Request) -> web.Response:
    """Spend nothing of one connection."""
    return await _change(request, frozen=True)


async def thaw(request: web.Request) -> web.Response:
    """Spend again of one connection."""
    return await _change(request, frozen=False)


async def _change(request: web.Request, *, frozen: bool) -> web.Response:
    key = require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    connection = await custody.selection.only(request.match_info["id"])
    await (custody.freezer.freeze(connection) if frozen else custody.freezer.thaw(connection))
    custody.refresher.wake()
    request.app[LOG].info("freeze.asked", key=key.name, connection_id=connection.id, frozen=frozen)
    return web.json_response(await _shape(request, await custody.selection.only(connection.id)))


async def freeze_all(request: web.Request) -> web.Response:
    """Spend nothing from now on; `open_attempts` is how many refreshes have not come to their end yet."""
    key = require(request, Scope.ADMIN)
    await request.app[CUSTODY].freezer.freeze_all(why=f"asked by {key.name}")
    return await _told(request)


async def thaw_all(request: web.Request) -> web.Response:
    """Spend again, on this machine from now on."""
    require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    await custody.freezer.thaw_all()
    custody.refresher.wake()
    return await _told(request)


async def _told(request: web.Request) -> web.Response:
    frozen = request.app[CUSTODY].freezer.frozen
    return web.json_response(
        {
            "frozen": frozen is not None,
            "since": _time(frozen.at if frozen else None),
            "why": frozen.why if frozen else None,
            "open_attempts": len(await request.app[STORE].attempts()),
        }
    )


async def _shape(request: web.Request, connection: Connection) -> dict[str, object]:
    owners = await request.app[STORE].owners_of([connection.id])
    return connection_shape(connection, owners[connection.id])


def connection_shape(connection: Connection, owners: Sequence[str], *, frozen: bool | None = None) -> dict[str, object]:
    """Return a connection as the contract shows it; it may be `frozen` although its own row does not tell."""
    return {
        "id": connection.id,
        "account_id": connection.account_id,
        "user_id": connection.user_id,
        "owners": owners,
        "domain": connection.domain,
        "status": connection.status,
        "reason": connection.reason,
        "last_error": connection.last_error,
        "access_expires_at": _time(connection.access_expires_at),
        "refresh_expires_at": _time(connection.refresh_expires_at),
        "refreshed_at": _time(connection.refreshed_at),
        "next_refresh_at": _time(connection.next_refresh_at),
        "failures": connection.failures,
        "connected_at": _time(connection.connected_at),
        "frozen": connection.frozen if frozen is None else frozen,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
