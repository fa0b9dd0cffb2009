"""The connections for which an API key is valid.

A limited key is refused on every route that does not obey limits (see `Route`). The other routes ask this module at
each request. For a limited key, a connection that does not exist is forbidden, too, so that the key does not reveal
which connections exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Forbidden, NeedsReauth, NotFound
from amo_callback.tokens.lookup import OWNER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from amo_callback.model import Connection, ConnectionLimits
    from amo_callback.web.route import Call


async def permitted(call: Call[Any, Any], selector: str, *, rejected: str | None = None) -> str:
    """Return a selector for the connection that `selector` names; raises `Forbidden` if the key is not valid for it.

    For a limited key, it is the connection's id, because a name may mean another connection a moment later. If an
    access token was `rejected`, the connection is the one to which the token belongs.
    """
    if call.limits is None:
        return selector
    lifecycle = call.services.lifecycle
    try:
        if rejected is None:
            connection = (await lifecycle.lookup.get(selector)).found.connection
        else:
            connection = await lifecycle.access_tokens.connection_of(selector, rejected)
    except NotFound:
        raise Forbidden from None
    except NeedsReauth:  # AMO's hook ended the user's ownership of the connection
        [ended, *_] = await lifecycle.lookup.find_all(selector)
        if await _is_within(call, call.limits, ended, selector):
            raise
        raise Forbidden from None
    if not await _is_within(call, call.limits, connection, selector):
        raise Forbidden
    return connection.id


async def permitted_ids(call: Call[Any, Any]) -> Sequence[str] | None:
    """Return the ids of the connections that a list may contain; `None` for a key without limits."""
    return None if call.limits is None else await call.services.store.ids_within(call.limits)


def check_owner(call: Call[Any, Any], owner: str) -> None:
    """Raise `Forbidden` if the key may not start an authorization request for the app user."""
    if call.limits is not None and owner not in call.limits.owners:
        raise Forbidden


async def _is_within(call: Call[Any, Any], limits: ConnectionLimits, connection: Connection, selector: str) -> bool:
    if connection.account_id in limits.accounts:
        return True
    if selector.startswith(OWNER) and selector.removeprefix(OWNER) in limits.owners:
        return True
    owners = await call.services.store.owners_of([connection.id]) if limits.owners else {}
    return not limits.owners.isdisjoint(owners.get(connection.id, ()))
