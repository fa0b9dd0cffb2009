"""Coordination of refreshes: one at a time per connection, shared by concurrent callers.

If this process is already refreshing the connection, a caller joins that refresh. If another process is, the caller
waits until that attempt ends or its lease expires. Before its claim, a refresh waits for a place among the concurrent
refreshes and for a rate-limit slot, because the lease must not expire in a queue. A refresh token in doubt is
introspected before it is presented.

The wait may be long, so the decision whether to present the token is made twice, before and after the wait. If the
second decision is not to present the token, the refresh starts again with the current row. Nothing is awaited between
the second decision and the claim, and the claim succeeds only if the row is unchanged since it was read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.concurrency import SingleFlight, wait_or_stop
from amo_callback.errors import NotYet
from amo_callback.events import report_bug
from amo_callback.refresh.decision import Done, Introspect, Present, Refuse, Wait, doubt_key
from amo_callback.refresh.slots import acquire_slot

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from amo_callback.core import Core
    from amo_callback.model import Connection, RefreshTrigger
    from amo_callback.refresh.attempt import RefreshAttempts
    from amo_callback.refresh.gate import Gate
    from amo_callback.refresh.introspector import Introspector
    from amo_callback.refresh.pending_writes import PendingWrites


class RefreshCoordinator:
    """Refreshes connections, with at most one refresh per connection at a time."""

    def __init__(
        self,
        core: Core,
        *,
        gate: Gate,
        introspector: Introspector,
        attempts: RefreshAttempts,
        pending_writes: PendingWrites,
    ) -> None:
        self._core = core
        self._gate = gate
        self._introspector = introspector
        self._attempts = attempts
        self._pending_writes = pending_writes
        self._semaphore = asyncio.Semaphore(core.rules.concurrency)
        self._refreshes: SingleFlight[Connection] = SingleFlight("refresh", on_end=self._ended)

    @property
    def in_flight(self) -> int:
        """The number of running and waiting refreshes."""
        return len(self._refreshes)

    async def refresh(
        self,
        connection_id: str,
        *,
        trigger: RefreshTrigger,
        is_fresh_enough: Callable[[Connection], bool] | None = None,
        row: Connection | None = None,
    ) -> Connection:
        """Refresh a connection and return it as stored; concurrent callers share one refresh.

        If `is_fresh_enough` returns true for the stored connection, because another caller or process has refreshed it,
        the connection is returned unchanged. A caller that has just read the connection can pass it as `row`. The
        cancellation of a caller does not cancel the refresh. Raises `AmoCallbackError` if the refresh fails.
        """
        while True:
            task, started = self._refreshes.start(
                connection_id, lambda: self._refresh(connection_id, trigger, is_fresh_enough or _never, row)
            )
            try:
                connection = await asyncio.shield(task)
            except NotYet:
                if started:
                    raise
                continue  # the reason for the other caller's delay may not apply to this caller
            if started or is_fresh_enough is None or is_fresh_enough(connection):
                return connection

    async def drain(self) -> None:
        """Wait until every refresh has ended, and its new pair, if any, is in the store or in a rescue file."""
        await self._refreshes.drain()
        await self._pending_writes.drain()

    def _ended(self, connection_id: str, task: asyncio.Task[Connection]) -> None:
        self._gate.release_probe(connection_id)
        report_bug("refresh.bug", task, self._core.observer, connection_id=connection_id)

    async def _refresh(
        self,
        connection_id: str,
        trigger: RefreshTrigger,
        is_fresh_enough: Callable[[Connection], bool],
        row: Connection | None,
    ) -> Connection:
        introspected: Hashable = None
        row = row or await self._core.store.connection(connection_id)
        while True:
            decision = await self._gate.decide(row, trigger, is_fresh_enough=is_fresh_enough, introspected=introspected)
            if isinstance(decision, Refuse):
                raise decision.error
            if isinstance(decision, Done):
                return decision.row
            if isinstance(decision, Wait):
                await self._pause(decision.seconds)
            else:
                async with self._semaphore:
                    slot_granted_at = await self._prepare_attempt(decision, trigger)
                    if isinstance(decision, Introspect):
                        introspected = doubt_key(decision.row)
                    if isinstance(decision, Introspect) or decision.row.attempt is not None:
                        row = await self._core.store.connection(connection_id)
                    decision = await self._gate.decide(
                        row, trigger, is_fresh_enough=is_fresh_enough, introspected=introspected
                    )
                    if isinstance(decision, Present):
                        self._gate.note_probe(connection_id)
                        refreshed = await self._attempts.run(decision.row, trigger=trigger, slot_at=slot_granted_at)
                        if refreshed is not None:
                            return refreshed
            row = await self._core.store.connection(connection_id)

    async def _prepare_attempt(self, decision: Present | Introspect, trigger: RefreshTrigger) -> float:
        """Introspect the token if necessary, acquire a slot, and return the monotonic time at which it was granted."""
        row = decision.row
        if isinstance(decision, Introspect):
            await self._gate.reserve_probe(row.id, trigger)
            await self._introspector.before_refresh(row)
        slot_granted_at = await acquire_slot(self._core)
        if row.attempt is not None:
            await self._pending_writes.restore_for(row)
        await self._gate.reserve_probe(row.id, trigger)
        return slot_granted_at

    async def _pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until shutdown."""
        stop = self._core.stop
        await wait_or_stop(stop.wait(), stop=stop, grace=0, clock=self._core.clock, limit=seconds)


def _never(_connection: Connection) -> bool:
    return False
