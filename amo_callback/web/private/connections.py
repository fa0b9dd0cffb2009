"""Connections: list, show, disconnect, freeze and thaw; never a token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from amo_callback.errors import Ambiguous, Frozen, NotFound
from amo_callback.identity import Scope
from amo_callback.model import ConnectionFilter, Reason, Status
from amo_callback.refresh.disconnection import disconnect
from amo_callback.web.parsing import Page, Text, paginate
from amo_callback.web.private.events import RecordedEvent
from amo_callback.web.route import Route, Time, shape, shaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.model import Connection
    from amo_callback.web.route import Call

_LAST_EVENTS = 20
MAX_OWNERS = 10_000
"""The owners of the connections of a page, apart from its first one; a page that would have more is shorter."""


class ConnectionsQuery(Page):
    """Filters of the list."""

    cursor: Annotated[str, Field(pattern="^[0-9a-f-]{36}$")] | None = None
    """the next_cursor of the page before"""
    account_id: Text | None = None
    """1 to 256 characters: the AMO account's id"""
    owner: Text | None = None
    """1 to 256 characters: the app's user"""
    status: Status | None = None
    """one of active, needs_reauth, disconnected"""
    domain: Text | None = None
    """1 to 256 characters: the account's host"""


@shape
class ShownConnection:
    """One AMO account, connected by one AMO user; never a token."""

    id: str
    account_id: str
    user_id: str
    """The AMO user's id."""
    owners: Sequence[str]
    """The app's users that own it."""
    domain: str
    status: Status
    reason: Reason | None
    """Why its user has to connect again."""
    last_error: str | None
    access_expires_at: Time | None
    refresh_expires_at: Time | None
    refreshed_at: Time | None
    next_refresh_at: Time | None
    failures: int
    """Refreshes that failed since the last one that succeeded."""
    connected_at: Time
    frozen: bool
    """Whether it is refreshed only after a thaw."""


@shape
class ConnectionWithEvents(ShownConnection):
    """A connection and its last events."""

    events: Sequence[RecordedEvent]


@shape
class ConnectionsPage:
    """A part of the connections, ordered by their ids."""

    items: Sequence[ShownConnection]
    next_cursor: str | None
    """The `cursor` of the next page; `null` on the last one."""


@shape
class FreezeState:
    """Whether refreshing is frozen."""

    frozen: bool
    since: Time | None
    why: str | None
    open_attempts: int
    """Refreshes that have not ended yet."""


async def list_connections(call: Call[ConnectionsQuery, None]) -> ConnectionsPage:
    """List connections, by their ids; never a token."""
    query, store = call.query, call.services.store
    only = ConnectionFilter(account_id=query.account_id, owner=query.owner, status=query.status, domain=query.domain)
    all_frozen = await store.frozen() is not None
    found = await store.page(after=query.cursor or "", limit=query.limit + 1, only=only)
    items, last = paginate(found, query.limit)
    owners = await store.owners_of([connection.id for connection in items])
    if (fitting := _fitting(items, owners)) < len(items):
        items, last = items[:fitting], items[fitting - 1]
    return ConnectionsPage(
        items=[shaped(ShownConnection, one, owners=owners[one.id], frozen=all_frozen or one.frozen) for one in items],
        next_cursor=None if last is None else last.id,
    )


def _fitting(items: Sequence[Connection], owners: Mapping[str, Sequence[str]]) -> int:
    """Return how many connections fit into a page, by how many owners they have."""
    totals = accumulate(len(owners[connection.id]) for connection in items)
    return max(sum(total <= MAX_OWNERS for total in totals), 1)


async def show_connection(call: Call[None, None]) -> ConnectionWithEvents:
    """Show one connection, with its last events; never a token."""
    [connection, *_] = await call.services.lifecycle.lookup.find(call.name)
    events = await call.services.store.events(connection_id=connection.id, limit=_LAST_EVENTS)
    owners = await call.services.store.owners_of([connection.id])
    recorded = [shaped(RecordedEvent, event) for event in events]
    return shaped(ConnectionWithEvents, connection, owners=owners[connection.id], events=recorded)


async def disconnect_connection(call: Call[None, None]) -> ShownConnection:
    """Disconnect one connection and erase its tokens; AMO's side remains until the integration is removed there."""
    connection = await call.services.lifecycle.lookup.find_one(call.name)
    return await _shown(
        call, await disconnect(connection.id, reason=f"asked by {call.caller}", store=call.services.store)
    )


async def freeze_connection(call: Call[None, None]) -> ShownConnection:
    """Stop refreshing one connection."""
    return await _set_frozen(call, frozen=True)


async def thaw_connection(call: Call[None, None]) -> ShownConnection:
    """Refresh one connection again."""
    return await _set_frozen(call, frozen=False)


async def freeze_all(call: Call[None, None]) -> FreezeState:
    """Stop refreshing; `open_attempts` is how many refreshes have not ended yet."""
    await call.services.lifecycle.freeze_switch.freeze_all(why=f"asked by {call.caller}")
    call.services.log.info("freeze.changed", key=call.caller, frozen=True)
    return await _freeze_state(call)


async def thaw_all(call: Call[None, None]) -> FreezeState:
    """Refresh again, on this machine from now on."""
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
    return shaped(ShownConnection, connection, owners=owners[connection.id])


ROUTES = (
    Route("GET", "/connections", list_connections, Scope.READ, query=ConnectionsQuery, answer=ConnectionsPage),
    Route("GET", "/connections/{id}", show_connection, Scope.READ, answer=ConnectionWithEvents, errors=(NotFound,)),
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
