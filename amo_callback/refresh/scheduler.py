"""The loop that keeps connections fresh: what is due, how many at once, beating."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import rest
from amo_callback.errors import AmoCallbackError, NotYet, StoreUnavailable
from amo_callback.events import Event, Level
from amo_callback.model import Connection, RefreshTrigger
from amo_callback.outage import Outage
from amo_callback.schedule import TURN, is_impossible

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from datetime import datetime

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.model import RefreshRules
    from amo_callback.refresh.address_block import AddressBlock
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.freeze import FreezeSwitch
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.refresh.rechecks import Rechecker
    from amo_callback.store import Store

_KEEP = 86400.0
"""Seconds for which an expired code is still told apart from one never seen."""
_TIDY_EVERY = 60.0
_LOOK_UPS = 2
"""How many look-ups go at once: refreshes come first."""


class RefreshScheduler:
    """Refresh what is due, for as long as the process lives; `watches` come first in each round."""

    def __init__(
        self,
        *,
        store: Store,
        coordinator: RefreshCoordinator,
        clock: Clock,
        observer: Observer,
        checks: Rechecker,
        breaker: Breaker,
        watches: Sequence[Callable[[], Awaitable[None]]],
        freeze_switch: FreezeSwitch,
        leases: Leases,
        pending_writes: PendingWrites,
        rules: RefreshRules,
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._checks = checks
        self._breaker = breaker
        self._watches = watches
        self._freeze_switch = freeze_switch
        self._leases = leases
        self._pending_writes = pending_writes
        self._clock = clock
        self._observer = observer
        self._concurrency = rules.concurrency
        self._poll_interval = rules.poll_interval
        self._rest = rules.retry_base
        # What an instance had that has died is free with its leases, not later.
        self._turn = min(TURN, timedelta(seconds=leases.length / 2))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._next: deque[str] = deque()
        self._more = False
        """Whether more may be due than the last query has returned: then the end of a refresh wakes the loop."""
        self._looking_up: dict[str, asyncio.Task[None]] = {}
        self._aside: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._store_works = True
        self._outage = Outage("refresher", clock=clock, observer=observer)
        self._cleanup_outage = Outage("cleanup", clock=clock, observer=observer)
        self._tidied_at = clock.monotonic() - _TIDY_EVERY
        self._beat_at = clock.monotonic()

    @property
    def beat_age(self) -> float:
        """Seconds since the loop last came round."""
        return self._clock.monotonic() - self._beat_at

    @property
    def failed_for(self) -> float:
        """Seconds for which every round has failed; 0 where the last one worked."""
        return self._outage.failed_for

    @property
    def _gate(self) -> AddressBlock | Breaker:
        """The gate that is closed; the breaker where neither is."""
        block = self._breaker.address_block
        return self._breaker if block.reason is None else block

    @property
    def stopped(self) -> bool:
        """Whether the loop was told to end."""
        return self._stopping

    def wake(self) -> None:
        """Start the next round now: more may be due."""
        self._wake.set()

    def expect(self, due_at: datetime | None) -> None:
        """Look again now where a connection comes due before the next look, which is a poll interval away at most."""
        if due_at is not None and (due_at - self._clock.now()).total_seconds() < self._poll_interval:
            self.wake()

    def stop(self) -> None:
        """Begin no refresh from now on, and end the loop."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Sweep until stopped; an iteration that fails is logged, and the loop goes on."""
        while not self._stopping:
            self._beat_at = self._clock.monotonic()
            self._wake.clear()
            try:
                pause = await self._sweep()
            except Exception as error:  # noqa: BLE001 -- because the loop must outlive any bug in one round
                self._outage.failed(error, details=False)  # the store has its own line
                pause = self._poll_interval
            else:
                self._outage.worked()
            self._tell_store()
            await rest(self._wake, seconds=pause, clock=self._clock)
        await asyncio.gather(*self._running.values(), *self._looking_up.values())

    async def _sweep(self) -> float:
        """Start what is due, as far as there are places; return how long nothing more can be."""
        self._forget_aside()
        await self._tidy()
        await self._pending_writes.settle()  # before anything new is spent
        for watch in self._watches:
            await watch()
        state = await self._store.shared_state()
        self._freeze_switch.adopt(state.frozen)
        await self._breaker.watch(state)
        self._next.clear()
        self._more = self._gate.reason is not None
        if self._gate.reason is not None:
            await self._start_probe()
        next_at = None
        if self._breaker.address_block.reason is None:
            next_at = await self._start_due()
        if len(self._running) >= self._concurrency:
            self._more = True
            return self._poll_interval  # the end of one wakes us
        if self._gate.reason is not None:
            return min(self._gate.probe_in or self._poll_interval, self._poll_interval)
        if next_at is None:
            return self._poll_interval
        return min(max((next_at - self._clock.now()).total_seconds(), 0.0), self._poll_interval)

    async def _start_due(self) -> datetime | None:
        """Start what is due, earliest due first, and leave what another process is at; return the next due time.

        As many more are found as go at once, and each takes the place of one that ends: a backlog is not looked at
        again for every one of it.
        """
        now = self._clock.now()
        while True:
            places = max(self._concurrency - len(self._running), 0) if self._gate.reason is None else 0
            limit = places + self._concurrency if places else 0
            rechecks = max(_LOOK_UPS - len(self._looking_up), 0)
            due = await self._store.due(
                now=now, limit=limit, rechecks=rechecks, apart_from=self._apart(), turn=self._turn
            )
            for connection in due.refreshes:
                if self._is_taken(connection):
                    self._put_aside(connection.id, self._poll_interval)
                else:
                    self._next.append(connection.id)
            self._start_next()
            for name in due.rechecks:
                if not self._stopping and name not in self._apart():  # it may have come while the store was read
                    self._start(name, self._look_up(name), among=self._looking_up)
            if self._stopping or len(due.refreshes) < max(limit, 1):
                return due.next_at

    def _start_next(self) -> None:
        """Start what the last look has found due, as far as there are places; it is read again before it is spent."""
        while self._next and len(self._running) < self._concurrency and not self._stopping:
            name = self._next.popleft()
            if name not in self._running:
                self._start(name, self._refresh(name, RefreshTrigger.SCHEDULE))

    def _is_taken(self, connection: Connection) -> bool:
        """Tell whether another attempt is under way, here or elsewhere."""
        return self._leases.left(connection) > 0

    async def _start_probe(self) -> None:
        """While nothing else may be refreshed, try one connection after the other."""
        gate = self._gate
        if self._running or gate.probe_in > 0:
            return
        turn = timedelta(seconds=self._breaker.probe_every)
        while probe := await self._store.probe(apart_from=(*self._apart(), *gate.probed), turn=turn):
            if self._stopping:
                return
            if not self._is_taken(probe):
                self._start(probe.id, self._refresh(probe.id, RefreshTrigger.PROBE))
                return
            self._put_aside(probe.id, self._poll_interval)
        gate.new_round()
        await self._breaker.address_block.end_without_candidates()

    def _apart(self) -> tuple[str, ...]:
        return (*self._running, *self._next, *self._looking_up, *self._aside)

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
        if self._stopping or self._gate.reason is not None:
            self._next.clear()
        self._start_next()
        more = not self._next and (self._more or self._gate.reason is not None)
        if more or tasks is self._looking_up:
            self.wake()

    async def _refresh(self, connection_id: str, demand: RefreshTrigger) -> None:
        await self._coordinator.refresh(connection_id, demand=demand, satisfied=self._is_done)

    async def _look_up(self, connection_id: str) -> None:
        try:
            await self._checks.check(connection_id)
        except AmoCallbackError:
            raise
        except Exception as error:
            self._observer(Event(name="check.bug", level=Level.ERROR, connection_id=connection_id, error=error))
            raise

    def _is_done(self, connection: Connection) -> bool:
        """Tell whether somebody else has refreshed what was due; a probe is never done."""
        return self._gate.reason is None and not self._is_due(connection)

    def _is_due(self, connection: Connection) -> bool:
        now = self._clock.now()
        is_over = connection.next_refresh_at is not None and connection.next_refresh_at <= now
        return is_over or is_impossible(connection, now=now)

    async def _guard(self, connection_id: str, work: Coroutine[object, object, object]) -> None:
        """Run work for one connection; what went wrong with it was told, and is no concern of the others."""
        try:
            await work
        except (StoreUnavailable, NotYet):
            self._put_aside(connection_id, self._poll_interval)  # nothing was written down: it still looks due
        except AmoCallbackError:
            pass  # written down, with when to try again, and told; or there is nothing left to do
        except Exception:  # noqa: BLE001 -- because a bug in one refresh is not the others' end; it was told
            self._put_aside(connection_id, self._rest)

    def _put_aside(self, connection_id: str, seconds: float) -> None:
        self._aside[connection_id] = self._clock.monotonic() + seconds

    def _tell_store(self) -> None:
        """Tell once that the store cannot be written, and once that it can again."""
        failing = self._store.last_write_error
        if (failing is None) is self._store_works:
            return
        self._store_works = failing is None
        if failing is None:
            self._observer(Event(name="store.recovered"))
        else:
            self._observer(Event(name="store.failing", level=Level.ERROR, fields={"store": failing}))

    def _forget_aside(self) -> None:
        now = self._clock.monotonic()
        self._aside = {name: until for name, until in self._aside.items() if until > now}

    async def _tidy(self) -> None:
        """Once a minute, take up what others have left in the rescue folder, and forget what has expired."""
        if self._clock.monotonic() - self._tidied_at >= _TIDY_EVERY:
            self._tidied_at = self._clock.monotonic()
            await self._pending_writes.restore()
            try:
                await self._store.prune(now=self._clock.now(), keep=_KEEP)
            except StoreUnavailable as error:  # no reason to refresh nothing
                self._cleanup_outage.failed(error, details=False)
            else:
                self._cleanup_outage.worked()
