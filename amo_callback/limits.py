"""How many exchanges one address may have begun that AMO has not accepted yet."""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from amo_callback.errors import TooManyUnproven

if TYPE_CHECKING:
    from amo_callback.ports import Clock

_ADDRESSES = 50_000
"""Addresses that are remembered at once; beyond, those heard of longest ago are forgotten."""


class Unproven:
    """Places for exchanges: taken before AMO is asked, given back when it accepts the code."""

    def __init__(self, *, places: int, window: float, clock: Clock) -> None:
        self._places = places
        self._window = window
        self._clock = clock
        self._taken: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, address: str | None) -> Place:
        """Take a place for `window` seconds; raises `TooManyUnproven`. Nobody's address has no limit."""
        if address is None:
            return Place(deque(), 0.0)
        network = _network(address)
        now = self._clock.monotonic()
        taken = self._taken.setdefault(network, deque())
        while taken and now - taken[0] >= self._window:
            taken.popleft()
        if len(taken) >= self._places:
            raise TooManyUnproven
        taken.append(now)
        self._taken.move_to_end(network)
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
