"""The machine's clock and a database server's."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that no step of the wall clock changes."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class DatabaseClock:
    """The time of a database that several instances share: what it said last, plus the monotonic time since.

    Two machines never agree on the time. What one instance stores, others compare, so all of them use the database's
    clock, and never their own wall clock.
    """

    def __init__(self, machine: Clock) -> None:
        self._machine = machine
        self._read: tuple[datetime, float] | None = None

    def set(self, time: datetime, *, asked_at: float) -> None:
        """Take the time that the database has answered to a query sent at `asked_at` (monotonic).

        Counted from before the query, it is ahead by the length of a round trip at most, and a token expires too early
        rather than too late.
        """
        self._read = time, asked_at

    @property
    def ahead(self) -> float:
        """Seconds by which this machine's wall clock is ahead of the database's."""
        return (self._machine.now() - self.now()).total_seconds()

    def now(self) -> datetime:
        """Return the database's time, in UTC; the machine's, before the database has been asked."""
        if self._read is None:
            return self._machine.now()
        time, asked_at = self._read
        return time + timedelta(seconds=self._machine.monotonic() - asked_at)

    def monotonic(self) -> float:
        return self._machine.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._machine.sleep(seconds)


def rfc3339(moment: datetime) -> str:
    """Write a time as others read it: RFC 3339, UTC, whole seconds."""
    return moment.isoformat()[:19] + "Z"  # a tenth of what `strftime` takes
