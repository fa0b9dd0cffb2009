"""The refresh scheduler: the background loop that starts due refreshes and rechecks."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_or_stop
from amo_callback.errors import AmoCallbackError, NotYet, StoreUnavailable
from amo_callback.events import Event, Level, Outage
from amo_callback.model import Connection, RefreshTrigger
from amo_callback.schedule import TURN, is_impossible

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from datetime import datetime

    from amo_callback.core import Core
    from amo_callback.refresh.address_block import AddressBlock
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.gate import Gate
    from amo_callback.refresh.rechecks import Rechecker

_AHEAD = 8
"""For every `_AHEAD` refreshes that may run concurrently, one more is started, which waits until another has ended."""
_RECHECKS = 2
"""The maximum number of concurrent rechecks; refreshes come first."""


class RefreshScheduler:
    """Refreshes due connections until shutdown."""

    def __init__(
        self,
        core: Core,
        *,
        gate: Gate,
        coordinator: RefreshCoordinator,
        rechecker: Rechecker,
        before_round: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._core = core
        self._gate = gate
        self._coordinator = coordinator
        self._rechecker = rechecker
        self._before_round = before_round
        """The functions to call, in order, at the start of each round."""
        self._concurrency = core.rules.concurrency + core.rules.concurrency // _AHEAD
        self._poll_interval = core.rules.poll_interval
        # Shorter than a lease, so that the connections of a failed instance are reassigned before its leases expire.
        self._turn = min(TURN, timedelta(seconds=core.rules.lease / 2))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._next: deque[Connection] = deque()
        self._more = False
        """Whether connections besides those of the last query may be due; if so, each ended refresh wakes the loop."""
        self._rechecking: dict[str, asyncio.Task[None]] = {}
        self._backed_off: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._store_works = True
        self._outage = Outage("refresher", clock=core.clock, observer=core.observer)
        self._round_began_at = core.clock.monotonic()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the current round began."""
        return self._core.clock.monotonic() - self._round_began_at

    @property
    def failed_for(self) -> float:
        """Seconds for which every round has failed; 0 if the last round succeeded."""
        return self._outage.failed_for

    def wake(self) -> None:
        """Start the next round immediately, or as soon as the current round has ended."""
        self._wake.set()

    def wake_if_due_soon(self, due_at: datetime | None) -> None:
        """Wake the loop if a connection is due before the next round."""
        if due_at is not None and (due_at - self._core.clock.now()).total_seconds() < self._poll_interval:
            self.wake()

    async def run(self) -> None:
        """Run rounds until shutdown; a round that fails is logged, and the loop continues."""
        while not self._core.stop.is_set():
            self._round_began_at = self._core.clock.monotonic()
            self._wake.clear()
            try:
                pause = await self._sweep()
            except Exception as error:  # noqa: BLE001 -- the loop must survive any bug in one round
                self._outage.failed(error, details=False)  # the store logs its own failures
                pause = self._poll_interval
            else:
                self._outage.worked()
            self._log_store_state()
            await wait_or_stop(self._wake.wait(), stop=self._core.stop, grace=0, clock=self._core.clock, limit=pause)
        await asyncio.gather(*self._running.values(), *self._rechecking.values())

    async def _sweep(self) -> float:
        """Start due refreshes and rechecks in the free places, and return the seconds until the next round."""
        self._end_back_offs()
        for step in self._before_round:
            await step()
        self._next.clear()
        pause = self._gate.paused_by
        self._more = pause is not None
        if pause is not None:
            await self._start_probe(pause)
        next_at = None if self._gate.is_address_blocked else await self._start_due()
        if len(self._running) >= self._concurrency:
            self._more = True
            return self._poll_interval  # the end of a refresh wakes the loop
        if (pause := self._gate.paused_by) is not None:
            return min(pause.probe_in or self._poll_interval, self._poll_interval)
        if next_at is None:
            return self._poll_interval
        return min(max((next_at - self._core.clock.now()).total_seconds(), 0.0), self._poll_interval)

    async def _start_due(self) -> datetime | None:
        """Start due refreshes and rechecks, and return the next due time.

        Connections with an attempt in progress are skipped. The query returns more rows than there are free places. The
        additional refreshes start as running ones end, so that a backlog does not cause one query per refresh.
        """
        now = self._core.clock.now()
        while True:
            places = max(self._concurrency - len(self._running), 0) if self._gate.paused_by is None else 0
            limit = places + self._concurrency if places else 0
            # If no place is free, the query returns no refreshes, and a refresh that ends meanwhile must wake the loop.
            self._more = not limit
            rechecks = max(_RECHECKS - len(self._rechecking), 0)
            due = await self._core.store.due(
                now=now, limit=limit, rechecks=rechecks, exclude=self._excluded(), turn=self._turn
            )
            for connection in due.refreshes:
                if self._gate.lease_left(connection):  # an attempt is in progress, here or in another process
                    self._back_off(connection.id, self._poll_interval)
                else:
                    self._next.append(connection)
            self._start_next()
            for name in due.rechecks:
                # The connection's refresh may have been started since the query.
                if not self._core.stop.is_set() and name not in self._excluded():
                    self._start(name, self._recheck(name), among=self._rechecking)
            if self._core.stop.is_set() or len(due.refreshes) < max(limit, 1):
                return due.next_at

    def _start_next(self) -> None:
        """Start refreshes from the last query while there are free places."""
        while self._next and len(self._running) < self._concurrency and not self._core.stop.is_set():
            connection = self._next.popleft()
            if connection.id not in self._running:
                self._start(connection.id, self._refresh(connection, RefreshTrigger.SCHEDULE))

    async def _start_probe(self, pause: AddressBlock | Breaker) -> None:
        """If no refresh is running and a probe is due, start the refresh of one connection as the probe."""
        if self._running or pause.probe_in > 0:
            return
        turn = timedelta(seconds=self._gate.probe_every)
        while probe := await self._core.store.probe(exclude=(*self._excluded(), *pause.probed), turn=turn):
            if self._core.stop.is_set():
                return
            if not self._gate.lease_left(probe):
                self._start(probe.id, self._refresh(probe, RefreshTrigger.PROBE))
                return
            self._back_off(probe.id, self._poll_interval)
        await self._gate.end_round(pause)

    def _excluded(self) -> tuple[str, ...]:
        names = (connection.id for connection in self._next)
        return (*self._running, *names, *self._rechecking, *self._backed_off)

    def _start(
        self,
        connection_id: str,
        work: Coroutine[object, object, object],
        *,
        among: dict[str, asyncio.Task[None]] | None = None,
    ) -> None:
        tasks = self._running if among is None else among
        task = asyncio.create_task(self._guard(connection_id, work), name=f"due:{connection_id}")
        tasks[connection_id] = task
        task.add_done_callback(lambda _: self._ended(connection_id, tasks))

    def _ended(self, connection_id: str, tasks: dict[str, asyncio.Task[None]]) -> None:
        tasks.pop(connection_id, None)
        if self._core.stop.is_set() or self._gate.paused_by is not None:
            self._next.clear()
        self._start_next()
        more = not self._next and (self._more or self._gate.paused_by is not None)
        if more or tasks is self._rechecking:
            self.wake()

    async def _refresh(self, connection: Connection, trigger: RefreshTrigger) -> None:
        await self._coordinator.refresh(connection.id, trigger=trigger, is_fresh_enough=self._is_done, row=connection)

    async def _recheck(self, connection_id: str) -> None:
        try:
            await self._rechecker.check(connection_id)
        except AmoCallbackError:
            raise
        except Exception as error:
            self._core.observer(Event(name="check.bug", level=Level.ERROR, connection_id=connection_id, error=error))
            raise

    def _is_done(self, connection: Connection) -> bool:
        """Return whether a connection is no longer due; always false while only probes are allowed."""
        return self._gate.paused_by is None and not self._is_due(connection)

    def _is_due(self, connection: Connection) -> bool:
        now = self._core.clock.now()
        is_over = connection.next_refresh_at is not None and connection.next_refresh_at <= now
        return is_over or is_impossible(connection, now=now)

    async def _guard(self, connection_id: str, work: Coroutine[object, object, object]) -> None:
        """Run the work for one connection; errors are logged elsewhere and must not affect other connections."""
        try:
            await work
        except (StoreUnavailable, NotYet):
            self._back_off(connection_id, self._poll_interval)  # the row is unchanged and therefore still due
        except AmoCallbackError:
            pass  # the time of the next attempt is stored, or no attempt is necessary
        except Exception:  # noqa: BLE001 -- a bug in one refresh must not stop the others; it is logged already
            self._back_off(connection_id, self._core.rules.retry_base)

    def _back_off(self, connection_id: str, seconds: float) -> None:
        self._backed_off[connection_id] = self._core.clock.monotonic() + seconds

    def _log_store_state(self) -> None:
        """Log once when writes to the store begin to fail, and once when they succeed again."""
        failing = self._core.store.last_write_error
        if (failing is None) is self._store_works:
            return
        self._store_works = failing is None
        if failing is None:
            self._core.observer(Event(name="store.recovered"))
        else:
            self._core.observer(Event(name="store.failing", level=Level.ERROR, fields={"store": failing}))

    def _end_back_offs(self) -> None:
        now = self._core.clock.monotonic()
        self._backed_off = {name: until for name, until in self._backed_off.items() if until > now}
