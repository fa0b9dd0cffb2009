"""Connections, shown and forgotten; never a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.model import Filter, Reason, Status
from amo_callback.web.keys import CUSTODY, STORE
from amo_callback.web.operation import Time
from amo_callback.web.private.authorization import require
from amo_callback.web.private.events import EVENT, EventShape, event_shape
from amo_callback.web.private.operation import SELECTS, operation
from amo_callback.web.private.parameters import Paged, Text, cut, read_query
from amo_callback.web.private.problems import Code

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection

_LAST_EVENTS = 20
MOST_OWNERS = 10_000
"""Of the connections of a page, but for its first one: a page that would have more is shorter."""


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.get("/connections", index, allow_head=False),
        web.get("/connections/{id}", show, allow_head=False),
        web.delete("/connections/{id}", disconnect),
    ]


class ConnectionsQuery(Paged):
    """Which connections."""

    cursor: Text | None = None
    """the next_cursor of the page before"""
    account_id: Text | None = None
    """1 to 256 characters: the AMO account's id"""
    owner: Text | None = None
    """1 to 256 characters: the app's user"""
    status: Status | None = None
    """one of active, needs_reauth, disconnected"""
    domain: Text | None = None
    """1 to 256 characters: the account's host"""


@with_config(ConfigDict(use_attribute_docstrings=True))
class ConnectionShape(TypedDict):
    """One AMO account, connected by one AMO user; never a token."""

    id: str
    account_id: str
    user_id: str
    """The AMO user's."""
    owners: Sequence[str]
    """The app's users whose it is."""
    domain: str
    status: Status
    reason: Reason | None
    """Why its person has to connect again."""
    last_error: str | None
    access_expires_at: Time | None
    refresh_expires_at: Time | None
    refreshed_at: Time | None
    next_refresh_at: Time | None
    failures: int
    """Refreshes that failed since the last one that succeeded."""
    connected_at: Time
    frozen: bool
    """Whether nothing of it is spent until somebody thaws it."""


class ShownConnection(ConnectionShape):
    """A connection, and what happened to it last."""

    events: list[EventShape]


@with_config(ConfigDict(use_attribute_docstrings=True))
class ConnectionsPage(TypedDict):
    """A part of the connections, by their ids."""

    items: list[ConnectionShape]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last one."""


CONNECTION: ConnectionShape = {
    "id": "6ca5af66-2b5a-5a4f-9b53-5d9a6c0b6f5e",
    "account_id": "31920194",
    "user_id": "7",
    "owners": ["42"],
    "domain": "example.amocrm.ru",
    "status": Status.ACTIVE,
    "reason": None,
    "last_error": None,
    "access_expires_at": "2026-11-25T12:00:00Z",
    "refresh_expires_at": "2027-02-24T12:00:00Z",
    "refreshed_at": None,
    "next_refresh_at": "2026-11-25T00:00:00Z",
    "failures": 0,
    "connected_at": "2026-11-24T12:00:00Z",
    "frozen": False,
}


@operation(
    "list_connections",
    scope=Scope.READ,
    query=ConnectionsQuery,
    answer=ConnectionsPage,
    example={"items": [CONNECTION], "next_cursor": None},
    problems=[Code.STORE_UNAVAILABLE],
)
async def index(request: web.Request) -> web.Response:
    """List connections, by their ids; never a token."""
    require(request, Scope.READ)
    query = read_query(request, ConnectionsQuery)
    only = Filter(account_id=query.account_id, owner=query.owner, status=query.status, domain=query.domain)
    all_frozen = await request.app[STORE].frozen() is not None
    found = await request.app[STORE].page(after=query.cursor or "", limit=query.limit + 1, only=only)
    items, last = cut(found, query.limit)
    owners = await request.app[STORE].owners_of([connection.id for connection in items])
    if (fitting := _fitting(items, owners)) < len(items):
        items, last = items[:fitting], items[fitting - 1]
    page: ConnectionsPage = {
        "items": [
            connection_shape(connection, owners[connection.id], frozen=all_frozen or connection.frozen)
            for connection in items
        ],
        "next_cursor": None if last is None else last.id,
    }
    return web.json_response(page)


def _fitting(items: Sequence[Connection], owners: Mapping[str, Sequence[str]]) -> int:
    """Return how many connections a page holds, by how many owners they have."""
    totals = accumulate(len(owners[connection.id]) for connection in items)
    return max(sum(total <= MOST_OWNERS for total in totals), 1)


@operation(
    "show_connection",
    scope=Scope.READ,
    answer=ShownConnection,
    example={**CONNECTION, "events": [EVENT]},
    problems=SELECTS,
)
async def show(request: web.Request) -> web.Response:
    """Show one connection, with its last events; never a token."""
    require(request, Scope.READ)
    [connection, *_] = await request.app[CUSTODY].selection.find(request.match_info["id"])
    events = await request.app[STORE].events(connection_id=connection.id, limit=_LAST_EVENTS)
    shown: ShownConnection = {
        **await shape_of(request, connection),
        "events": [event_shape(event) for event in events],
    }
    return web.json_response(shown)


@operation(
    "disconnect_connection",
    scope=Scope.ADMIN,
    answer=ConnectionShape,
    example={**CONNECTION, "status": Status.DISCONNECTED, "access_expires_at": None, "next_refresh_at": None},
    problems=(*SELECTS, Code.AMBIGUOUS, Code.FROZEN),
)
async def disconnect(request: web.Request) -> web.Response:
    """Forget one connection and erase its tokens; AMO's side lives on until the integration is removed there."""
    key = require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    connection = await custody.selection.only(request.match_info["id"])
    forgotten = await custody.farewell.disconnect(connection, why=f"asked by {key.name}")
    return web.json_response(await shape_of(request, forgotten))


async def shape_of(request: web.Request, connection: Connection) -> ConnectionShape:
    """Return a connection as it is shown, with whose it is."""
    owners = await request.app[STORE].owners_of([connection.id])
    return connection_shape(connection, owners[connection.id])


def connection_shape(connection: Connection, owners: Sequence[str], *, frozen: bool | None = None) -> ConnectionShape:
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
        "connected_at": rfc3339(connection.connected_at),
        "frozen": connection.frozen if frozen is None else frozen,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
