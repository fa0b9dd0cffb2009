"""Disconnecting: a connection is forgotten on request, its tokens erased."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import Frozen, NotFound, StoreUnavailable
from amo_callback.events import connection_event
from amo_callback.model import Status

if TYPE_CHECKING:
    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.model import Connection
    from amo_callback.store import Store

_TRIES = 20
"""Changes of a row that are followed: a refresh makes two of them."""


class Disconnector:
    """Forget connections."""

    def __init__(self, *, store: Store, clock: Clock, observer: Observer) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer

    async def disconnect(self, connection: Connection, *, why: str) -> Connection:
        """Erase a connection's tokens, whatever else happens to it meanwhile, and return it as it is then.

        A pair that AMO is asked for at this moment is dropped when it comes. Raises `NotFound` where somebody else was
        faster, and `Frozen`: what is frozen may live elsewhere.
        """
        for _ in range(_TRIES):
            stored = await self._store.connection(connection.id)
            if stored is None or stored.status is Status.DISCONNECTED:
                raise NotFound
            if stored.frozen:
                raise Frozen
            gone = connection_event("connection.disconnected", stored, told={"reason": why})
            if await self._store.disconnect(stored, on_request=True, events=[gone]):
                self._observer(gone)
                return await self._now(connection)
        raise StoreUnavailable("the connection never stops changing")

    async def _now(self, connection: Connection) -> Connection:
        forgotten = await self._store.connection(connection.id)
        if forgotten is None:
            raise NotFound
        return forgotten
