"""`GET /events`: what happened, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from aiohttp import web
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.web.keys import STORE
from amo_callback.web.operation import Time
from amo_callback.web.private.authorization import require
from amo_callback.web.private.operation import operation
from amo_callback.web.private.parameters import Paged, Text, cut, read_query
from amo_callback.web.private.problems import Code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Recorded


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get("/events", events, allow_head=False)]


class EventsQuery(Paged):
    """Which events."""

    cursor: Annotated[str, Field(pattern="^[0-9]{1,18}$")] | None = None
    """the next_cursor of the page before"""
    connection: Text | None = None
    """1 to 256 characters: whose events, by a connection's id, `account:31920194` or `owner:42`"""


@with_config(ConfigDict(use_attribute_docstrings=True))
class EventShape(TypedDict):
    """What happened."""

    id: int
    at: Time
    connection_id: str | None
    name: str
    process: str
    """Which process wrote it."""
    details: Mapping[str, object]


@with_config(ConfigDict(use_attribute_docstrings=True))
class EventsPage(TypedDict):
    """A part of what happened, newest first."""

    items: list[EventShape]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last one."""


EVENT: EventShape = {
    "id": 17,
    "at": "2026-11-24T12:00:00Z",
    "connection_id": "6ca5af66-2b5a-5a4f-9b53-5d9a6c0b6f5e",
    "name": "refresh.succeeded",
    "process": "server:1234:a1b2c3d4",
    "details": {"domain": "example.amocrm.ru", "demand": "schedule"},
}


@operation(
    "list_events",
    scope=Scope.READ,
    query=EventsQuery,
    answer=EventsPage,
    example={"items": [EVENT], "next_cursor": "17"},
    problems=[Code.STORE_UNAVAILABLE],
)
async def events(request: web.Request) -> web.Response:
    """List what happened, to one connection or to all."""
    require(request, Scope.READ)
    query = read_query(request, EventsQuery)
    before = None if query.cursor is None else int(query.cursor)
    found = await request.app[STORE].events(**whose(query.connection), before=before, limit=query.limit + 1)
    items, last = cut(found, query.limit)
    page: EventsPage = {
        "items": [event_shape(event) for event in items],
        "next_cursor": None if last is None else str(last.id),
    }
    return web.json_response(page)


def whose(selector: str | None) -> dict[str, Any]:
    """Return whose events a selector means: what happened outlives its connection, so none is looked for."""
    if selector is None:
        return {}
    kind, _, name = selector.partition(":")
    if name and kind in {"account", "owner"}:
        return {"account_id" if kind == "account" else "owner": name}
    return {"connection_id": selector}


def event_shape(event: Recorded) -> EventShape:
    """Return an event as it is shown."""
    return {
        "id": event.id,
        "at": rfc3339(event.at),
        "connection_id": event.connection_id,
        "name": event.name,
        "process": event.process,
        "details": event.details,
    }
