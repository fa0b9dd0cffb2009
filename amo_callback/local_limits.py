"""What instances share, for a process that shares it with nobody: the same rules, in its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.rate_limit import RateState, SlotDecision, WaiterKind, ask, pause

if TYPE_CHECKING:
    from collections.abc import Collection

    from amo_callback.clock import Clock


class LocalLimits:
    """The port `SharedLimits`, by this process's own clock; it is never away."""

    at_once = True

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._slots = RateState()

    async def ask_for_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        """Ask for a slot at the rate limit, `interval` seconds after the last one."""
        asked = ask(self._slots, now=self._clock.monotonic(), interval=interval, waiting=waiting, alone=True)
        self._slots = asked.slots
        return asked

    async def pause(self, seconds: float) -> None:
        """Let nobody have a slot for a while."""
        self._slots = pause(self._slots, now=self._clock.monotonic(), seconds=seconds)
