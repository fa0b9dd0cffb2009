"""Disconnecting: erasing the tokens of a connection on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.events import connection_event
from amo_callback.model import Status

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store

_TRIES = 20
"""How often a changed row is read again; a refresh changes it twice."""


async def disconnect(connection_id: str, *, reason: str, store: Store) -> Connection:
    """Erase a connection's tokens, even if its row changes meanwhile, and return the erased connection.

    A pair that a refresh in progress obtains is discarded. Raises `NotFound` if the connection is already disconnected,
    and `Frozen` because a copy of the database may use the tokens.
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
    raise StoreUnavailable("the row changes repeatedly")


async def _connected(connection_id: str, store: Store) -> Connection:
    connection = await store.connection(connection_id)
    if connection is None:
        raise NotFound
    return connection
