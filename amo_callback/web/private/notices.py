"""Notices that wait or are parked: shown, and tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.clock import rfc3339
from amo_callback.errors import NotFound
from amo_callback.identity import Scope
from amo_callback.web.keys import LOG, STORE
from amo_callback.web.private.authorization import require
from amo_callback.web.private.parameters import Parameters
from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.event import Notice


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.get("/notices", index, allow_head=False),
        web.post("/notices/retry", retry_all),
        web.post("/notices/{id}/retry", retry),
    ]


async def index(request: web.Request) -> web.Response:
    """List what has not been delivered, in the order in which it came."""
    require(request, Scope.READ)
    parameters = Parameters(request, known={"limit", "cursor"})
    cursor, limit = parameters.text("cursor") or "0", parameters.limit()
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise invalid("cursor", "the next_cursor of the page before")
    found = await request.app[STORE].notices(after=int(cursor), limit=limit + 1)
    return web.json_response(
        {
            "items": [notice_shape(notice) for notice in found[:limit]],
            "next_cursor": str(found[limit - 1].number) if len(found) > limit else None,
        }
    )


async def retry(request: web.Request) -> web.Response:
    """Try a notice now, also one that was given up."""
    return await _retry(request, request.match_info["id"])


async def retry_all(request: web.Request) -> web.Response:
    """Try all that were given up."""
    return await _retry(request, None)


async def _retry(request: web.Request, notice_id: str | None) -> web.Response:
    key = require(request, Scope.ADMIN)
    found = await request.app[STORE].retry_notices(notice_id)
    if notice_id is not None and not found:
        raise NotFound("There is no such notice.")
    request.app[LOG].info("notices.retry_asked", key=key.name, notices=len(found))
    return web.json_response({"retried": found})


def notice_shape(notice: Notice) -> dict[str, object]:
    """Return a notice as it is shown; what is parked has no next try."""
    parked = notice.parked_at is not None
    return {
        "id": notice.id,
        "type": notice.type,
        "at": rfc3339(notice.at),
        "connection_id": notice.connection_id,
        "status": "parked" if parked else "waiting",
        "tries": notice.tries,
        "last_error": notice.last_error,
        "next_try_at": None if parked else rfc3339(notice.next_try_at),
        "parked_at": rfc3339(notice.parked_at) if notice.parked_at is not None else None,
    }
