"""Notices that wait or were given up: list and retry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from amo_callback.errors import NotFound
from amo_callback.identity import Scope
from amo_callback.web.parsing import Number, Page, paginate
from amo_callback.web.route import Route, Time, shape

if TYPE_CHECKING:
    from amo_callback.events import Notice
    from amo_callback.web.route import Call


class NoticesQuery(Page):
    """Part of the list."""

    cursor: Number | None = None
    """the next_cursor of the page before"""


@shape
class ShownNotice:
    """A notice that has not been delivered; a parked one has no next try."""

    id: str
    type: str
    at: Time
    connection_id: str
    status: Literal["waiting", "parked"]
    tries: int
    last_error: str | None
    next_try_at: Time | None
    parked_at: Time | None


@shape
class NoticesPage:
    """A part of the notices, oldest first."""

    items: Sequence[ShownNotice]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last one."""


@shape
class RetriedNotices:
    """The ids of the notices that are tried again."""

    retried: Sequence[str]


async def list_notices(call: Call[NoticesQuery, None]) -> NoticesPage:
    """List what has not been delivered, oldest first."""
    query = call.query
    found = await call.services.store.notices(after=int(query.cursor or "0"), limit=query.limit + 1)
    items, last = paginate(found, query.limit)
    return NoticesPage(
        items=[show_notice(notice) for notice in items], next_cursor=None if last is None else str(last.number)
    )


async def retry_notice(call: Call[None, None]) -> RetriedNotices:
    """Try a notice now, also one that was given up."""
    # Ids have letters and digits only; the store may not even accept another text.
    notice = call.request.match_info["notice"]
    found = await call.services.store.retry_notices(notice) if notice.isalnum() else []
    if not found:
        raise NotFound("There is no such notice.")
    return _retried(call, found)


async def retry_notices(call: Call[None, None]) -> RetriedNotices:
    """Try all that were given up."""
    return _retried(call, await call.services.store.retry_notices(None))


def _retried(call: Call[None, None], found: Sequence[str]) -> RetriedNotices:
    call.services.log.info("notices.retry_asked", key=call.caller, notices=len(found))
    return RetriedNotices(retried=found)


def show_notice(notice: Notice) -> ShownNotice:
    """Return a notice as the API shows it."""
    parked = notice.parked_at is not None
    return ShownNotice(
        id=notice.id,
        type=notice.type,
        at=notice.at,
        connection_id=notice.connection_id,
        status="parked" if parked else "waiting",
        tries=notice.tries,
        last_error=notice.last_error,
        next_try_at=None if parked else notice.next_try_at,
        parked_at=notice.parked_at,
    )


ROUTES = (
    Route("GET", "/notices", list_notices, Scope.READ, query=NoticesQuery, answer=NoticesPage),
    Route("POST", "/notices/retry", retry_notices, Scope.ADMIN, answer=RetriedNotices),
    Route("POST", "/notices/{notice}/retry", retry_notice, Scope.ADMIN, answer=RetriedNotices, errors=(NotFound,)),
)
