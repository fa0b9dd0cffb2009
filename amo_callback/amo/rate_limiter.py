"""The rate limit towards AMO: so many requests a second, people before background.

AMO counts 7 a second for an integration, answers 429 above that, and bans who goes on. However many instances there
are, all of them ask for each slot by one state. A slot comes first, since a claim must not age in a queue. The
limit is enforced again where a request leaves, since much time may pass in between.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_within
from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event, Level
from amo_callback.rate_limit import GOOD_FOR, LATE, Priority, WaiterKind

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Collection, Iterable

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.rate_limit import SharedLimits

_ASK_AGAIN = 1.0
"""Seconds after which a slot is asked for again where the store was away."""
_SHARED_GOOD_FOR = 2
"""Intervals for which a slot of a shared state is good: so many more requests than slots may leave in a second."""
_LEAST_GOOD_FOR = 0.25
"""Seconds for which any slot is good: at a high rate, a few intervals are no more than the loop's own delay."""
_KINDS = {
    priority: WaiterKind.PEOPLE if priority < Priority.TOKEN_CHECK else WaiterKind.BACKGROUND for priority in Priority
}
_AGAIN, _FIRST = 0, 1
"""A request that needs another slot goes before those that wait for their first: it may hold a claim."""
_ONE_IN = {Priority.TOKEN_CHECK: 4, Priority.HOOK_CHECK: 10}
"""The most slots that a priority may take: one in so many, counted in this process."""


class _Share:
    """A limited share of the slots: one waiter at a time, and a pause after each slot."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.free_at = -math.inf


class RateLimiter:
    """A queue for slots, evenly spaced, by priority; between interactive and background see `rate_limit`."""

    def __init__(self, *, per_second: float, shared: SharedLimits, clock: Clock, observer: Observer) -> None:
        self._interval = 1.0 / per_second
        self._good_for = GOOD_FOR
        if not shared.at_once:
            self._good_for = min(max(_SHARED_GOOD_FOR * self._interval, _LEAST_GOOD_FOR), GOOD_FOR)
        self._shared = shared
        self._clock = clock
        self._observer = observer
        self._free_at = clock.monotonic()
        self._waiting: dict[tuple[int, Priority], deque[Future[None]]] = {
            (turn, priority): deque() for turn in (_AGAIN, _FIRST) for priority in Priority
        }
        self._shares = {priority: _Share() for priority in _ONE_IN}
        self._dispatcher: asyncio.Task[None] | None = None
        self._broken = False
        self._unused: deque[float] = deque(maxlen=math.ceil(GOOD_FOR * per_second) + 1)
        """When each slot was granted that no request has used yet; no more of them can be good."""
        self._granted_at = -math.inf
        self._exit = asyncio.Lock()
        self._exit_free_at = -math.inf

    async def slot(self, priority: Priority) -> None:
        """Wait for a slot; a cancelled waiter takes neither a slot nor a share."""
        share = self._shares.get(priority)
        if share is None:
            await self._slot(priority)
            return
        async with share.turn:
            if (wait := share.free_at - self._clock.monotonic()) > 0:
                await self._clock.sleep(wait)
            await self._slot(priority)
            share.free_at = self._clock.monotonic() + _ONE_IN[priority] * self._interval

    async def leave(self, priority: Priority, *, limit: float) -> bool:
        """Wait until a request may leave, at most `limit` seconds; return whether it may.

        Call this just before the first byte, in the task that sends. Requests leave in the order in which they come
        here, an interval apart, and each uses up a slot. A slot that is too old does not count: another is taken.
        """
        until = self._clock.monotonic() + limit
        while True:
            async with self._exit:
                while (wait := max(self._exit_free_at, self._free_at) - self._clock.monotonic()) > 0:
                    if self._clock.monotonic() + wait > until:
                        return False
                    await self._clock.sleep(wait)
                if self._use_slot():
                    late = self._clock.monotonic() - self._exit_free_at
                    begun = self._exit_free_at if late <= LATE * self._interval else self._clock.monotonic()
                    self._exit_free_at = begun + self._interval
                    return True
            taking = asyncio.ensure_future(self._slot(priority, turn=_AGAIN))
            try:
                if not await done_within(taking, seconds=until - self._clock.monotonic(), clock=self._clock):
                    return False
            finally:
                taking.cancel()

    def _use_slot(self) -> bool:
        """Use up the oldest slot that is still valid; return whether there is one."""
        oldest = self._clock.monotonic() - self._good_for
        while self._unused:
            if self._unused.popleft() >= oldest:
                return True
        return False

    def _grant(self) -> None:
        self._granted_at = self._clock.monotonic()
        self._unused.append(self._granted_at)

    async def _slot(self, priority: Priority, *, turn: int = _FIRST) -> None:
        if self._shared.at_once and not any(self._waiting.values()) and await self._has_one(priority):
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting[turn, priority].append(granted)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch(), name="amo-pace")
        await granted

    async def _has_one(self, priority: Priority) -> bool:
        """Take a slot without queueing, where nothing waits; return whether there is one."""
        if self._clock.monotonic() < self._free_at:
            return False
        asked = await self._shared.ask_for_slot(interval=self._interval, waiting=(_KINDS[priority],))
        if asked.kind is not None:
            self._grant()
        return asked.kind is not None

    async def pause(self, seconds: float) -> None:
        """Grant no slots for a while, in any instance: AMO has asked for that."""
        self._free_at = max(self._free_at, self._clock.monotonic() + seconds)
        with suppress(StoreUnavailable):  # then it holds here: the others get no slots while it is away
            await self._shared.pause(seconds)

    async def _dispatch(self) -> None:
        while waiting := self._who_waits():
            wait = self._free_at - self._clock.monotonic()
            if wait <= 0:
                wait = await self._ask(waiting)
            if wait > 0:
                await self._clock.sleep(wait)  # meanwhile somebody may have gone away, come, or paused us

    async def _ask(self, waiting: Collection[WaiterKind]) -> float:
        """Request a slot, and grant it to the first waiter of its kind; return the seconds until the next request."""
        try:
            asked = await self._shared.ask_for_slot(interval=self._interval, waiting=waiting)
        except StoreUnavailable:
            return self._ask_without_store()
        except Exception as error:  # noqa: BLE001 -- because a waiter must not wait for ever
            self._tell(error)
            return _ASK_AGAIN
        self._broken = False
        if asked.kind is not None and self._clock.monotonic() >= self._free_at:  # or we were paused meanwhile
            self._let_go(sorted(self._waiting, key=lambda name: (_KINDS[name[1]] is not asked.kind, name)))
        return asked.wait

    def _ask_without_store(self) -> float:
        """Grant one token check a second after the last slot; return the seconds until the next request.

        It spends nothing, and an access token is handed out meanwhile. Nothing else may go: nothing can be claimed.
        """
        wait = self._granted_at + _ASK_AGAIN - self._clock.monotonic()
        if wait > 0:
            return wait
        self._let_go([(_FIRST, Priority.TOKEN_CHECK)])
        return _ASK_AGAIN

    def _let_go(self, queues: Iterable[tuple[int, Priority]]) -> None:
        """Grant a slot to the first waiter of the first queue that has one."""
        for queue in (self._waiting[name] for name in queues):
            while queue:
                granted = queue.popleft()
                if not granted.done():
                    self._grant()
                    granted.set_result(None)
                    return

    def _who_waits(self) -> Collection[WaiterKind]:
        for queue in self._waiting.values():
            while queue and queue[0].done():
                del queue[0]  # was cancelled
        return {_KINDS[priority] for (_, priority), queue in self._waiting.items() if queue}

    def _tell(self, error: Exception) -> None:
        if not self._broken:
            self._observer(Event(name="pace.bug", level=Level.ERROR, error=error))
        self._broken = True

    async def close(self) -> None:
        """End the dispatcher; its waiters have been cancelled before."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait({self._dispatcher})
