"""Limits on codes and authorization requests, per address and in total."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from amo_callback.errors import QueueFull, TooManyAttempts
from amo_callback.rate_limit import Priority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from amo_callback.clock import Clock
    from amo_callback.grant import AuthorizationRequest

_ADDRESSES = 50_000
"""The maximum number of remembered addresses; beyond it, the least recently used ones are dropped."""
_ALL = "all links"
_FEW = 3
"""The maximum number of waiting codes per address while the queue is at least half full."""
_WRITTEN_AT_ONCE = 4
"""The maximum number of concurrent writes per priority in one `AdmissionQueue`.

These writes fit into one batch of SQLite jobs, and use less than half of the PostgreSQL connection pool.
"""


def priority_of(request: AuthorizationRequest | None) -> Priority:
    """Return the priority of a request or its code: known users before plain links, which anyone can follow."""
    if request is None:
        return Priority.ANONYMOUS
    return Priority.OUR_LINK if request.user is None else Priority.KNOWN_USER


class AttemptLimiter:
    """A limit on attempts per address in a time window; each process counts separately."""

    def __init__(self, *, attempts: int, window: float, clock: Clock) -> None:
        self.attempts = attempts
        self._window = window
        self._clock = clock
        self._reserved: OrderedDict[tuple[Priority, str], deque[float]] = OrderedDict()

    def change(self, *, attempts: int, window: float) -> None:
        """Replace the limit; existing reservations remain."""
        self.attempts = attempts
        self._window = window

    def reserve(self, address: str | None, *, among: Priority = Priority.ANONYMOUS) -> Reservation:
        """Make a reservation, which lasts for `window` seconds. `None` (no address) is unlimited.

        Each priority is counted separately, so that unknown callers behind a shared address do not use up the attempts
        of known users. Raises `TooManyAttempts`.
        """
        if address is None:
            return Reservation()
        now, name = self._clock.monotonic(), (among, _network(address))
        reserved = self._reserved.setdefault(name, deque())
        while reserved and now - reserved[0] >= self._window:
            reserved.popleft()
        if len(reserved) >= self.attempts:
            raise TooManyAttempts(self._window - (now - reserved[-self.attempts]))
        reserved.append(now)
        self._reserved.move_to_end(name)
        while len(self._reserved) > _ADDRESSES:
            self._reserved.popitem(last=False)
        return Reservation(among=reserved, at=now)

    def count(self, address: str, *, among: Priority = Priority.ANONYMOUS) -> int:
        """Return the number of attempts of an address in the current window."""
        now = self._clock.monotonic()
        return sum(now - at < self._window for at in self._reserved.get((among, _network(address)), ()))


class Reservation:
    """An attempt that counts against its address until the window has passed or the reservation is released."""

    def __init__(self, *, among: deque[float] | None = None, at: float = 0.0) -> None:
        self._among = among
        self._at = at

    def release(self) -> None:
        """Stop counting the attempt, for example because AMO accepted the code or nothing was sent."""
        among, self._among = self._among, None
        if among is not None and self._at in among:  # absent if its window has passed
            among.remove(self._at)


class AdmissionQueue:
    """A queue of codes that wait for AMO: at most `capacity` per priority, because more would expire in the queue.

    Each address has its own lock, and half of the capacity is reserved for addresses with few waiting codes. A flood
    from a few addresses therefore cannot fill the queue, and hardly delays users at other addresses.
    """

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._waiting = {priority: Counter[str]() for priority in Priority}
        self._turns: dict[tuple[Priority, str], asyncio.Lock] = {}
        self._writes = {priority: asyncio.Semaphore(_WRITTEN_AT_ONCE) for priority in Priority}

    @contextmanager
    def enter(self, priority: Priority, address: str | None) -> Iterator[asyncio.Lock]:
        """Count a code as waiting, and yield the lock of its address; raises `QueueFull`.

        The caller must hold the lock while the code waits for a rate-limit slot.
        """
        waiting = self._waiting[priority]
        name = "" if address is None else _network(address)
        total = waiting.total()
        has_many = address is not None and waiting[name] >= _FEW
        if total >= self._capacity or (has_many and 2 * total >= self._capacity):
            raise QueueFull
        waiting[name] += 1
        try:
            yield asyncio.Lock() if address is None else self._turns.setdefault((priority, name), asyncio.Lock())
        finally:
            waiting[name] -= 1
            if not waiting[name]:
                del waiting[name]
                self._turns.pop((priority, name), None)

    def write(self, priority: Priority) -> AbstractAsyncContextManager[None]:
        """Limit the concurrent writes of a priority, so that a flood delays neither refreshes nor known users."""
        return self._writes[priority]


class StartLimiter:
    """Limits on authorization requests: per user, per address, and in total for plain links.

    Anyone can follow a plain link, from any number of addresses, and each request costs a write to the store.
    """

    def __init__(self, *, each: AttemptLimiter, links: AttemptLimiter, queue: AdmissionQueue) -> None:
        self._each = each
        self._links = links
        self._queue = queue

    @asynccontextmanager
    async def turn(self, request: AuthorizationRequest, *, address: str | None) -> AsyncIterator[None]:
        """Apply the limits, and hold a slot for a concurrent write; raises `TooManyAttempts` and `QueueFull`."""
        priority = priority_of(request)
        who = f"user {request.user}" if request.user is not None else address
        with self._queue.enter(priority, who):
            if not request.asserted_by_backend:
                self._each.reserve(who, among=priority)
            if request.user is None:
                self._reserve_link(address, priority)
            async with self._queue.write(priority):
                yield

    def _reserve_link(self, address: str | None, priority: Priority) -> None:
        """Reserve one of the plain links allowed in total; half of them are for addresses without a link so far."""
        half_is_used = 2 * self._links.count(_ALL) >= self._links.attempts
        if half_is_used and address is not None and self._each.count(address, among=priority) > 1:
            raise QueueFull
        try:
            self._links.reserve(_ALL)
        except TooManyAttempts:
            raise QueueFull from None  # the total for all addresses is used up, not the limit of this address


class Limits:
    """The limits on failed codes and authorization requests; a code may wait for `queued_for` seconds."""

    def __init__(
        self, *, attempts: int, window: float, requests_per_second: float, queued_for: float, clock: Clock
    ) -> None:
        self._requests_per_second = requests_per_second
        capacity = capacity_for(per_second=requests_per_second, seconds=queued_for)
        self.codes = AttemptLimiter(attempts=attempts, window=window, clock=clock)
        self.polls = AttemptLimiter(attempts=1, window=1.0, clock=clock)
        """The limit on requests for the result of an authorization request without a code, per user."""
        self.queue = AdmissionQueue(capacity=capacity)
        self._each = AttemptLimiter(attempts=attempts, window=window, clock=clock)
        self._links = AttemptLimiter(attempts=self._links_in(window), window=window, clock=clock)
        self.starts = StartLimiter(each=self._each, links=self._links, queue=AdmissionQueue(capacity=capacity))

    def change(self, *, attempts: int, window: float) -> None:
        """Replace the limits; existing reservations remain."""
        for limiter in (self.codes, self._each):
            limiter.change(attempts=attempts, window=window)
        self._links.change(attempts=self._links_in(window), window=window)

    def _links_in(self, window: float) -> int:
        """Return the number of plain links allowed in a window: half of the codes that can be exchanged in it.

        The other half is reserved for codes whose authorization did not start with this service.
        """
        return capacity_for(per_second=self._requests_per_second / 2, seconds=window)


def capacity_for(*, per_second: float, seconds: float) -> int:
    """Return the number of codes that can be sent in `seconds` if refreshes use every other slot; at least 1."""
    return max(1, int(per_second / 2 * seconds))


def _network(address: str) -> str:
    """Return the network of one subscriber: an IPv4 address, or the /64 of an IPv6 address; other text is unchanged."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((int(parsed), 64), strict=False))
    return str(parsed)
