"""The rate limit towards AMO: so many requests a second, people before background.

AMO counts 7 a second for an integration, answers 429 above that, and bans who goes on. However many instances there
are, all of them ask for each slot by one state.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable
from amo_callback.event import Event, Level
from amo_callback.ports import Priority
from amo_callback.slots import Kind

if TYPE_CHECKING:
    from asyncio import Future

    from amo_callback.ports import Clock, Observer, Shared

_ASK_AGAIN = 1.0
"""Seconds after which a slot is asked for again where the store was away."""
_PEOPLE = tuple(priority for priority in Priority if priority < Priority.TOKEN_CHECK)
_BACKGROUND = tuple(priority for priority in Priority if priority not in _PEOPLE)
_ONE_IN = {Priority.TOKEN_CHECK: 4, Priority.HOOK_CHECK: 10}
"""The most slots that a priority may take: one in so many, counted in this process."""


class _Share:
    """A limited share of the slots: one waiter at a time, and a pause after each slot."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.free_at = -math.inf


class Pace:
    """Hand out slots, evenly spaced, to those first whom we expect; between people and background see `slots`."""

    def __init__(self, *, per_second: float, shared: Shared, clock: Clock, observer: Observer) -> None:
        self._interval = 1.0 / per_second
        self._shared = shared
        self._clock = clock
        self._observer = observer
        self._free_at = clock.monotonic()
        self._waiting: dict[Priority, deque[Future[None]]] = {priority: deque() for priority in Priority}
        self._shares = {priority: _Share() for priority in _ONE_IN}
        self._dispatcher: asyncio.Task[None] | None = None
        self._broken = False

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

    async def _slot(self, priority: Priority) -> None:
        if self._shared.at_once and not any(self._waiting.values()) and await self._has_one(priority):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[priority].append(turn)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch(), name="amo-pace")
        await turn

    async def _has_one(self, priority: Priority) -> bool:
        """Tell whether there is a slot at this moment, where nobody waits: it needs no queue."""
        if self._clock.monotonic() < self._free_at:
            return False
        kind = Kind.PEOPLE if priority in _PEOPLE else Kind.BACKGROUND
        asked = await self._shared.ask_for_slot(interval=self._interval, waiting=(kind,))
        return asked.kind is not None

    async def pause(self, seconds: float) -> None:
        """Let nobody go for a while, here or elsewhere: AMO said so."""
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

    async def _ask(self, waiting: tuple[Kind, ...]) -> float:
        """Ask for a slot, and let whose it is go; return for how many seconds nobody need ask again."""
        try:
            asked = await self._shared.ask_for_slot(interval=self._interval, waiting=waiting)
        except StoreUnavailable:
            # Nobody could claim, so nothing is spent by it: who goes asks whether a token lives that is handed out.
            self._let_go(Kind.BACKGROUND, only=True)
            return _ASK_AGAIN
        except Exception as error:  # noqa: BLE001 -- because whoever waits must not wait for ever
            self._tell(error)
            return _ASK_AGAIN
        self._broken = False
        if asked.kind is not None and self._clock.monotonic() >= self._free_at:  # or we were paused meanwhile
            self._let_go(asked.kind)
        return asked.wait

    def _let_go(self, kind: Kind, *, only: bool = False) -> None:
        """Let the first of a kind go; where all have gone away meanwhile, any other, unless it is for these `only`."""
        background = [self._waiting[priority] for priority in _BACKGROUND]
        people = [] if only else [self._waiting[priority] for priority in _PEOPLE]
        for queue in (*background, *people) if kind is Kind.BACKGROUND else (*people, *background):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return

    def _who_waits(self) -> tuple[Kind, ...]:
        for queue in self._waiting.values():
            while queue and queue[0].done():
                del queue[0]  # was cancelled
        kinds = (Kind.PEOPLE, _PEOPLE), (Kind.BACKGROUND, _BACKGROUND)
        return tuple(kind for kind, among in kinds if any(self._waiting[priority] for priority in among))

    def _tell(self, error: Exception) -> None:
        if not self._broken:
            self._observer(Event(name="pace.bug", level=Level.ERROR, error=error))
        self._broken = True

    async def close(self) -> None:
        """End the dispatcher; whoever still waits has been cancelled before."""
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.wait({self._dispatcher})
