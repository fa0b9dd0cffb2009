"""A rate limiter for requests to AMO. It grants slots at a fixed rate, users first.

`rate_limit` contains the rules. A caller must acquire a slot before it claims a row, so that the lease of the claim
does not expire in the queue. Much time may pass between the grant of a slot and the request, so the rate is enforced
again when the request is sent.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_at_most
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
"""Seconds to wait after a failed slot request before the next slot request."""
_SHARED_GOOD_FOR = 2
"""The validity of a slot from the shared rate limit, in intervals.

This is also the maximum number of requests that can exceed the rate.
"""
_LEAST_GOOD_FOR = 0.25
"""The minimum validity of a slot in seconds, because at a high rate the event loop's delay exceeds a few intervals."""
_KINDS = {
    priority: WaiterKind.PEOPLE if priority < Priority.TOKEN_CHECK else WaiterKind.BACKGROUND for priority in Priority
}
_AGAIN, _FIRST = 0, 1
"""The queue order: a caller that needs another slot precedes callers without a slot, because it may hold a claim."""
_ONE_IN = {Priority.TOKEN_CHECK: 4, Priority.HOOK_CHECK: 10}
"""The maximum rate of a priority in this process, as a divisor of the total rate."""


class _Share:
    """The limit for one priority: one waiter at a time, with a pause after each slot."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.free_at = -math.inf


class RateLimiter:
    """A queue of requests that wait for slots, ordered by priority."""

    def __init__(self, *, per_second: float, shared: SharedLimits, clock: Clock, observer: Observer) -> None:
        self._interval = 1.0 / per_second
        self._good_for = GOOD_FOR
        if not shared.is_local:
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
        """The times at which unused slots were granted, oldest first; a full queue drops only expired slots."""
        self._granted_at = -math.inf
        self._exit = asyncio.Lock()
        self._exit_free_at = -math.inf

    async def acquire(self, priority: Priority) -> None:
        """Wait for a slot; a cancelled call uses no slot, and does not count towards its priority's limit."""
        share = self._shares.get(priority)
        if share is None:
            await self._slot(priority)
            return
        async with share.turn:
            if (wait := share.free_at - self._clock.monotonic()) > 0:
                await self._clock.sleep(wait)
            await self._slot(priority)
            share.free_at = self._clock.monotonic() + _ONE_IN[priority] * self._interval

    async def wait_to_send(self, priority: Priority, *, limit: float) -> bool:
        """Wait at most `limit` seconds for permission to send a request; return whether permission was given.

        The sending task must call this method just before it writes the first byte. Requests are sent in the order of
        the calls, one interval apart, and each request uses a slot. If no valid slot is left, another one is acquired.
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
                if not await wait_at_most(taking, seconds=until - self._clock.monotonic(), clock=self._clock):
                    return False
            finally:
                taking.cancel()

    def _use_slot(self) -> bool:
        """Use the oldest valid slot, and return whether there was one."""
        oldest = self._clock.monotonic() - self._good_for
        while self._unused:
            if self._unused.popleft() >= oldest:
                return True
        return False

    def _grant(self) -> None:
        self._granted_at = self._clock.monotonic()
        self._unused.append(self._granted_at)

    async def _slot(self, priority: Priority, *, turn: int = _FIRST) -> None:
        if self._shared.is_local and not any(self._waiting.values()) and await self._acquire_without_queue(priority):
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting[turn, priority].append(granted)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch(), name="amo-rate-limiter")
        await granted

    async def _acquire_without_queue(self, priority: Priority) -> bool:
        """Request a slot without queueing, and return whether it was granted.

        Must be called only if no other request is waiting.
        """
        if self._clock.monotonic() < self._free_at:
            return False
        asked = await self._shared.request_slot(interval=self._interval, waiting=(_KINDS[priority],))
        if asked.kind is not None:
            self._grant()
        return asked.kind is not None

    async def pause(self, seconds: float) -> None:
        """Stop granting slots in all instances for `seconds`, because AMO requested a pause."""
        self._free_at = max(self._free_at, self._clock.monotonic() + seconds)
        # A failure is acceptable, because without the store an instance grants only one token check per second.
        with suppress(StoreUnavailable):
            await self._shared.pause(seconds)

    async def _dispatch(self) -> None:
        while waiting := self._waiting_kinds():
            wait = self._free_at - self._clock.monotonic()
            if wait <= 0:
                wait = await self._ask(waiting)
            if wait > 0:
                await self._clock.sleep(wait)

    async def _ask(self, waiting: Collection[WaiterKind]) -> float:
        """Request a slot and grant it to a waiter; return the seconds until the next slot request.

        Waiters of the kind for which the slot was granted come first, then other waiters.
        """
        try:
            asked = await self._shared.request_slot(interval=self._interval, waiting=waiting)
        except StoreUnavailable:
            return self._ask_without_store()
        except Exception as error:  # noqa: BLE001 -- a bug must not leave callers waiting forever
            self._log(error)
            return _ASK_AGAIN
        self._broken = False
        if asked.kind is not None and self._clock.monotonic() >= self._free_at:  # no pause began during the request
            self._grant_first(sorted(self._waiting, key=lambda name: (_KINDS[name[1]] is not asked.kind, name)))
        return asked.wait

    def _ask_without_store(self) -> float:
        """Grant one token check per second while the store is unreachable; return the seconds until the next one.

        A token check spends no token, and access tokens are handed out even without the store. All other requests
        require a claim, which cannot be made without the store.
        """
        wait = self._granted_at + _ASK_AGAIN - self._clock.monotonic()
        if wait > 0:
            return wait
        self._grant_first([(_FIRST, Priority.TOKEN_CHECK)])
        return _ASK_AGAIN

    def _grant_first(self, queues: Iterable[tuple[int, Priority]]) -> None:
        """Grant a slot to the first waiter of the first queue that has a waiter."""
        for queue in (self._waiting[name] for name in queues):
            while queue:
                granted = queue.popleft()
                if not granted.done():
                    self._grant()
                    granted.set_result(None)
                    return

    def _waiting_kinds(self) -> Collection[WaiterKind]:
        for queue in self._waiting.values():
            while queue and queue[0].done():
                del queue[0]  # the waiter was cancelled
        return {_KINDS[priority] for (_, priority), queue in self._waiting.items() if queue}

    def _log(self, error: Exception) -> None:
        if not self._broken:
            self._observer(Event(name="rate_limiter.bug", level=Level.ERROR, error=error))
        self._broken = True

    async def close(self) -> None:
        """Cancel the dispatcher; all waiting calls must have been cancelled before."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait({self._dispatcher})
