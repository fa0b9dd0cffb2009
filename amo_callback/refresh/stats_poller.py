"""Polling of statistics about all connections, so that monitoring never waits for the store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import sleep_until_woken, wait_at_most
from amo_callback.errors import AmoCallbackError, StoreUnavailable
from amo_callback.events import Outage

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.stats import StoreStats

_EVERY = 10.0
_WAIT_LIMIT = 2.0
"""Seconds after which a query is reported as slow; its result is used when it arrives."""
_OLDEST = 3 * _EVERY
_LATE = timedelta(minutes=5)
"""The time after which a due refresh counts as overdue; longer than a refresh usually waits to start."""


class StatsPoller:
    """Polls the store for `StoreStats`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outage = Outage("stats", clock=core.clock, observer=core.observer)
        self._query: asyncio.Future[StoreStats] | None = None
        self._began_at = core.clock.monotonic()
        self._problem: str | None = "the database has not been polled yet"
        self._seen_at: float | None = None
        self.last: StoreStats | None = None
        """The last statistics; `None` before the first."""
        self.seconds: float | None = None
        """The duration of the last successful query, in seconds; `None` before the first."""

    @property
    def age(self) -> float | None:
        """Seconds since the query for the last statistics began; `None` before the first."""
        return None if self._seen_at is None else self._core.clock.monotonic() - self._seen_at

    @property
    def problem(self) -> str | None:
        """The reason why the last statistics are outdated or missing; `None` if they are current."""
        if self._problem is None and self.age is not None and self.age > _OLDEST:
            return f"the database has not been polled for {self.age:.0f} s"
        return self._problem

    async def run(self) -> None:
        """Poll until shutdown; `poll` must have been called once before."""
        try:
            while not self._core.stop.is_set():
                await sleep_until_woken(self._core.stop, seconds=_EVERY, clock=self._core.clock)
                await self.poll()
        finally:
            if self._query is not None:
                self._query.cancel()

    async def poll(self) -> None:
        """Query the store for statistics, waiting at most `_WAIT_LIMIT` seconds.

        A slower query keeps running; the next call waits for it instead of starting another.
        """
        if self._query is None:
            self._began_at, now = self._core.clock.monotonic(), self._core.clock.now()
            self._query = asyncio.ensure_future(self._core.store.stats(now=now, late=now - _LATE))
        if not await wait_at_most(self._query, seconds=_WAIT_LIMIT, clock=self._core.clock):
            self._problem = f"the database has not responded for {self._core.clock.monotonic() - self._began_at:.0f} s"
            return
        query, self._query = self._query, None
        try:
            self.last = query.result()
        except StoreUnavailable as error:
            self._problem = error.code  # the store logs its own failures
        except Exception as error:  # noqa: BLE001 -- the loop must survive any bug in one round
            self._problem = (
                error.code if isinstance(error, AmoCallbackError) else "internal error (see stats.failed in the log)"
            )
            self._outage.failed(error)
        else:
            self._outage.worked()
            self._problem, self._seen_at = None, self._began_at
            self.seconds = self._core.clock.monotonic() - self._began_at
