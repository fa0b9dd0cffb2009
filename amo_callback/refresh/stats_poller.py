"""The look at all connections that monitoring is answered from: made every few seconds, never for whoever asks.

However many there are, and however slow the store is, an answer is there at once; it tells how old it is.
"""

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
"""Seconds after which the store's silence is told; what it says later still counts."""
_OLDEST = 3 * _EVERY
_LATE = timedelta(minutes=5)
"""How long a refresh may be due: more than any that is put off, since that is due later."""


class StatsPoller:
    """Look at all connections, for as long as the process lives."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._outage = Outage("survey", clock=core.clock, observer=core.observer)
        self._looking: asyncio.Future[StoreStats] | None = None
        self._began_at = core.clock.monotonic()
        self._trouble: str | None = "not looked at yet"
        self._seen_at: float | None = None
        self.last: StoreStats | None = None
        """What the store told last."""
        self.seconds: float | None = None
        """How long it took."""

    @property
    def age(self) -> float | None:
        """Seconds since what was told last was asked for."""
        return None if self._seen_at is None else self._core.clock.monotonic() - self._seen_at

    @property
    def trouble(self) -> str | None:
        """Why what was told last is not to be relied on; `None` where it is."""
        if self._trouble is None and self.age is not None and self.age > _OLDEST:
            return f"last looked at {self.age:.0f} s ago"
        return self._trouble

    async def run(self) -> None:
        """Look until stopped; the first look is whoever's who starts this."""
        try:
            while not self._core.stop.is_set():
                await rest(self._core.stop, seconds=_EVERY, clock=self._core.clock)
                await self.look()
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def look(self) -> None:
        """Ask the store, and wait for it no longer than a moment: one question at a time, however long it takes."""
        if self._looking is None:
            self._began_at, now = self._core.clock.monotonic(), self._core.clock.now()
            self._looking = asyncio.ensure_future(self._core.store.survey(now=now, late=now - _LATE))
        if not await done_within(self._looking, seconds=_PATIENCE, clock=self._core.clock):
            self._trouble = f"no answer for {self._core.clock.monotonic() - self._began_at:.0f} s"
            return
        looking, self._looking = self._looking, None
        try:
            self.last = looking.result()
        except StoreUnavailable as error:
            self._trouble = error.code  # the store has its own line in the log
        except Exception as error:  # noqa: BLE001 -- because the loop must outlive any bug in one round
            self._trouble = error.code if isinstance(error, AmoCallbackError) else "a bug"
            self._outage.failed(error)
        else:
            self._outage.worked()
            self._trouble, self._seen_at = None, self._began_at
            self.seconds = self._core.clock.monotonic() - self._began_at
