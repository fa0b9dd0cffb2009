"""How long other attempts' leases still run.

Where the store has a clock of its own that all instances share, that clock writes each lease, tells with each read
how much of it is left, and guards the claim: nobody takes over before it says so, whatever his own clock says.

Else a lease is written with a wall-clock time, but a stepped clock must not end one early, nor keep one for days. So
an attempt's lease counts as over when its length has passed, by this process's own monotonic clock, since it first
saw it, or saw it extended. A process that has just started sees every open attempt for the first time.

While the store is away nobody can store what a refresh has brought: an attempt's owner may hold a good pair.
So every lease counts anew from the last time that the store could not be used; and for a process that has just started
from then, since it cannot know whether it could before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.clock import Clock
    from amo_callback.model import Connection
    from amo_callback.store import Store


class Leases:
    """Watch open attempts."""

    def __init__(self, *, length: float, store: Store, clock: Clock) -> None:
        self.length = length
        """Seconds."""
        self._store = store
        self._clock = clock
        self._seen: dict[str, tuple[str, datetime | None, float]] = {}
        self._ended: dict[str, str] = {}
        self._inherited: frozenset[str | None] = frozenset()

    def left(self, connection: Connection) -> float:
        """Return for how many seconds nobody may judge the connection's open attempt; 0 where there is none."""
        if connection.attempt is None:
            self.forget(connection.id)
            return 0.0
        return self.left_of(connection.id, connection.attempt, connection.lease_until, told=connection.lease_left)

    async def begin(self) -> None:
        """Note which attempts were open before this process: how old they are is not known."""
        self._inherited = frozenset(connection.attempt for connection in await self._store.attempts())

    def age(self, connection: Connection) -> float:
        """Return for how many seconds the connection's open attempt has gone on, at least; 0 where there is none."""
        if connection.attempt is None:
            return 0.0
        if connection.attempt in self._inherited:
            return math.inf
        age = self._seen_for(connection.id, connection.attempt, connection.lease_until)
        if connection.lease_until is not None:  # by the store's clock, which may have been stepped
            age = max(age, self.length - (connection.lease_until - self._clock.now()).total_seconds())
        return age

    def forget(self, name: str) -> None:
        """Forget an attempt that has ended."""
        self._seen.pop(name, None)
        self._ended.pop(name, None)

    def end(self, connection: Connection) -> None:
        """Note that an attempt of this process has ended without a pair, and that this cannot be written down."""
        self._ended[connection.id] = connection.attempt or ""

    def has_ended(self, connection: Connection) -> bool:
        """Tell whether the connection's open attempt is one that has ended so."""
        return connection.attempt is not None and self._ended.get(connection.id) == connection.attempt

    def left_of(self, name: str, attempt: str, until: datetime | None, *, told: float | None) -> float:
        """Return for how many seconds an attempt, at whatever goes by this name, is left alone.

        `told` is how many the store's clock gave it when it was read: whoever waits reads again.
        """
        if self._store.has_shared_clock:
            left = self.length if told is None else told
        else:
            left = self.length - self._seen_for(name, attempt, until)
        if self._store.failed_at is not None:
            left = max(left, self.length - (self._clock.monotonic() - self._store.failed_at))
        return max(left, 0.0)

    def _seen_for(self, name: str, attempt: str, until: datetime | None) -> float:
        *seen, since = self._seen.get(name, ("", None, 0.0))
        if seen != [attempt, until]:
            since = self._clock.monotonic()
            self._seen[name] = (attempt, until, since)
        return self._clock.monotonic() - since
