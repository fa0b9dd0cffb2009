"""Statistics about all connections, polled every few seconds, so that monitoring never waits for the store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_within, rest
from amo_callback.errors import AmoCallbackError, StoreUnavailable
from amo_callback.events import Outage

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.stats import StoreStats

_EVERY = 10.0
_PATIENCE = 2.0
"""Seconds after which a slow store is reported; its result is still used when it arrives."""
_OLDEST = 3 * _EVERY
_LATE = timedelta(minutes=5)
"""How long a refresh may be due before it counts as overdue; longer than any postponement."""


class StatsPoller:
    """A poller of `StoreStats`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outage = Outage("survey", clock=core.clock, observer=core.observer)
        self._looking: asyncio.Future[StoreStats] | None = None
        self._began_at = core.clock.monotonic()
        self._trouble: str | None = "not polled yet"
        self._seen_at: float | None = None
        self.last: StoreStats | None = None
        """The last result."""
        self.seconds: float | None = None
        """How long the last query took."""

    @property
    def age(self) -> float | None:
        """Seconds since the last result was queried; `None` before the first."""
        return None if self._seen_at is None else self._core.clock.monotonic() - self._seen_at

    @property
    def trouble(self) -> str | None:
        """Why the last result is outdated or missing; `None` if it is current."""
        if self._trouble is None and self.age is not None and self.age > _OLDEST:
            return f"last polled {self.age:.0f} s ago"
        return self._trouble

    async def run(self) -> None:
        """Poll until shutdown; the caller has made the first poll."""
        try:
            while not self._core.stop.is_set():
                await rest(self._core.stop, seconds=_EVERY, clock=self._core.clock)
                await self.look()
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def look(self) -> None:
        """Query the store for statistics, waiting at most `_PATIENCE` seconds.

        A slower query keeps running; the next call waits for it instead of starting another.
        """
        if self._looking is None:
            self._began_at, now = self._core.clock.monotonic(), self._core.clock.now()
            self._looking = asyncio.ensure_future(self._core.store.survey(now=now, late=now - _LATE))
        if not await done_within(self._looking, seconds=_PATIENCE, clock=self._core.clock):
            self._trouble = f"no response for {self._core.clock.monotonic() - self._began_at:.0f} s"
            return
        looking, self._looking = self._looking, None
        try:
            self.last = looking.result()
        except StoreUnavailable as error:
            self._trouble = error.code  # the store logs its own failures
        except Exception as error:  # noqa: BLE001 -- the loop must survive any bug in one round
            self._trouble = error.code if isinstance(error, AmoCallbackError) else "a bug"
            self._outage.failed(error)
        else:
            self._outage.worked()
            self._trouble, self._seen_at = None, self._began_at
            self.seconds = self._core.clock.monotonic() - self._began_at
