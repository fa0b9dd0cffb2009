"""`GET /events`: the history, newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from amo_callback.identity import Scope
from amo_callback.web.parsing import Number, Page, Text, paginate
from amo_callback.web.route import Route, Time, shape

if TYPE_CHECKING:
    from amo_callback.events import StoredEvent
    from amo_callback.web.route import Call


class EventsQuery(Page):
    """Filters of the list."""

    cursor: Number | None = None
    """the next_cursor of the page before"""
    connection: Text | None = None
    """1 to 256 characters: whose events, by a connection's id, `account:31920194` or `owner:42`"""


@shape
class RecordedEvent:
    """An entry of the history."""

    id: int
    at: Time
    connection_id: str | None
    name: str
    process: str
    """The process that wrote it."""
    details: Mapping[str, Any]


@shape
class EventsPage:
    """A part of the history, newest first."""

    items: Sequence[RecordedEvent]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last one."""


async def list_events(call: Call[EventsQuery, None]) -> EventsPage:
    """List what happened, to one connection or to all."""
    query = call.query
    before = None if query.cursor is None else int(query.cursor)
    found = await call.services.store.events(**filter_of(query.connection), before=before, limit=query.limit + 1)
    items, last = paginate(found, query.limit)
    return EventsPage(items=[show_event(event) for event in items], next_cursor=None if last is None else str(last.id))


def filter_of(selector: str | None) -> dict[str, Any]:
    """Return the store's filter for a name: events outlive their connection, so none is looked for."""
    if selector is None:
        return {}
    kind, _, name = selector.partition(":")
    if name and kind in {"account", "owner"}:
        return {"account_id" if kind == "account" else "owner": name}
    return {"connection_id": selector}


def show_event(event: StoredEvent) -> RecordedEvent:
    """Return an event as the API shows it."""
    return RecordedEvent(**{field.name: getattr(event, field.name) for field in fields(RecordedEvent)})


ROUTES = (Route("GET", "/events", list_events, Scope.READ, query=EventsQuery, answer=EventsPage),)
