"""Limits of the serving process: shutdown time and open files."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError
from amo_callback.events import Event, Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.refresh.pending_writes import PendingWrites

_LONGEST = 600.0
"""The maximum shutdown delay, in seconds, while a pair may exist only in memory."""
_REPORT_EVERY = 10.0
_STEP = 0.1
_RESERVE = 200
"""File descriptors reserved for everything other than clients: requests to AMO, the database, rescue files, the log."""
_UNSAFE = "a token pair is only in memory, so the process keeps running: make the database or rescue folder writable"
_FEWEST = 8
_LISTENERS = 2


class Deadline:
    """A shutdown deadline, which ends the process `seconds` after `begin`.

    A pair that may exist only in memory delays the exit until it is in the store or in a rescue file, for at most ten
    minutes. The connection of a pair held only in memory is logged every ten seconds. Nothing else delays the exit, not
    even an unresponsive resolver, store or client.
    """

    def __init__(self, *, seconds: float, clock: Clock, observer: Observer, leave: Callable[[int], None]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._observer = observer
        self._leave = leave
        self._waiting: asyncio.Task[None] | None = None
        self.pending_writes: PendingWrites | None = None
        """The service's pending writes; `None` until the service has started."""

    def begin(self, status: int) -> None:
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._wait(status), name="deadline")

    def end(self) -> None:
        """Cancel the deadline; called once everything is closed."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def _wait(self, status: int) -> None:
        began = reported = self._clock.monotonic()
        while (passed := self._clock.monotonic() - began) < self._seconds or self._at_risk():
            if passed > _LONGEST:
                self._report(
                    "pair.lost", "the pair was neither stored nor written to a rescue file: connect the account again"
                )
                status = 1
                break
            if self._clock.monotonic() - reported >= _REPORT_EVERY:
                reported = self._clock.monotonic()
                self._report("pair.unsafe", _UNSAFE)
            await self._clock.sleep(_STEP)
        fields = {"status": status, "text": "some resources were not closed in time"}
        self._observer(Event(name="service.stopped", level=Level.WARNING, fields=fields))
        self._leave(status)

    def _at_risk(self) -> bool:
        return self.pending_writes is not None and self.pending_writes.at_risk

    def _report(self, name: str, text: str) -> None:
        for connection_id in () if self.pending_writes is None else self.pending_writes.unsafe:
            self._observer(Event(name=name, level=Level.ERROR, connection_id=connection_id, fields={"text": text}))


# --- open files ----------------------------------------------------------------------------------


def fit_connections(wanted: int, log: FilteringBoundLogger) -> int:
    """Return the maximum number of clients per listener; raise the limit on open files if necessary and possible.

    Raises `ConfigurationError` if the limit allows neither `wanted` nor eight clients.
    """
    needed = _LISTENERS * wanted + _RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number(soft) < needed and soft != hard:
        with suppress(OSError, ValueError):  # some systems reject a soft limit equal to the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before, limit = _number(soft), _number(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if limit > before:
        log.info("descriptors.raised", before=before, limit=limit)
    fitting = min(wanted, (limit - _RESERVE) // _LISTENERS)
    if fitting < min(wanted, _FEWEST):
        raise ConfigurationError(
            f"the limit on open files is {limit}, but the service requires at least "
            f"{_RESERVE + _LISTENERS * min(wanted, _FEWEST)}: raise LimitNOFILE= in the unit, or `ulimit -n`"
        )
    if fitting < wanted:
        log.warning(
            "descriptors.low",
            limit=limit,
            max_connections=fitting,
            text=f"the limit on open files is too low for server.max_connections = {wanted} on each listener: raise "
            f"LimitNOFILE= in the unit (or `ulimit -n`) to {needed}, or lower server.max_connections",
        )
    return fitting


def _number(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
