"""How many codes may be on their way to AMO: of one address, and of all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from amo_callback.errors import Crowded, TooManyUnproven
from amo_callback.ports import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from amo_callback.ports import Clock

_ADDRESSES = 50_000
"""Addresses that are remembered at once; beyond, those heard of longest ago are forgotten."""


class Unproven:
    """Places for exchanges: taken before AMO is asked, given back when it accepts the code."""

    def __init__(self, *, places: int, window: float, clock: Clock) -> None:
        self._places = places
        self._window = window
        self._clock = clock
        self._taken: OrderedDict[tuple[Priority, str], deque[float]] = OrderedDict()

    def change(self, *, places: int, window: float) -> None:
        """Have other limits from now on; the places that are taken stay so."""
        self._places = places
        self._window = window

    def take(self, address: str | None, *, among: Priority = Priority.STRANGER) -> Place:
        """Take a place for `window` seconds; raises `TooManyUnproven`. Nobody's address has no limit.

        Whoever is better known has places of his own: strangers behind the same address cannot take them.
        """
        if address is None:
            return Place(deque(), 0.0)
        key = (among, _network(address))
        now = self._clock.monotonic()
        taken = self._taken.setdefault(key, deque())
        while taken and now - taken[0] >= self._window:
            taken.popleft()
        if len(taken) >= self._places:
            raise TooManyUnproven
        taken.append(now)
        self._taken.move_to_end(key)
        while len(self._taken) > _ADDRESSES:
            self._taken.popitem(last=False)
        return Place(taken, now)


class Place:
    """A place that was taken."""

    def __init__(self, taken: deque[float], at: float) -> None:
        self._taken = taken
        self._at = at

    def give_back(self) -> None:
        """Give the place back, once: AMO has accepted the code, or was not asked."""
        with suppress(ValueError):  # its window is over
            self._taken.remove(self._at)
        self._taken = deque()


class Rooms:
    """How many codes may wait for AMO at once, strangers apart from those who are known.

    More would grow old in the queue. Each costs the store a write, and writes are one after the other: so of each
    kind one at a time is written down, or a refresh, and whoever is expected, would wait for all the strangers' ones.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._inside = dict.fromkeys(Priority, 0)
        self._turns = {priority: asyncio.Lock() for priority in Priority}

    @contextmanager
    def enter(self, priority: Priority) -> Iterator[None]:
        """Be in the room meanwhile; raises `Crowded`."""
        if self._inside[priority] >= self._size:
            raise Crowded
        self._inside[priority] += 1
        try:
            yield
        finally:
            self._inside[priority] -= 1

    def turn(self, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Be the only one of the kind meanwhile."""
        return self._turns[priority]


def room_for(*, per_second: float, seconds: float) -> int:
    """Return how many can have their turn within so many seconds, where refreshes take every other slot."""
    return max(1, int(per_second / 2 * seconds))


def _network(address: str) -> str:
    """Return what one subscriber holds: an IPv4 address, or the /64 around an IPv6 one."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((int(parsed), 64), strict=False))
    return str(parsed)
