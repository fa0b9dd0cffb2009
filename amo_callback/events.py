"""Events: as they are logged, as they are stored, and as webhooks."""

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

    from amo_callback.model import Connection


REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that causes what happens, where one does: it stands on each of its log lines."""


class Level(StrEnum):
    """How much an event asks for attention."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened: a dotted noun, a connection, and fields without secrets."""

    name: str
    level: Level = Level.INFO
    connection_id: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    error: BaseException | None = None
    """A bug, whose trace is worth keeping."""


Observer = Callable[[Event], None]
"""Receives events, for the log and the metrics; it must not raise."""


def connection_event(
    name: str, connection: Connection, level: Level = Level.INFO, *, told: Mapping[str, object] | None = None
) -> Event:
    """Return an event of a connection; fields that are `None` are left out."""
    known = {key: value for key, value in (told or {}).items() if value is not None}
    return Event(name=name, level=level, connection_id=connection.id, fields={"domain": connection.domain, **known})


def failure_event(name: str, error: Exception, *, details: bool = True) -> Event:
    """Return the event of a failure: an error of ours with its code and `details`, any other as a bug."""
    if isinstance(error, AmoCallbackError):
        return Event(name=name, level=Level.ERROR, fields=error.fields if details else {"error": error.code})
    return Event(name=name, level=Level.ERROR, error=error)


def report_bug(name: str, task: asyncio.Task[Any], observer: Observer, *, connection_id: str | None = None) -> None:
    """Report what a task has ended with, where that is no error of ours: its callers may be gone."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, AmoCallbackError):
        observer(Event(name=name, level=Level.ERROR, connection_id=connection_id, error=error))


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEvent:
    """An event as the store remembers it."""

    id: int
    at: datetime
    connection_id: str | None
    name: str
    process: str
    """Which process wrote it."""
    details: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedWebhook:
    """A row of the table `webhooks`: a change to report, under an id that stays."""

    number: int
    """Its place in the order in which webhooks came."""
    id: str
    at: datetime
    type: str
    connection_id: str
    data: Mapping[str, object]
    tries: int = 0
    next_try_at: datetime
    last_error: str | None = None
    """Why the last try failed: a word of ours, or the receiver's status."""
    dead_lettered_at: datetime | None = None
    """When it was given up: it is kept, and tried again on request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedDelivery:
    """The result of a failed delivery."""

    id: str
    lease: str
    """The lease of the try: where it has passed to another process, nothing is changed."""
    error: str
    next_try_at: datetime | None
    """`None`: it is dead-lettered."""


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
"""Changes reported to the operator's systems: each has a row in the table `webhooks`, written with the change."""
