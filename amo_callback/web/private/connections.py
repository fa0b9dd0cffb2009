"""The routes for connections: list, show, disconnect, freeze and thaw. No response contains a token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from amo_callback.errors import Ambiguous, Frozen, NeedsReauth, NotFound
from amo_callback.identity import Scope
from amo_callback.model import ConnectionFilter, Reason, Status
from amo_callback.refresh.disconnection import disconnect
from amo_callback.tokens.lookup import OWNER
from amo_callback.web.parsing import Page, Text, paginate
from amo_callback.web.private.events import RecordedEvent
from amo_callback.web.private.rights import permitted, permitted_ids
from amo_callback.web.route import Route, Time, shape, shaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.model import Connection
    from amo_callback.web.route import Call

_LAST_EVENTS = 20
MAX_OWNERS = 10_000
"""The maximum number of owners on a page. The page is shortened accordingly, but has at least one connection."""


class ConnectionsQuery(Page):
    """The query of the list of connections."""

    cursor: Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None = None
    """must be the next_cursor of the previous page"""
    account_id: Text | None = None
    """must be the id of an AMO account (1 to 256 characters without control characters)"""
    owner: Text | None = None
    """must be the id of an app user (1 to 256 characters without control characters)"""
    status: Status | None = None
    """must be active, needs_reauth or disconnected"""
    domain: Text | None = None
    """must be the host of an account (1 to 256 characters without control characters)"""


@shape
class ShownConnection:
    """A connection of an AMO account and an AMO user, without its tokens."""

    id: str
    account_id: str
    user_id: str
    """The id of the AMO user."""
    owners: Sequence[str]
    """The app users who own the connection."""
    domain: str
    status: Status
    reason: Reason | None
    """The reason why the user has to connect again."""
    last_error: str | None
    access_expires_at: Time | None
    refresh_expires_at: Time | None
    refreshed_at: Time | None
    next_refresh_at: Time | None
    failures: int
    """The number of failed refreshes since the last successful one."""
    connected_at: Time
    frozen: bool
    """Whether the connection is frozen; a frozen connection is not refreshed until it is thawed."""


@shape
class ConnectionWithEvents(ShownConnection):
    """A connection and its latest events."""

    events: Sequence[RecordedEvent]


@shape
class ConnectionsPage:
    """A page of connections, ordered by id."""

    items: Sequence[ShownConnection]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last page."""


@shape
class FreezeState:
    """The freeze that applies to all connections."""

    frozen: bool
    since: Time | None
    why: str | None
    open_attempts: int
    """The number of refresh attempts in progress or without a known result."""


async def list_connections(call: Call[ConnectionsQuery, None]) -> ConnectionsPage:
    """List connections without their tokens, ordered by id."""
    query, store = call.query, call.services.store
    only = ConnectionFilter(account_id=query.account_id, owner=query.owner, status=query.status, domain=query.domain)
    all_frozen = await store.frozen() is not None
    ids = await permitted_ids(call)
    found = await store.page(after=query.cursor or "", limit=query.limit + 1, only=only, ids=ids)
    items, last = paginate(found, query.limit)
    owners = await store.owners_of([connection.id for connection in items])
    if (fitting := _fitting(items, owners)) < len(items):
        items, last = items[:fitting], items[fitting - 1]
    return ConnectionsPage(
        items=[shaped(ShownConnection, one, owners=owners[one.id], frozen=all_frozen or one.frozen) for one in items],
        next_cursor=None if last is None else last.id,
    )


def _fitting(items: Sequence[Connection], owners: Mapping[str, Sequence[str]]) -> int:
    """Return the number of connections that fit on a page with at most `MAX_OWNERS` owners; at least 1."""
    totals = accumulate(len(owners[connection.id]) for connection in items)
    return max(sum(total <= MAX_OWNERS for total in totals), 1)


async def show_connection(call: Call[None, None]) -> ConnectionWithEvents:
    """Return a connection without its tokens, and its latest events."""
    [connection, *_] = await call.services.lifecycle.lookup.find(await permitted(call, call.name))
    events = await call.services.store.events(connection_id=connection.id, limit=_LAST_EVENTS)
    recorded = [shaped(RecordedEvent, event) for event in events]
    return shaped(ConnectionWithEvents, await _shown(call, connection), events=recorded)


async def disconnect_connection(call: Call[None, None]) -> ShownConnection:
    """Disconnect a connection and erase its tokens; the integration remains installed in AMO."""
    connection = await call.services.lifecycle.lookup.find_one(call.name)
    if connection.status is Status.DISCONNECTED:  # AMO's hook ended the ownership, and only the name is left
        await call.services.store.forget_ended(call.name.removeprefix(OWNER))
        return await _shown(call, connection)
    return await _shown(
        call, await disconnect(connection.id, reason=f"requested by API key {call.caller}", store=call.services.store)
    )


async def freeze_connection(call: Call[None, None]) -> ShownConnection:
    """Freeze a connection; it is not refreshed until it is thawed."""
    return await _set_frozen(call, frozen=True)


async def thaw_connection(call: Call[None, None]) -> ShownConnection:
    """Thaw a connection; it is refreshed again unless all connections are frozen."""
    return await _set_frozen(call, frozen=False)


async def freeze_all(call: Call[None, None]) -> FreezeState:
    """Freeze all connections; `open_attempts` counts refresh attempts in progress or without a known result."""
    await call.services.lifecycle.freeze_switch.freeze_all(why=f"requested by API key {call.caller}")
    call.services.log.info("freeze.changed", key=call.caller, frozen=True)
    return await _freeze_state(call)


async def thaw_all(call: Call[None, None]) -> FreezeState:
    """Thaw all connections that are not frozen individually, and record the store's current location."""
    await call.services.lifecycle.freeze_switch.thaw_all()
    call.services.lifecycle.scheduler.wake()
    call.services.log.info("freeze.changed", key=call.caller, frozen=False)
    return await _freeze_state(call)


async def _set_frozen(call: Call[None, None], *, frozen: bool) -> ShownConnection:
    lifecycle = call.services.lifecycle
    connection = await lifecycle.lookup.find_one(call.name)
    await (lifecycle.freeze_switch.freeze(connection) if frozen else lifecycle.freeze_switch.thaw(connection))
    lifecycle.scheduler.wake()
    call.services.log.info("freeze.changed", key=call.caller, connection_id=connection.id, frozen=frozen)
    return await _shown(call, await lifecycle.lookup.find_one(connection.id))


async def _freeze_state(call: Call[None, None]) -> FreezeState:
    frozen = call.services.lifecycle.freeze_switch.frozen
    return FreezeState(
        frozen=frozen is not None,
        since=None if frozen is None else frozen.at,
        why=None if frozen is None else frozen.why,
        open_attempts=len(await call.services.store.attempts()),
    )


async def _shown(call: Call[None, None], connection: Connection) -> ShownConnection:
    owners = await call.services.store.owners_of([connection.id])
    frozen = connection.frozen or await call.services.store.frozen() is not None
    return shaped(ShownConnection, connection, owners=owners[connection.id], frozen=frozen)


ROUTES = (
    Route(
        "GET",
        "/connections",
        list_connections,
        Scope.READ,
        query=ConnectionsQuery,
        answer=ConnectionsPage,
        obeys_limits=True,
    ),
    Route(
        "GET",
        "/connections/{id}",
        show_connection,
        Scope.READ,
        answer=ConnectionWithEvents,
        errors=(NotFound, NeedsReauth),
        obeys_limits=True,
    ),
    Route(
        "DELETE",
        "/connections/{id}",
        disconnect_connection,
        Scope.ADMIN,
        answer=ShownConnection,
        errors=(NotFound, Ambiguous, Frozen),
    ),
    *(
        Route("POST", path, handler, Scope.ADMIN, answer=ShownConnection, errors=(NotFound, Ambiguous))
        for path, handler in (
            ("/connections/{id}/freeze", freeze_connection),
            ("/connections/{id}/thaw", thaw_connection),
        )
    ),
    Route("POST", "/freeze", freeze_all, Scope.ADMIN, answer=FreezeState),
    Route("POST", "/thaw", thaw_all, Scope.ADMIN, answer=FreezeState),
)
