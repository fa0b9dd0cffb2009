"""Disconnecting: the tokens of a connection are erased on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.events import connection_event
from amo_callback.model import Status

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.store import Store

_TRIES = 20
"""Changes of a row that are followed: a refresh makes two of them."""


async def disconnect(connection_id: str, *, reason: str, store: Store) -> Connection:
    """Erase a connection's tokens, whatever else changes it meanwhile, and return it as it is then.

    A pair that AMO is asked for at this moment is dropped when it comes. Raises `NotFound` where another request was
    faster, and `Frozen`: the tokens may be in use elsewhere.
    """
    for _ in range(_TRIES):
        stored = await _connected(connection_id, store)
        if stored.status is Status.DISCONNECTED:
            raise NotFound
        if stored.frozen:
            raise Frozen
        gone = connection_event("connection.disconnected", stored, told={"reason": reason})
        if await store.disconnect(stored, on_request=True, events=[gone]):
            return await _connected(connection_id, store)
    raise StoreUnavailable("the connection never stops changing")


async def _connected(connection_id: str, store: Store) -> Connection:
    connection = await store.connection(connection_id)
    if connection is None:
        raise NotFound
    return connection
