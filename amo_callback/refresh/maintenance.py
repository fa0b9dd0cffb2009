"""Periodic maintenance: clock-step detection, expiry warnings and cleanup of expired rows.

Each refresh returns a new refresh token, which is valid for three months. A connection approaches expiry only if it
cannot be refreshed: it is frozen, its account is unpaid, or AMO rejects the client credentials. A warning is logged 30,
7 and 1 days before expiry. The same warnings are logged for a long-lived access token without a refresh token; once the
access token has expired, the user has to connect again.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event, Level, Outage, connection_event
from amo_callback.model import Status
from amo_callback.schedule import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.model import Connection

WARN_DAYS = (1, 7, 30)
"""Days before expiry at which a warning is logged; ascending, so that only one of several due warnings is logged."""
_LOOK_EVERY = 60.0
_KEEP = 86400.0
"""Seconds for which an expired grant is kept, so that its code is not reported as unknown."""
_WARN_EVERY = 3600.0
_STEPS = 20
"""The maximum number of batches of old history that are deleted per run, in addition to the first."""
_STEPPED = 60.0
"""The minimum difference, in seconds, between wall-clock and monotonic elapsed time that counts as a clock step."""
_STEADY = 3600.0
"""Seconds to wait, after the start and after each clock step, before logging warnings and deleting old history.

After a clock step of months or a long outage, every connection appears to be close to expiry until it is refreshed.
"""


class Maintenance:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._steady_since = core.clock.monotonic()
        self._last: tuple[datetime, float] | None = None
        self._agrees = True
        self._look_at = self._warn_at = self._prune_at = core.clock.monotonic()
        self._prune_outage = Outage("cleanup", clock=core.clock, observer=core.observer)

    async def watch(self) -> None:
        """Delete expired rows once a minute; run the other tasks once a minute and after each clock step."""
        await self._prune()
        stepped = self._stepped()
        if not stepped and self._core.clock.monotonic() < self._look_at:
            return
        if stepped:
            self._steady_since = self._core.clock.monotonic()
        back = await self._core.store.record_time(now=self._core.clock.now)
        if back:
            self._steady_since = self._core.clock.monotonic()
        await self._core.store.expire_missing(now=self._core.clock.now(), event=_expired)
        self._log_clock_skew()
        self._look_at = self._core.clock.monotonic() + _LOOK_EVERY
        if self._core.clock.monotonic() < self._steady_since + _STEADY:
            return
        steps = 0
        while await self._core.store.forget(now=self._core.clock.now()) and steps < _STEPS:
            steps += 1
        if self._core.clock.monotonic() >= self._warn_at:
            self._warn_at = self._core.clock.monotonic() + _WARN_EVERY
            await self._warn()

    async def _prune(self) -> None:
        """Delete expired rows, once a minute."""
        if self._core.clock.monotonic() < self._prune_at:
            return
        self._prune_at = self._core.clock.monotonic() + _LOOK_EVERY
        try:
            await self._core.store.prune(now=self._core.clock.now(), keep=_KEEP)
        except StoreUnavailable as error:  # a failed cleanup must not stop refreshes
            self._prune_outage.failed(error, details=False)
        else:
            self._prune_outage.worked()

    def _log_clock_skew(self) -> None:
        """Log an error once when the clocks of this host and of the store begin to differ."""
        ahead = self._core.store.clock_skew
        agrees = abs(ahead) <= CLOCK_TOLERANCE.total_seconds()
        if not agrees and self._agrees:
            text = (
                "the clocks of this host and the database server differ, and this host's clock determines the expiry "
                "of app JWTs: synchronize both hosts by NTP"
            )
            fields = {"seconds_ahead": round(ahead), "text": text}
            self._core.observer(Event(name="clock.differs", level=Level.ERROR, fields=fields))
        self._agrees = agrees

    def _stepped(self) -> bool:
        """Return whether the wall clock has jumped relative to the monotonic clock since the last call."""
        now, ticks = self._core.clock.now(), self._core.clock.monotonic()
        last, self._last = self._last, (now, ticks)
        return last is not None and abs((now - last[0]).total_seconds() - (ticks - last[1])) >= _STEPPED

    async def _warn(self) -> None:
        for days in WARN_DAYS:

            def expiring(connection: Connection, days: int = days) -> Event:
                fields = {
                    "days": days,
                    "refresh_expires_at": connection.refresh_expires_at,
                    "access_expires_at": None if connection.has_refresh_token else connection.access_expires_at,
                    "error": connection.last_error,
                    "frozen": connection.frozen or None,
                }
                return connection_event("connection.expiring", connection, Level.WARNING, fields=fields)

            before = self._core.clock.now() + timedelta(days=days)
            while await self._core.store.due_expiry_warnings(days=days, before=before, event=expiring):
                pass


def _expired(connection: Connection) -> Event:
    """Return the event for a connection whose long-lived access token has expired, or has become valid again."""
    if connection.status is Status.ACTIVE:
        return connection_event("connection.recovered", connection)
    fields = {"reason": connection.reason, "access_expires_at": connection.access_expires_at}
    return connection_event("connection.needs_reauth", connection, Level.WARNING, fields=fields)
