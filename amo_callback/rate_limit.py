"""Slots at the rate limit towards AMO: evenly spaced, people first, and in turns while background waits, too.

AMO counts 7 requests a second for an integration, answers 429 above that, and bans who goes on. However many instances
there are, they ask by one state, so what is written here holds for all of them together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from amo_callback.clock import Clock


class Priority(IntEnum):
    """The order at AMO's rate limit: people first, the better known before strangers, and hook checks last."""

    EXPECTED = 0
    """A person whose grant began here, for a user that is known."""
    STARTED = 1
    """A person whose grant began here, with a plain link."""
    STRANGER = 2
    """Any other person with a code."""
    TOKEN_CHECK = 3
    """A question about an access token that a caller waits for: at most a quarter of the rate."""
    BACKGROUND = 4
    HOOK_CHECK = 5
    """A question about an account that AMO's hook named: at most a tenth of the rate, and only after refreshes."""


class WaiterKind(StrEnum):
    PEOPLE = "people"
    BACKGROUND = "background"


_NEVER = float("-inf")
_REMEMBERED = 2
"""Intervals for which an instance that has asked counts as waiting: within one it asks again."""
GOOD_FOR = 1.0
"""Seconds for which a slot may be used after it was granted: a request that comes later takes another one."""
LATE = 0.5
"""Intervals by which a slot may be asked for late and the next one be no later for it: to ask others takes time."""
_TICK = 0.01
"""Seconds by which a loop may be late, where there are no others to ask: else a high rate would be its timers'."""
LONGEST_PAUSE = 600.0
"""Seconds of a pause, at most: whatever seems to be longer was left behind by a clock that has been set back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateState:
    """When the next slot is, who had the last, and until when each kind is taken to wait; in seconds of one clock."""

    free_at: float = _NEVER
    last: WaiterKind = WaiterKind.BACKGROUND
    people_until: float = _NEVER
    background_until: float = _NEVER


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotDecision:
    """The result of a request for a slot: its `kind`, or nothing, and the seconds until the next request."""

    slots: RateState
    kind: WaiterKind | None = None
    wait: float = 0.0


def ask(
    slots: RateState, *, now: float, interval: float, waiting: Collection[WaiterKind], alone: bool = False
) -> SlotDecision:
    """Request a slot for one of the kinds `waiting` here; `alone`: no other instance has any.

    A person waits in front of a screen, so people go first. But anyone can send codes: while background waits, here or
    elsewhere, people get every other slot and no more, so that junk codes cannot starve refreshing.
    """
    until = now + _REMEMBERED * interval
    if alone:
        slots = RateState(free_at=slots.free_at, last=slots.last)  # who does not wait here has gone away
    slots = dataclasses.replace(
        slots,
        free_at=min(slots.free_at, now + max(LONGEST_PAUSE, interval)),
        people_until=until if WaiterKind.PEOPLE in waiting else min(slots.people_until, until),
        background_until=until if WaiterKind.BACKGROUND in waiting else min(slots.background_until, until),
    )
    if now < slots.free_at:
        return SlotDecision(slots=slots, wait=slots.free_at - now)
    turn = _turn(slots, now)
    if turn not in waiting:
        # It is others', who ask at this moment, or have gone away.
        gone = (slots.people_until if turn is WaiterKind.PEOPLE else slots.background_until) - now
        return SlotDecision(slots=slots, wait=min(interval * LATE, gone))
    if alone:
        begun = slots.free_at if now - slots.free_at <= _TICK else now
    else:
        begun = max(slots.free_at, now - interval * LATE)
    free_at = begun + interval
    return SlotDecision(
        slots=dataclasses.replace(slots, free_at=free_at, last=turn), kind=turn, wait=max(free_at - now, 0.0)
    )


def pause(slots: RateState, *, now: float, seconds: float) -> RateState:
    """Grant no slots for a while."""
    return dataclasses.replace(slots, free_at=max(slots.free_at, now + seconds))


def _turn(slots: RateState, now: float) -> WaiterKind:
    others_turn = slots.last is not WaiterKind.BACKGROUND and now < slots.background_until
    return WaiterKind.PEOPLE if now < slots.people_until and not others_turn else WaiterKind.BACKGROUND


class SharedLimits(Protocol):
    """One rate limit towards AMO, for all instances. Raises `StoreUnavailable`."""

    at_once: bool
    """Whether to ask takes no time, so that nothing can come between."""

    async def ask_for_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        """Ask for a slot at the rate limit, `interval` seconds after the last one."""

    async def pause(self, seconds: float) -> None:
        """Grant no slots for a while."""


class LocalLimits:
    """The limits of a single process, by its own clock."""

    at_once = True

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._slots = RateState()

    async def ask_for_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        asked = ask(self._slots, now=self._clock.monotonic(), interval=interval, waiting=waiting, alone=True)
        self._slots = asked.slots
        return asked

    async def pause(self, seconds: float) -> None:
        self._slots = pause(self._slots, now=self._clock.monotonic(), seconds=seconds)
