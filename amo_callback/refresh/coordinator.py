"""When a pair is refreshed, and for whom: callers at the same moment make one refresh.

Whoever wants a fresh pair first finds out whether somebody else is at it: in this process, whose flight is
joined; or in another, whose lease is waited for. After each wait the connection is read again, since anything may
have happened: often the pair is fresh by then. A place among the concurrent refreshes and a slot at AMO's rate limit
come before the attempt, for a claim must not age in a queue. And a token that an attempt without an answer
may have spent is looked up first, which spends nothing.

So everything is asked twice: before the wait, which may be long, and after it. Between the last question and the claim
nothing is awaited, and the claim holds only for the very row that was read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_unless
from amo_callback.errors import (
    AmoCallbackError,
    ConfigurationError,
    Frozen,
    HostNotAllowed,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    StoreUnavailable,
)
from amo_callback.events import Event, Level
from amo_callback.model import Connection, Reason, RefreshTrigger, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.refresh.attempt import RefreshAttempts
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.introspector import Introspector
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.stored_hosts import StoredHosts
    from amo_callback.store import Store

_LOOK_AGAIN = 0.25
"""Seconds between two looks at a connection that another process is refreshing."""


class RefreshCoordinator:
    """Keep token pairs fresh, one refresh at a time for each connection."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        observer: Observer,
        introspector: Introspector,
        attempts: RefreshAttempts,
        breaker: Breaker,
        leases: Leases,
        pending_writes: PendingWrites,
        hosts: StoredHosts,
        concurrency: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._introspector = introspector
        self._attempts = attempts
        self._breaker = breaker
        self._leases = leases
        self._pending_writes = pending_writes
        self._hosts = hosts
        self._places = asyncio.Semaphore(concurrency)
        self._flights: dict[str, asyncio.Task[Connection]] = {}
        self._stopping = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """How many refreshes are under way, those too that wait for their turn."""
        return len(self._flights)

    async def refresh(
        self, connection_id: str, *, demand: RefreshTrigger, satisfied: Callable[[Connection], bool] | None = None
    ) -> Connection:
        """Refresh a connection's pair and return it as stored; callers at the same moment share one refresh.

        One that is `satisfied`, because somebody has refreshed it meanwhile, is returned as it is. Raises what kept the
        pair from being refreshed (`AmoCallbackError`); a caller who is cancelled cancels nothing else.
        """
        while True:
            flight = self._flights.get(connection_id)
            joined = flight is not None and not flight.done()
            if flight is None or not joined:
                flight = self._take_off(connection_id, demand, satisfied)
            try:
                connection = await asyncio.shield(flight)
            except NotYet:
                if not joined:
                    raise
                continue  # the other caller was to wait: this one need not be
            if not joined or satisfied is None or satisfied(connection):
                return connection

    def stop(self) -> None:
        """Spend nothing from now on; what has been claimed goes on to its end."""
        self._stopping.set()
        self._introspector.stop()
        self._attempts.stop()
        self._pending_writes.stop()

    async def drain(self) -> None:
        """Wait until what is in flight is stored, or in its rescue file."""
        while self._flights:
            await asyncio.wait(self._flights.values())
        await self._pending_writes.drain()

    def _take_off(
        self, connection_id: str, demand: RefreshTrigger, satisfied: Callable[[Connection], bool] | None
    ) -> asyncio.Task[Connection]:
        work = self._fly(connection_id, demand, satisfied or _never)
        flight = asyncio.create_task(work, name=f"refresh:{connection_id}")
        self._flights[connection_id] = flight
        flight.add_done_callback(lambda landed: self._land(connection_id, landed))
        return flight

    def _land(self, connection_id: str, flight: asyncio.Task[Connection]) -> None:
        if self._flights.get(connection_id) is flight:
            del self._flights[connection_id]
        self._breaker.address_block.leave(connection_id)
        error = None if flight.cancelled() else flight.exception()
        if error is not None and not isinstance(error, AmoCallbackError):
            # Told here: whoever asked may be gone.
            self._observer(Event(name="refresh.bug", level=Level.ERROR, connection_id=connection_id, error=error))

    # --- the steps -------------------------------------------------------------------------------

    async def _fly(
        self, connection_id: str, demand: RefreshTrigger, satisfied: Callable[[Connection], bool]
    ) -> Connection:
        looked_up: Hashable = None
        while True:
            connection = await self._read(connection_id, demand)
            if satisfied(connection):
                return connection
            self._may_refresh(connection, demand)  # whoever has no business at AMO takes no slot there
            if left := self._leases.left(connection):
                await self._pause(min(left, _LOOK_AGAIN))
                continue
            await self._hosts.check(connection)
            async with self._places:
                if self._introspector.is_needed(connection) and looked_up != _doubted(connection):
                    await self._breaker.address_block.enter(connection.id, demand=demand)
                    await self._introspector.before_refresh(connection)
                    looked_up = _doubted(connection)
                slot_at = await self._introspector.slot()
                if connection.attempt is not None:
                    await self._search(connection)
                await self._breaker.address_block.enter(connection.id, demand=demand)
                connection = await self._read(connection_id, demand)
                if satisfied(connection):
                    return connection
                self._may_refresh(connection, demand)
                if self._introspector.is_needed(connection) and looked_up != _doubted(connection):
                    continue  # meanwhile another attempt was made, or has got more time
                if self._leases.left(connection):
                    continue  # or the store was away, and its owner could not store what it brought
                self._breaker.enter(connection_id)
                refreshed = await self._attempts.make(connection, demand=demand, slot_at=slot_at)
                if refreshed is not None:
                    return refreshed

    async def _read(self, connection_id: str, demand: RefreshTrigger) -> Connection:
        """Return the connection as it is now; raises where nothing can be refreshed any more."""
        connection = await self._store.connection(connection_id)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        if connection.status is Status.NEEDS_REAUTH and demand is not RefreshTrigger.TRIAL:
            raise NeedsReauth(connection.reason)
        if not connection.has_refresh_token:
            raise NeedsReauth(Reason.MISSING)
        return connection

    def _may_refresh(self, connection: Connection, demand: RefreshTrigger) -> None:
        """Raise what speaks against refreshing now."""
        if self._stopping.is_set():
            raise ShuttingDown
        if connection.frozen:
            raise Frozen
        if self._pending_writes.blocks(connection):
            raise StoreUnavailable("the pair before this one is unsaved")
        self._breaker.check(connection.id, demand=demand)
        due, now = connection.next_refresh_at, self._clock.now()
        if demand is RefreshTrigger.PROBE or not connection.failures or due is None or due <= now:
            return
        if demand is RefreshTrigger.FORCED and connection.last_error == RequestNotSent.code:
            return  # nothing reached AMO: nothing is hammered
        if connection.last_error == HostNotAllowed.code:
            return  # nothing was sent, and the host is checked next
        raise NotYet((due - now).total_seconds(), cause_code=connection.last_error)

    async def _search(self, connection: Connection) -> None:
        """Look for what the process has left that died at this connection: the next pair may lie in a rescue file."""
        try:
            await self._pending_writes.restore()
        except ConfigurationError:
            raise StoreUnavailable(f"the rescue folder, which may hold the next pair of {connection.id}") from None

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end: whoever goes on is told then."""
        await done_unless(self._stopping.wait(), stop=asyncio.Event(), grace=0, clock=self._clock, limit=seconds)


def _never(_connection: Connection) -> bool:
    return False


def _doubted(connection: Connection) -> Hashable:
    """Name what is doubted, so that another doubt is not taken for the one that was looked up.

    The same answer may be suspended twice for one token: each is one failure more.
    """
    doubt = connection.attempt, connection.lease_until, connection.doubtful, connection.suspended_token
    return connection.pair_version, connection.failures, *doubt
