"""The notifications to the supervisor (systemd), from readiness to the end.

A watchdog kills a process that it does not hear from, and a killed process loses what only its memory holds. So it is
fed while loop and refresher run; also where the refresher only waits for a store that does not answer, which is
no readiness but no reason for a kill. A blocked loop sends nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.web.health import max_heartbeat_age, status_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.observe.systemd import Notifier
    from amo_callback.web.composition import Services

_STATUS_INTERVAL = 60.0
_EXTENSION = 30.0
"""Seconds of more time that are asked for at the end, again and again, while a pair is only in memory."""
_INTERVAL = 10.0
"""Seconds between two notifications, unless a watchdog asks for more."""


class Watchdog:
    def __init__(self, services: Services, supervisor: Notifier) -> None:
        self._services = services
        self._clock = services.core.clock
        self._notify = supervisor
        self._interval = _INTERVAL if supervisor.watchdog is None else min(supervisor.watchdog / 3, _INTERVAL)
        self._status_at: float | None = None
        self._ready = asyncio.Event()
        self._stopping = False

    @property
    def enabled(self) -> bool:
        return self._notify.enabled

    def ready(self) -> None:
        self._notify("READY=1", f"STATUS={status_line(self._services)}")
        self._status_at = self._clock.monotonic()
        self._ready.set()

    def stop(self) -> None:
        if not self._stopping:
            self._notify("STOPPING=1", "STATUS=ends, and stores what is in flight")
        self._stopping = True

    async def run(self) -> None:
        """Notify until cancelled, once the service is ready: before that a supervisor waits for nothing else."""
        await self._ready.wait()
        while True:
            if self._stopping:
                if self._services.lifecycle.pending_writes.at_risk:
                    self._notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1e6:.0f}")
            elif self._is_alive():
                self._notify("WATCHDOG=1", *self._status_if_due())
            await self._clock.sleep(self._interval)

    def _is_alive(self) -> bool:
        lifecycle = self._services.lifecycle
        waits_for_store = lifecycle.stats_poller.trouble is not None
        oldest = max_heartbeat_age(self._services.settings.refresh.poll_interval)
        return waits_for_store or lifecycle.scheduler.beat_age <= oldest

    def _status_if_due(self) -> list[str]:
        now = self._clock.monotonic()
        if self._status_at is not None and now - self._status_at < _STATUS_INTERVAL:
            return []
        self._status_at = now
        return [f"STATUS={status_line(self._services)}"]


@asynccontextmanager
async def running_watchdog(watchdog: Watchdog) -> AsyncIterator[None]:
    """Run the watchdog in the background, if there is a supervisor."""
    if not watchdog.enabled:
        yield
        return
    task = asyncio.create_task(watchdog.run(), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
