"""Disconnecting a connection on request, which erases its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.events import connection_event
from amo_callback.model import Status

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store

_TRIES = 20
"""The maximum number of tries, each with a fresh read of the row; a refresh changes the row twice."""


async def disconnect(connection_id: str, *, reason: str, store: Store) -> Connection:
    """Erase a connection's tokens, with retries if its row changes, and return the disconnected connection.

    If a refresh is in progress, its new pair is discarded. Raises `NotFound` if the connection does not exist or is
    already disconnected, and `Frozen` if it is frozen, because a copy of the database may use its tokens.
    """
    for _ in range(_TRIES):
        stored = await _connected(connection_id, store)
        if stored.status is Status.DISCONNECTED:
            raise NotFound
        if stored.frozen:
            raise Frozen
        gone = connection_event("connection.disconnected", stored, fields={"reason": reason})
        if await store.disconnect(stored, on_request=True, events=[gone]):
            return await _connected(connection_id, store)
    raise StoreUnavailable("the connection's row keeps changing")


async def _connected(connection_id: str, store: Store) -> Connection:
    connection = await store.connection(connection_id)
    if connection is None:
        raise NotFound
    return connection
