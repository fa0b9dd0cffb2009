"""The rate limit towards AMO: so many requests a second, people before background.

AMO counts 7 a second for an integration, answers 429 above that, and bans who goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from amo_callback.ports import Clock, Priority

if TYPE_CHECKING:
    from asyncio import Future


class Pace:
    """Hand out slots, evenly spaced.

    A person waits in front of a screen, so people go first, those first whom we expect. But anybody can send codes:
    under contention people get every other slot and no more, so that junk codes cannot starve refreshing.
    """

    def __init__(self, *, per_second: float, clock: Clock) -> None:
        self._interval = 1.0 / per_second
        self._clock = clock
        self._free_at = clock.monotonic()
        self._waiting: dict[Priority, deque[Future[None]]] = {priority: deque() for priority in Priority}
        self._last = Priority.BACKGROUND
        self._dispatcher: asyncio.Task[None] | None = None

    async def slot(self, priority: Priority) -> None:
        """Wait for a slot; a cancelled waiter takes none."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting[priority].append(turn)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch(), name="amo-pace")
        await turn

    def pause(self, seconds: float) -> None:
        """Let nobody go for a while: AMO said so."""
        self._free_at = max(self._free_at, self._clock.monotonic() + seconds)

    async def _dispatch(self) -> None:
        while self._somebody_waits():
            wait = self._free_at - self._clock.monotonic()
            if wait > 0:
                await self._clock.sleep(wait)
                continue  # meanwhile somebody may have gone away, come, or paused us
            self._last = self._next()
            self._free_at = self._clock.monotonic() + self._interval
            turn = self._waiting[self._last].popleft()
            turn.set_result(None)

    def _next(self) -> Priority:
        """Return whose turn it is; somebody waits."""
        first = next(priority for priority in Priority if self._waiting[priority])
        others_turn = self._last is not Priority.BACKGROUND and self._waiting[Priority.BACKGROUND]
        return Priority.BACKGROUND if others_turn else first

    def _somebody_waits(self) -> bool:
        for queue in self._waiting.values():
            while queue and queue[0].done():
                del queue[0]  # was cancelled
        return any(self._waiting.values())

    async def close(self) -> None:
        """End the dispatcher; whoever still waits has been cancelled before."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait({self._dispatcher})
