"""Rate-limit slots for requests to AMO.

Slots are evenly spaced. Users come first, but waiting refreshes get every other slot. AMO allows an integration 7
requests per second, responds with 429 to further ones, and bans clients that continue. All instances share one
`RateState`, so the limit applies to all of them together.
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
    """The order of requests: users first (known users before anonymous ones), hook checks last."""

    KNOWN_USER = 0
    """A code whose authorization request this service started for a known user."""
    OUR_LINK = 1
    """A code whose authorization request this service started from a plain link."""
    ANONYMOUS = 2
    """Any other code."""
    TOKEN_CHECK = 3
    """Introspection of an access token for a waiting caller: at most a quarter of the rate."""
    BACKGROUND = 4
    HOOK_CHECK = 5
    """Introspection because of AMO's hook: at most a tenth of the rate, and only after refreshes."""


class WaiterKind(StrEnum):
    PEOPLE = "people"
    BACKGROUND = "background"


_NEVER = float("-inf")
_REMEMBERED = 2
"""The number of intervals after its last slot request during which an instance counts as waiting."""
GOOD_FOR = 1.0
"""Seconds within which a granted slot must be used; afterwards, another slot must be acquired."""
LATE = 0.5
"""The number of intervals by which a slot request can be late without delaying the next slot; a request takes time."""
_TICK = 0.01
"""Seconds by which the only instance's request can be late without delaying the next slot; only timers make it late."""
LONGEST_PAUSE = 600.0
"""The longest pause in seconds; if a stored pause is longer, the clock has been moved back since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateState:
    """The time of the next free slot, the kind of waiter that had the last slot, and the kinds that are waiting.

    Each kind counts as waiting until the time in its field.
    """

    free_at: float = _NEVER
    last: WaiterKind = WaiterKind.BACKGROUND
    people_until: float = _NEVER
    background_until: float = _NEVER


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotDecision:
    """The result of a slot request.

    `kind` is the kind of waiter that gets a slot; `None` if no slot is granted. `wait` is the number of seconds until
    the next request.
    """

    slots: RateState
    kind: WaiterKind | None = None
    wait: float = 0.0


def request_slot(
    slots: RateState, *, now: float, interval: float, waiting: Collection[WaiterKind], alone: bool = False
) -> SlotDecision:
    """Request a slot for one of the kinds of waiters in this instance; `alone` means that there is no other instance.

    A user waits in front of a screen, so users come first. But anyone can send codes. While refreshes wait, in this or
    another instance, users therefore get only every other slot, so that invalid codes cannot starve refreshes.
    """
    until = now + _REMEMBERED * interval
    if alone:
        slots = RateState(free_at=slots.free_at, last=slots.last)  # no other instance can be waiting
    slots = dataclasses.replace(
        slots,
        free_at=min(slots.free_at, now + max(LONGEST_PAUSE, interval)),
        people_until=until if WaiterKind.PEOPLE in waiting else min(slots.people_until, until),
        background_until=until if WaiterKind.BACKGROUND in waiting else min(slots.background_until, until),
    )
    if now < slots.free_at:
        return SlotDecision(slots=slots, wait=slots.free_at - now)
    turn = _next_kind(slots, now)
    if turn not in waiting:
        # The slot is for another instance, which will request it soon or has stopped waiting.
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
    """Return the rate state in which no slot is granted for `seconds`."""
    return dataclasses.replace(slots, free_at=max(slots.free_at, now + seconds))


def _next_kind(slots: RateState, now: float) -> WaiterKind:
    others_turn = slots.last is not WaiterKind.BACKGROUND and now < slots.background_until
    return WaiterKind.PEOPLE if now < slots.people_until and not others_turn else WaiterKind.BACKGROUND


class SharedLimits(Protocol):
    """The rate limit for requests to AMO, shared by all instances; its methods raise `StoreUnavailable`."""

    is_local: bool
    """Whether a request for a slot completes without yielding to other tasks."""

    async def request_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        """Request a slot that is at least `interval` seconds after the last slot."""

    async def pause(self, seconds: float) -> None:
        """Stop granting slots for `seconds`."""


class LocalLimits:
    """The rate limit of a single process, by its own clock."""

    is_local = True

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._slots = RateState()

    async def request_slot(self, *, interval: float, waiting: Collection[WaiterKind]) -> SlotDecision:
        asked = request_slot(self._slots, now=self._clock.monotonic(), interval=interval, waiting=waiting, alone=True)
        self._slots = asked.slots
        return asked

    async def pause(self, seconds: float) -> None:
        self._slots = pause(self._slots, now=self._clock.monotonic(), seconds=seconds)
