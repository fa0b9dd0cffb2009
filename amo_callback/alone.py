"""What instances share, for a process that shares it with nobody: the same rules, in its memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.slots import Asked, Kind, Slots, ask, pause

if TYPE_CHECKING:
    from collections.abc import Collection

    from amo_callback.clock import Clock

_NAMES = 50_000
"""Names that are remembered at once; beyond, those heard of longest ago are forgotten."""


class Alone:
    """The port `Shared`, by this process's own clock; it is never away."""

    at_once = True

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._slots = Slots()
        self._taken: OrderedDict[str, deque[float]] = OrderedDict()

    async def ask_for_slot(self, *, interval: float, waiting: Collection[Kind]) -> Asked:
        """Ask for a slot at the rate limit, `interval` seconds after the last one."""
        asked = ask(self._slots, now=self._clock.monotonic(), interval=interval, waiting=waiting, alone=True)
        self._slots = asked.slots
        return asked

    async def pause(self, seconds: float) -> None:
        """Let nobody have a slot for a while."""
        self._slots = pause(self._slots, now=self._clock.monotonic(), seconds=seconds)

    async def take_place(self, name: str, *, places: int, window: float) -> float | None:
        """Take one of so many places for `window` seconds; return when that was, `None` where all are taken."""
        now = self._clock.monotonic()
        taken = self._taken.setdefault(name, deque())
        while taken and now - taken[0] >= window:
            taken.popleft()
        if len(taken) >= places:
            return None
        taken.append(now)
        self._taken.move_to_end(name)
        while len(self._taken) > _NAMES:
            self._taken.popitem(last=False)
        return now

    async def give_back(self, name: str, taken_at: float) -> None:
        """Give a place back, once."""
        with suppress(KeyError, ValueError):  # its window is over
            self._taken[name].remove(taken_at)
