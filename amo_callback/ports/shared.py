"""What all instances of the service share beside the store's records, as a protocol.

None of it must outlive a crash: it only keeps instances within the limits that hold for all of them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from amo_callback.slots import Asked, Kind


class Shared(Protocol):
    """One rate limit towards AMO, and one count of those who have not proved themselves. Raises `StoreUnavailable`."""

    at_once: bool
    """Whether to ask takes no time, so that nothing can come between."""

    async def ask_for_slot(self, *, interval: float, waiting: Collection[Kind]) -> Asked:
        """Ask for a slot at the rate limit, `interval` seconds after the last one."""

    async def pause(self, seconds: float) -> None:
        """Let nobody have a slot for a while."""

    async def take_place(self, name: str, *, places: int, window: float) -> float | None:
        """Take one of so many places for `window` seconds; return when that was, `None` where all are taken."""

    async def give_back(self, name: str, taken_at: float) -> None:
        """Give a place back, once."""
