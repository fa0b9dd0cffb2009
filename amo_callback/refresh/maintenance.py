"""What only time tells: a clock that was stepped, and refresh tokens whose three months run out.

A connection that is refreshed is never near its end. One that cannot be (its account is not paid, our credentials are
wrong, it is frozen) dies of it unseen: so it is told, once each 30, 7 and 1 days before. A long-lived access token
without a refresh token is warned of in the same way; when it has expired, its connection needs its user.
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
"""Each is told once, the nearest first, so that who comes late is told of one and not of three."""
_LOOK_EVERY = 60.0
_KEEP = 86400.0
"""Seconds for which an expired code is still told apart from one never seen."""
_WARN_EVERY = 3600.0
_STEPS = 20
"""Steps in which the history is forgotten, at each look: as much as the largest fleet writes meanwhile."""
_STEPPED = 60.0
"""Seconds by which wall clock and monotonic clock must have parted."""
_STEADY = 3600.0
"""Seconds for which a process must have run on a steady clock before it warns.

A clock that was put on by months makes everything look overdue, and so does a long time off: both are over once what
is due has been refreshed.
"""


class Maintenance:
    """Watch the clock and the deadlines."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._steady_since = core.clock.monotonic()
        self._last: tuple[datetime, float] | None = None
        self._agrees = True
        self._look_at = self._warn_at = self._prune_at = core.clock.monotonic()
        self._prune_outage = Outage("cleanup", clock=core.clock, observer=core.observer)

    async def watch(self) -> None:
        """Look at the clock, and once a minute, or where it was stepped, at what hangs on it."""
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
        self._tell_difference()
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
        """Delete what has expired, once a minute."""
        if self._core.clock.monotonic() < self._prune_at:
            return
        self._prune_at = self._core.clock.monotonic() + _LOOK_EVERY
        try:
            await self._core.store.prune(now=self._core.clock.now(), keep=_KEEP)
        except StoreUnavailable as error:  # no reason to refresh nothing
            self._prune_outage.failed(error, details=False)
        else:
            self._prune_outage.worked()

    def _tell_difference(self) -> None:
        """Tell once that this process's clock and the store's differ: one of them is wrong."""
        ahead = self._core.store.clock_skew
        agrees = abs(ahead) <= CLOCK_TOLERANCE.total_seconds()
        if not agrees and self._agrees:
            text = "JWTs of the app are checked by a wrong clock: set this machine's and the database's by NTP"
            fields = {"seconds_ahead": round(ahead), "text": text}
            self._core.observer(Event(name="clock.differs", level=Level.ERROR, fields=fields))
        self._agrees = agrees

    def _stepped(self) -> bool:
        """Tell whether the wall clock has parted from the monotonic one since the last look."""
        now, ticks = self._core.clock.now(), self._core.clock.monotonic()
        last, self._last = self._last, (now, ticks)
        return last is not None and abs((now - last[0]).total_seconds() - (ticks - last[1])) >= _STEPPED

    async def _warn(self) -> None:
        for days in WARN_DAYS:

            def expiring(connection: Connection, days: int = days) -> Event:
                told = {
                    "days": days,
                    "refresh_expires_at": connection.refresh_expires_at,
                    "access_expires_at": None if connection.has_refresh_token else connection.access_expires_at,
                    "error": connection.last_error,
                    "frozen": connection.frozen or None,
                }
                return connection_event("connection.expiring", connection, Level.WARNING, told=told)

            before = self._core.clock.now() + timedelta(days=days)
            while await self._core.store.due_expiry_warnings(days=days, before=before, event=expiring):
                pass


def _expired(connection: Connection) -> Event:
    """Return the event of a connection without a refresh token: its access token has expired, or is valid again."""
    if connection.status is Status.ACTIVE:
        return connection_event("connection.recovered", connection)
    fields = {"reason": connection.reason, "access_expires_at": connection.access_expires_at}
    return connection_event("connection.needs_reauth", connection, Level.WARNING, told=fields)
