"""The remaining lease time of refresh attempts in progress.

With PostgreSQL, all instances use the database clock. The database sets each lease, returns its remaining time with
each read, and rejects a claim until the lease has expired. Clock skew between instances has no effect.

With SQLite, leases are stored in wall-clock time. A clock step must neither end a lease early nor extend it by days.
Each process therefore times a lease with its own monotonic clock, starting when it first reads the attempt or its
latest extension; a process that has just started begins every lease at its full length.

While the store is unreachable, the process that holds a lease may also hold a token pair that it cannot write. Every
lease therefore restarts at its full length when an outage ends. With PostgreSQL, a process cannot know of outages
before its start, so it treats its start as the end of an outage.
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
    """A record of the attempts that this process has read, and of the time of each first read."""

    def __init__(self, *, length: float, store: Store, clock: Clock) -> None:
        self.length = length
        """The length of a lease in seconds."""
        self._store = store
        self._clock = clock
        self._seen: dict[str, tuple[str, datetime | None, float]] = {}
        self._ended: dict[str, str] = {}
        self._inherited: frozenset[str | None] = frozenset()

    def remaining(self, connection: Connection) -> float:
        """Return the seconds until the connection's attempt may be taken over; 0 without an attempt."""
        if connection.attempt is None:
            self.forget(connection.id)
            return 0.0
        return self.remaining_of(
            connection.id, connection.attempt, connection.lease_until, reported=connection.lease_left
        )

    async def begin(self) -> None:
        """Read the attempts that began before this process started and whose age is therefore unknown."""
        self._inherited = frozenset(connection.attempt for connection in await self._store.attempts())

    def age(self, connection: Connection) -> float:
        """Return the seconds since the connection's attempt began, as far as this process knows; 0 without an attempt.

        The age of an attempt that began before this process started is infinite.
        """
        if connection.attempt is None:
            return 0.0
        if connection.attempt in self._inherited:
            return math.inf
        age = self._seen_for(connection.id, connection.attempt, connection.lease_until)
        if connection.lease_until is not None:  # the greater of the ages by both clocks, since each may be too small
            age = max(age, self.length - (connection.lease_until - self._clock.now()).total_seconds())
        return age

    def forget(self, name: str) -> None:
        """Forget an attempt that has ended."""
        self._seen.pop(name, None)
        self._ended.pop(name, None)

    def mark_ended(self, connection: Connection) -> None:
        """Record that this process's attempt has ended without a pair, although the store could not be updated."""
        self._ended[connection.id] = connection.attempt or ""

    def has_ended(self, connection: Connection) -> bool:
        """Return whether `mark_ended` has recorded the connection's current attempt."""
        return connection.attempt is not None and self._ended.get(connection.id) == connection.attempt

    def remaining_of(self, name: str, attempt: str, until: datetime | None, *, reported: float | None) -> float:
        """Return the seconds until an attempt may be taken over.

        `reported` is the remaining lease time by the database's clock.
        """
        if self._store.has_shared_clock:
            left = self.length if reported is None else reported
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
