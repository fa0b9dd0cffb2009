"""Rate-limit slots for this process's requests to AMO; none are granted at shutdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_or_stop
from amo_callback.errors import NotYet, ShuttingDown
from amo_callback.rate_limit import GOOD_FOR, Priority

if TYPE_CHECKING:
    from amo_callback.core import Core


async def acquire_slot(core: Core, priority: Priority = Priority.BACKGROUND, *, limit: float | None = None) -> float:
    """Wait for a slot and return the monotonic time at which it was granted.

    Raises `ShuttingDown` at shutdown, and `NotYet` if no slot is granted within `limit` seconds.
    """
    slot = core.amo.acquire_slot(priority)
    granted = await wait_or_stop(slot, stop=core.stop, grace=0, clock=core.clock, limit=limit)
    if core.stop.is_set():
        raise ShuttingDown
    if not granted:
        raise NotYet(1.0)
    return core.clock.monotonic()


async def ensure_slot(core: Core, *, granted_at: float, not_after: float) -> bool:
    """Acquire another slot if the slot granted at `granted_at` is too old; return whether the request may be sent.

    Returns `False` if `not_after` has passed or the process is shutting down. Both parameters are monotonic times.
    """
    now = core.clock.monotonic()
    if now - granted_at > GOOD_FOR and now <= not_after:
        slot = core.amo.acquire_slot(Priority.BACKGROUND)
        if not await wait_or_stop(slot, stop=core.stop, grace=0, clock=core.clock, limit=not_after - now):
            return False
    return core.clock.monotonic() <= not_after and not core.stop.is_set()
