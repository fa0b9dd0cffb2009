"""How many codes may be on their way to AMO: of one address, and of all."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from amo_callback.errors import QueueFull, StoreUnavailable, TooManyAttempts
from amo_callback.model import fingerprint
from amo_callback.ports import Priority
from amo_callback.tasks import unbroken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from amo_callback.ports import Shared

_WRITTEN_AT_ONCE = 4
"""Codes of each kind: a group of the store's, or less than half of its connections."""


class Unproven:
    """Places for exchanges: taken before AMO is asked, given back when it accepts the code.

    `kind` says what is limited: each has places of its own. They are one for all instances.
    """

    def __init__(self, *, kind: str, places: int, window: float, shared: Shared) -> None:
        self._kind = kind
        self._places = places
        self._window = window
        self._shared = shared

    def change(self, *, places: int, window: float) -> None:
        """Have other limits from now on; the places that are taken stay so."""
        self._places = places
        self._window = window

    async def take(self, address: str | None, *, among: Priority = Priority.STRANGER) -> Place:
        """Take a place for `window` seconds; nobody's address has no limit.

        Whoever is better known has places of his own: strangers behind the same address cannot take them. Raises
        `TooManyAttempts`, and `StoreUnavailable`: then nothing could be claimed either. Who is cancelled meanwhile has
        taken none.
        """
        if address is None:
            return Place(self._shared, name="")
        # An address is personal data: it is not to be read in a database.
        name = fingerprint(f"{self._kind} {among.name} {_network(address)}")
        place = Place(self._shared, name=name)
        try:
            await unbroken(place.take(places=self._places, window=self._window))
        except asyncio.CancelledError:
            await place.give_back()
            raise
        return place


class Place:
    """A place: nobody's, until it is taken."""

    def __init__(self, shared: Shared, *, name: str) -> None:
        self._shared = shared
        self._name = name
        self._taken_at: float | None = None

    async def take(self, *, places: int, window: float) -> None:
        """Take it, one of so many, for `window` seconds; raises `TooManyAttempts`."""
        self._taken_at = await self._shared.take_place(self._name, places=places, window=window)
        if self._taken_at is None:
            raise TooManyAttempts

    async def give_back(self) -> None:
        """Give the place back, once: AMO has accepted the code, or was not asked.

        Where the store is away it stays taken until its window is over: that is no reason to fail. Whoever is cancelled
        meanwhile has given it back.
        """
        if self._taken_at is None:
            return
        taken_at, self._taken_at = self._taken_at, None
        with suppress(StoreUnavailable):
            await unbroken(self._shared.give_back(self._name, taken_at))


class Rooms:
    """How many codes may wait for AMO at once, strangers apart from those who are known.

    More would grow old in the queue. Each costs the store a write, and it writes a few at once: so of each kind a few
    at a time are written down, or a refresh, and whoever is expected, would wait for all the strangers' ones.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._inside = dict.fromkeys(Priority, 0)
        self._turns = {priority: asyncio.Semaphore(_WRITTEN_AT_ONCE) for priority in Priority}

    @contextmanager
    def enter(self, priority: Priority) -> Iterator[None]:
        """Be in the room meanwhile; raises `QueueFull`."""
        if self._inside[priority] >= self._size:
            raise QueueFull
        self._inside[priority] += 1
        try:
            yield
        finally:
            self._inside[priority] -= 1

    def turn(self, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Be one of the few of the kind that are written down at this moment."""
        return self._turns[priority]


class Limits:
    """How many codes of one address may be on their way to AMO, and how many grants may be started."""

    def __init__(self, *, unproven: int, window: float, requests_per_second: float, shared: Shared) -> None:
        self._requests_per_second = requests_per_second
        self.codes = Unproven(kind="codes", places=unproven, window=window, shared=shared)
        self.starts = Unproven(kind="starts", places=unproven, window=window, shared=shared)
        self.links = Unproven(kind="links", places=self._links(window), window=window, shared=shared)

    def change(self, *, unproven: int, window: float) -> None:
        """Have others from now on."""
        for limit in (self.codes, self.starts):
            limit.change(places=unproven, window=window)
        self.links.change(places=self._links(window), window=window)

    def _links(self, window: float) -> int:
        """Return how many plain links are followed in a window: half of what people can have exchanged.

        The other half is for codes that began elsewhere.
        """
        return room_for(per_second=self._requests_per_second / 2, seconds=window)


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
