"""Notices that wait or are parked: shown, and tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.errors import NotFound
from amo_callback.identity import Scope
from amo_callback.web.keys import LOG, STORE
from amo_callback.web.operation import Time
from amo_callback.web.private.authorization import require
from amo_callback.web.private.operation import operation
from amo_callback.web.private.parameters import Paged, cut, read_query
from amo_callback.web.private.problems import Code

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


class NoticesQuery(Paged):
    """Which notices."""

    cursor: Annotated[str, Field(pattern="^[0-9]{1,18}$")] | None = None
    """the next_cursor of the page before"""


class NoticeShape(TypedDict):
    """A notice that has not been delivered; what is parked has no next try."""

    id: str
    type: str
    at: Time
    connection_id: str
    status: Literal["waiting", "parked"]
    tries: int
    last_error: str | None
    next_try_at: Time | None
    parked_at: Time | None


class NoticesPage(TypedDict):
    """A part of the notices, in the order in which they came."""

    items: list[NoticeShape]
    next_cursor: str | None


class RetriedShape(TypedDict):
    """The ids of the notices that are tried again."""

    retried: list[str]


_ID = "2f0c9f6a1c7b4c0f8d3e5a6b7c8d9e0f"
_EXAMPLE: NoticeShape = {
    "id": _ID,
    "type": "connection.needs_reauth",
    "at": "2026-11-24T12:00:00Z",
    "connection_id": "6ca5af66-2b5a-5a4f-9b53-5d9a6c0b6f5e",
    "status": "waiting",
    "tries": 2,
    "last_error": "status_500",
    "next_try_at": "2026-11-24T12:02:30Z",
    "parked_at": None,
}
NoticeId = Annotated[str, Field(min_length=1, description="A notice's id.", examples=[_ID])]


@operation(
    "list_notices",
    scope=Scope.READ,
    query=NoticesQuery,
    answer=NoticesPage,
    example={"items": [_EXAMPLE], "next_cursor": None},
    problems=[Code.STORE_UNAVAILABLE],
)
async def index(request: web.Request) -> web.Response:
    """List what has not been delivered, in the order in which it came."""
    require(request, Scope.READ)
    query = read_query(request, NoticesQuery)
    found = await request.app[STORE].notices(after=int(query.cursor or "0"), limit=query.limit + 1)
    items, last = cut(found, query.limit)
    page: NoticesPage = {
        "items": [notice_shape(notice) for notice in items],
        "next_cursor": None if last is None else str(last.number),
    }
    return web.json_response(page)


@operation(
    "retry_notice",
    scope=Scope.ADMIN,
    answer=RetriedShape,
    example={"retried": [_ID]},
    named=NoticeId,
    problems=[Code.NOT_FOUND, Code.STORE_UNAVAILABLE],
)
async def retry(request: web.Request) -> web.Response:
    """Try a notice now, also one that was given up."""
    return await _retry(request, request.match_info["id"])


@operation(
    "retry_notices",
    scope=Scope.ADMIN,
    answer=RetriedShape,
    example={"retried": [_ID]},
    problems=[Code.STORE_UNAVAILABLE],
)
async def retry_all(request: web.Request) -> web.Response:
    """Try all that were given up."""
    return await _retry(request, None)


async def _retry(request: web.Request, notice_id: str | None) -> web.Response:
    key = require(request, Scope.ADMIN)
    # Its own ids have letters and digits: some other text the store may not even take.
    known = notice_id is None or notice_id.isalnum()
    found = await request.app[STORE].retry_notices(notice_id) if known else []
    if notice_id is not None and not found:
        raise NotFound("There is no such notice.")
    request.app[LOG].info("notices.retry_asked", key=key.name, notices=len(found))
    return web.json_response({"retried": found})


def notice_shape(notice: Notice) -> NoticeShape:
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
