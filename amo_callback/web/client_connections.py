"""The client connections of one listener: their number, and how long each client may keep the listener waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONNECTIONS = "max_connections"
"""The reason why a connection is closed in favour of a newer one."""
_STALLED = 1.0
"""Seconds within which a client takes the end of an answer; after that its connection may be closed for another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Something that a client has to do."""

    reason: str
    """The reason why its connection is closed where it does not."""
    seconds: float
    """The time it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """Everything that a client may have to do."""

    request: Wait = Wait(reason="incomplete_request", seconds=10.0)
    """Send a request's head; then its body, in as much time again."""
    next_request: Wait = Wait(reason="idle", seconds=75.0)
    """Begin another request."""
    answer: Wait = Wait(reason="unread_answer", seconds=30.0)
    """Read an answer that no longer fits into the socket's buffers."""

    @property
    def shortest(self) -> float:
        """The shortest time of them, in seconds."""
        return min(self.request.seconds, self.next_request.seconds, self.answer.seconds)


WAITS = Waits()


class Client(Protocol):
    """A connection to a client."""

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is not in the socket's buffer yet."""

    def abort(self) -> None:
        """Close the connection immediately."""


class _Waiting(NamedTuple):
    reason: str
    since: float
    """When the last complete request was answered, or the connection accepted."""
    until: float


class ClientConnections:
    """The open connections, at most `limit`, and which of them wait for their client.

    Times are seconds of `now`. `closed` receives the reason of each connection that is closed here; `removed` is called
    when a connection has gone, whoever closed it.
    """

    def __init__(
        self,
        limit: int,
        *,
        now: Callable[[], float],
        closed: Callable[[str], None],
        removed: Callable[[], None],
    ) -> None:
        self._limit = limit
        self._now = now
        self._closed = closed
        self._removed = removed
        self._open: set[Client] = set()
        self._waiting: dict[Client, _Waiting] = {}  # in the order in which they began to wait

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    @property
    def is_full(self) -> bool:
        """Whether no other connection may be accepted."""
        return len(self._open) >= self._limit

    def add(self, client: Client) -> None:
        """Count an accepted connection."""
        self._open.add(client)

    def remove(self, client: Client) -> None:
        """Forget a connection that has gone."""
        if client in self._open:
            self._open.discard(client)
            self._waiting.pop(client, None)
            self._removed()

    def wait(self, client: Client, wait: Wait | None) -> None:
        """Note what a client has to do; `None`: its request is complete, and nothing limits the answer."""
        if wait is None:
            self._waiting.pop(client, None)
        elif client in self._open:
            now = self._now()
            known = self._waiting.get(client)
            self._waiting[client] = _Waiting(wait.reason, now if known is None else known.since, now + wait.seconds)

    def make_room(self) -> None:
        """Close the connection that has waited longest for its client, unless every connection is being answered."""
        latest = self._now() - _STALLED
        for client, waiting in self._waiting.items():
            if waiting.since <= latest or not client.has_unsent_bytes:
                self._close(client, MAX_CONNECTIONS)
                return

    def close_overdue(self) -> None:
        """Close the connections whose clients have had their time."""
        now = self._now()
        for client, waiting in [*self._waiting.items()]:
            if waiting.until <= now:
                self._close(client, waiting.reason)

    def _close(self, client: Client, reason: str) -> None:
        del self._waiting[client]
        self._closed(reason)
        client.abort()
