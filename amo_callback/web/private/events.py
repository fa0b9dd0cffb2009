"""`GET /events`: what happened, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.web.keys import STORE
from amo_callback.web.private.authorization import require
from amo_callback.web.private.parameters import Parameters
from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Recorded


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get("/events", events, allow_head=False)]


async def events(request: web.Request) -> web.Response:
    """List what happened, to one connection or to all."""
    require(request, Scope.READ)
    parameters = Parameters(request, known={"limit", "cursor", "connection"})
    cursor, selector, limit = parameters.text("cursor"), parameters.text("connection"), parameters.limit()
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise invalid("cursor", "the next_cursor of the page before")
    found = await request.app[STORE].events(
        **whose(selector), before=None if cursor is None else int(cursor), limit=limit + 1
    )
    return web.json_response(
        {
            "items": [event_shape(event) for event in found[:limit]],
            "next_cursor": str(found[limit - 1].id) if len(found) > limit else None,
        }
    )


def whose(selector: str | None) -> dict[str, Any]:
    """Return whose events a selector means: what happened outlives its connection, so none is looked for."""
    if selector is None:
        return {}
    kind, _, name = selector.partition(":")
    if name and kind in {"account", "owner"}:
        return {"account_id" if kind == "account" else "owner": name}
    return {"connection_id": selector}


def event_shape(event: Recorded) -> dict[str, object]:
    """Return an event as it is shown."""
    return {
        "id": event.id,
        "at": rfc3339(event.at),
        "connection_id": event.connection_id,
        "name": event.name,
        "process": event.process,
        "details": event.details,
    }
