"""Events, and their forms in the log, in the history, and in webhooks.

`webhooks` describes what another notification channel requires.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from amo_callback.errors import AmoCallbackError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from datetime import datetime

    from amo_callback.clock import Clock
    from amo_callback.model import Connection


REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the current request, added to each of its log lines."""


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An event: a dotted name, a connection, and fields without secrets."""

    name: str
    level: Level = Level.INFO
    connection_id: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    error: BaseException | None = None
    """The exception of a bug; its traceback is logged."""


Observer = Callable[[Event], None]
"""Receives events for the log and the metrics; must not raise."""


def connection_event(
    name: str, connection: Connection, level: Level = Level.INFO, *, fields: Mapping[str, object] | None = None
) -> Event:
    """Return an event for a connection; fields that are `None` are omitted."""
    known = {key: value for key, value in (fields or {}).items() if value is not None}
    return Event(name=name, level=level, connection_id=connection.id, fields={"domain": connection.domain, **known})


def failure_event(name: str, error: Exception, *, details: bool = True) -> Event:
    """Return the event for a failure; an exception other than `AmoCallbackError` is reported as a bug.

    The event of an `AmoCallbackError` contains the error's fields or, if `details` is false, only its code.
    """
    if isinstance(error, AmoCallbackError):
        return Event(name=name, level=Level.ERROR, fields=error.fields if details else {"error": error.code})
    return Event(name=name, level=Level.ERROR, error=error)


def report_bug(name: str, task: asyncio.Task[Any], observer: Observer, *, connection_id: str | None = None) -> None:
    """Report the exception of a task that may no longer be awaited; ignore an `AmoCallbackError`."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, AmoCallbackError):
        observer(Event(name=name, level=Level.ERROR, connection_id=connection_id, error=error))


class Outage:
    """A record of a loop's consecutive failed rounds; `loop` is the prefix of the event names."""

    def __init__(self, loop: str, *, clock: Clock, observer: Observer) -> None:
        self._loop = loop
        self._clock = clock
        self._observer = observer
        self._since = 0.0
        self._rounds = 0
        self._kinds: set[str] = set()

    @property
    def failed_for(self) -> float:
        """Seconds for which every round has failed; 0 if the last one succeeded."""
        return self._clock.monotonic() - self._since if self._rounds else 0.0

    def failed(self, error: Exception, *, details: bool = True) -> None:
        """Record a failed round, and log the first error of each kind."""
        if not self._rounds:
            self._since = self._clock.monotonic()
        self._rounds += 1
        kind = _kind(error)
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._observer(failure_event(f"{self._loop}.failed", error, details=details))

    def worked(self) -> None:
        """Record a successful round, and log the end of an outage."""
        if not self._rounds:
            return
        seconds = round(self._clock.monotonic() - self._since, 1)
        fields = {"failed_for_seconds": seconds, "failed_rounds": self._rounds}
        self._rounds = 0
        self._kinds.clear()
        self._observer(Event(name=f"{self._loop}.recovered", fields=fields))


def _kind(error: Exception) -> str:
    """Return the code of an `AmoCallbackError`; for a bug, its type and location."""
    if isinstance(error, AmoCallbackError):
        return error.code
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} {place}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvent:
    """An event in the history."""

    id: int
    at: datetime
    connection_id: str | None
    name: str
    process: str
    details: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedWebhook:
    """A row of the table `webhooks`: an event to deliver."""

    number: int
    """The webhook's position in the queue."""
    id: str
    at: datetime
    type: str
    connection_id: str
    data: Mapping[str, object]
    tries: int = 0
    next_try_at: datetime
    last_error: str | None = None
    """The reason why the last delivery failed: a short code, or the receiver's HTTP status."""
    dead_lettered_at: datetime | None = None
    """The time at which the webhook was dead-lettered; the webhook is kept and can be retried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedDelivery:
    id: str
    lease: str
    """The lease of the delivery; the failure is not recorded if the webhook now has another lease."""
    error: str
    next_try_at: datetime | None
    """The time of the next delivery; `None` if the webhook is dead-lettered."""


WEBHOOK_EVENTS = frozenset(
    {
        "connection.connected",
        "connection.needs_reauth",
        "connection.recovered",
        "connection.expiring",
        "connection.moved",
        "connection.disconnected",
    }
)
"""The events that are delivered by webhooks, each stored in the same transaction as the change that it reports."""
