"""The routes for the history (list) and for undelivered webhooks (list and retry)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from amo_callback.errors import NeedsReauth, NotFound
from amo_callback.identity import Scope
from amo_callback.web.parsing import Number, Page, Text, paginate
from amo_callback.web.private.rights import permitted, permitted_ids
from amo_callback.web.route import Route, Time, shape, shaped

if TYPE_CHECKING:
    from amo_callback.events import QueuedWebhook
    from amo_callback.web.route import Call


class NumberedPage(Page):
    """The query of a paginated list that is ordered by number."""

    cursor: Number | None = None
    """must be the next_cursor of the previous page"""


class EventsQuery(NumberedPage):
    """The query of the history."""

    connection: Text | None = None
    """must be a connection's id, `account:ID` or `owner:ID` (1 to 256 characters without control characters)"""


@shape
class RecordedEvent:
    """An event in the history."""

    id: int
    at: Time
    connection_id: str | None
    name: str
    process: str
    """The process that recorded the event."""
    details: Mapping[str, Any]


@shape
class EventsPage:
    """A page of the history, newest first."""

    items: Sequence[RecordedEvent]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last page."""


async def list_events(call: Call[EventsQuery, None]) -> EventsPage:
    """List the history, newest first; `connection` limits it to a connection, an account or an owner."""
    query, ids = call.query, await permitted_ids(call)
    before = None if query.cursor is None else int(query.cursor)
    found = await call.services.store.events(
        **filter_of(query.connection), ids=ids, before=before, limit=query.limit + 1
    )
    if query.connection is not None and not found:
        with suppress(NeedsReauth):  # the name means a connection that AMO's hook disconnected
            await call.services.lifecycle.lookup.find(await permitted(call, query.connection))
    items, last = paginate(found, query.limit)
    return EventsPage(
        items=[shaped(RecordedEvent, event) for event in items], next_cursor=None if last is None else str(last.id)
    )


def filter_of(selector: str | None) -> dict[str, Any]:
    """Return the store's filter for a selector.

    The connection is looked up only if it has no events, because its history remains after a disconnect.
    """
    if selector is None:
        return {}
    kind, _, name = selector.partition(":")
    if name and kind in {"account", "owner"}:
        return {"account_id" if kind == "account" else "owner": name}
    return {"connection_id": selector}


@shape
class ShownWebhook:
    """An undelivered webhook; after it is dead-lettered, `next_try_at` is `null`."""

    id: str
    type: str
    at: Time
    connection_id: str
    status: Literal["waiting", "dead_lettered"]
    tries: int
    last_error: str | None
    next_try_at: Time | None
    dead_lettered_at: Time | None


@shape
class WebhooksPage:
    """A page of webhooks, oldest first."""

    items: Sequence[ShownWebhook]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last page."""


@shape
class RetriedWebhooks:
    """The ids of the webhooks to be retried."""

    retried: Sequence[str]


async def list_webhooks(call: Call[NumberedPage, None]) -> WebhooksPage:
    """List undelivered webhooks, oldest first."""
    query = call.query
    ids = await permitted_ids(call)
    found = await call.services.store.webhooks(after=int(query.cursor or "0"), limit=query.limit + 1, ids=ids)
    items, last = paginate(found, query.limit)
    return WebhooksPage(
        items=[_shown(webhook) for webhook in items], next_cursor=None if last is None else str(last.number)
    )


async def retry_webhook(call: Call[None, None]) -> RetriedWebhooks:
    """Retry a webhook now, even if it is dead-lettered."""
    # Ids contain only letters and digits; the store may be unable to represent other text.
    webhook = call.request.match_info["webhook"]
    found = await call.services.store.retry_webhooks(webhook) if webhook.isalnum() else []
    if not found:
        raise NotFound("There is no such webhook.")
    return _retried(call, found)


async def retry_webhooks(call: Call[None, None]) -> RetriedWebhooks:
    """Retry all dead-lettered webhooks."""
    return _retried(call, await call.services.store.retry_webhooks(None))


def _retried(call: Call[None, None], found: Sequence[str]) -> RetriedWebhooks:
    call.services.log.info("webhooks.retry_requested", key=call.caller, webhooks=len(found))
    return RetriedWebhooks(retried=found)


def _shown(webhook: QueuedWebhook) -> ShownWebhook:
    if webhook.dead_lettered_at is not None:
        return shaped(ShownWebhook, webhook, status="dead_lettered", next_try_at=None)
    return shaped(ShownWebhook, webhook, status="waiting")


ROUTES = (
    Route(
        "GET",
        "/events",
        list_events,
        Scope.READ,
        query=EventsQuery,
        answer=EventsPage,
        errors=(NotFound,),
        obeys_limits=True,
    ),
    Route("GET", "/webhooks", list_webhooks, Scope.READ, query=NumberedPage, answer=WebhooksPage, obeys_limits=True),
    Route("POST", "/webhooks/retry", retry_webhooks, Scope.ADMIN, answer=RetriedWebhooks),
    Route("POST", "/webhooks/{webhook}/retry", retry_webhook, Scope.ADMIN, answer=RetriedWebhooks, errors=(NotFound,)),
)
