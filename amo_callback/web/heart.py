"""What a supervisor hears of the service while it lives and while it ends.

A watchdog kills what it does not hear of, and a killed process loses what only its memory holds. So it hears of us as
long as loop and refresher go round; and also where the refresher only waits for a store that does not answer, which
is readiness and no death. A loop that stands still says nothing at all.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.clock import Clock
    from amo_callback.custody.build import Custody
    from amo_callback.observe.systemd import Notifier
    from amo_callback.store import Store

_STATUS_EVERY = 60.0
_MORE_TIME = 30.0
"""Seconds that are asked for at the end, again and again, while a pair is nowhere but in memory."""
_BEAT = 10.0
"""Seconds between two beats where no watchdog asks for more."""


class Heart:
    """Tell the supervisor that the service lives."""

    def __init__(
        self, *, supervisor: Notifier, custody: Custody, store: Store, clock: Clock, oldest_beat: float
    ) -> None:
        self._tell = supervisor
        self._custody = custody
        self._store = store
        self._clock = clock
        self._oldest_beat = oldest_beat
        self._every = _BEAT if supervisor.watchdog is None else min(supervisor.watchdog / 3, _BEAT)
        self._told_at: float | None = None
        self._ready = asyncio.Event()
        self._ending = False

    @property
    def asked(self) -> bool:
        """Whether anybody listens."""
        return self._tell.asked

    def ready(self) -> None:
        """Tell that the service is ready."""
        self._tell("READY=1", f"STATUS={self.status()}")
        self._told_at = self._clock.monotonic()
        self._ready.set()

    def stop(self) -> None:
        """Tell that the service ends."""
        if not self._ending:
            self._tell("STOPPING=1", "STATUS=ends, and stores what is in flight")
        self._ending = True

    def status(self) -> str:
        """Return how the service is, in a line."""
        custody, worries = self._custody, []
        if self._store.failing is not None:
            worries.append(f"the database cannot be written ({self._store.failing})")
        if custody.credentials_refused is not None:
            worries.append("AMO refuses our credentials")
        if custody.breaker.address_block.block is not None:
            worries.append("AMO blocks this server's address")
        if custody.breaker.held:
            worries.append("too many connections died at once, nothing is refreshed")
        if custody.freezer.frozen is not None:
            worries.append("frozen, nothing is spent")
        if unsaved := len(custody.unsaved.names):
            worries.append(f"{unsaved} new pairs wait for the database")
        survey = custody.surveyor.last
        return "; ".join(worries) or f"keeps {0 if survey is None else survey.active} connections fresh"

    async def beat(self) -> None:
        """Beat until cancelled, once it is ready: before that a supervisor waits for nothing else."""
        await self._ready.wait()
        while True:
            if self._ending:
                if self._custody.unsaved.at_risk:
                    self._tell(f"EXTEND_TIMEOUT_USEC={_MORE_TIME * 1e6:.0f}")
            elif self._is_alive():
                self._tell("WATCHDOG=1", *self._status_now_and_then())
            await self._clock.sleep(self._every)

    def _is_alive(self) -> bool:
        waits_for_store = self._custody.surveyor.trouble is not None
        return waits_for_store or self._custody.refresher.beat_age <= self._oldest_beat

    def _status_now_and_then(self) -> list[str]:
        now = self._clock.monotonic()
        if self._told_at is not None and now - self._told_at < _STATUS_EVERY:
            return []
        self._told_at = now
        return [f"STATUS={self.status()}"]


@asynccontextmanager
async def beating(heart: Heart) -> AsyncIterator[None]:
    """Beat in the background, to the end of the block, where anybody listens."""
    if not heart.asked:
        yield
        return
    task = asyncio.create_task(heart.beat(), name="heart")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
