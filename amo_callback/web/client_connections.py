"""The client connections of one listener, with limits on their number and on the time that a client may take.

The servers of asyncio and uvloop accept connections without limit. When no file descriptor is left, they stop accepting
or drop clients.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from amo_callback.web.access_log import LogThrottle

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock

MAX_CONNECTIONS = "max_connections"
"""The reason for closing a connection to make room for a newer connection."""
_TICK = 1.0
"""The maximum number of seconds between two checks of the time limits. A check also ends a pause in accepting."""
_FULL = (
    "too many clients are connected: for each new client, the connection that has been idle longest is closed; see "
    "server.max_connections"
)
_SLOW = "connections were closed, because their clients did not send a request or read a response in time"
_STALLED = 1.0
"""Seconds allowed for reading the rest of a response; after that, `make_room` may close the client's connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientWait:
    """An action that a client must take within a time limit."""

    reason: str
    """The reason for closing a connection that exceeds the limit."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    request: ClientWait = ClientWait(reason="incomplete_request", seconds=10.0)
    """The limit for sending the head of a request; the same limit then applies to its body."""
    next_request: ClientWait = ClientWait(reason="idle", seconds=75.0)
    """The limit for beginning another request."""
    answer: ClientWait = ClientWait(reason="unread_answer", seconds=30.0)
    """The limit for reading a response that does not fit into the socket's buffers."""

    @property
    def shortest(self) -> float:
        return min(self.request.seconds, self.next_request.seconds, self.answer.seconds)


WAITS = Waits()


def _ignore(_reason: str) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenerOptions:
    socket_mode: int = 0o660
    """The file mode of a Unix socket."""
    max_connections: int = 1000
    waits: Waits = WAITS
    closed: Callable[[str], None] = _ignore
    """Called with the reason whenever a connection is closed because of a limit."""


class Client(Protocol):
    @property
    def has_unsent_bytes(self) -> bool:
        """Whether part of a response has not been written to the socket yet."""

    def abort(self) -> None: ...


class _Waiting(NamedTuple):
    reason: str
    since: float
    """When the connection began to wait for its client."""
    until: float


class ClientConnections:
    """The open connections, at most `limit`, and the time limits of those that wait for their client.

    `now` returns the time in seconds. `closed` is called with the reason when this object closes a connection.
    `removed` is called when a connection has ended, regardless of which side closed it.
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
        return len(self._open)

    @property
    def is_full(self) -> bool:
        return len(self._open) >= self._limit

    def add(self, client: Client) -> None:
        self._open.add(client)

    def remove(self, client: Client) -> None:
        if client in self._open:
            self._open.discard(client)
            self._waiting.pop(client, None)
            self._removed()

    def wait(self, client: Client, wait: ClientWait | None) -> None:
        """Set a client's time limit; `None` removes it while a response is prepared, because that has no limit."""
        if wait is None:
            self._waiting.pop(client, None)
        elif client in self._open:
            now = self._now()
            known = self._waiting.get(client)
            self._waiting[client] = _Waiting(wait.reason, now if known is None else known.since, now + wait.seconds)

    def make_room(self) -> None:
        """Close the connection that has waited longest for its client; keep connections that are being answered."""
        latest = self._now() - _STALLED
        for client, waiting in self._waiting.items():
            if waiting.since <= latest or not client.has_unsent_bytes:
                self._close(client, MAX_CONNECTIONS)
                return

    def close_overdue(self) -> None:
        now = self._now()
        for client, waiting in [*self._waiting.items()]:
            if waiting.until <= now:
                self._close(client, waiting.reason)

    def _close(self, client: Client, reason: str) -> None:
        del self._waiting[client]
        self._closed(reason)
        client.abort()


class Acceptor:
    """Accepts the connections of one listener on one or more sockets, and closes those that exceed a time limit."""

    def __init__(self, name: str, options: ListenerOptions, *, clock: Clock, log: FilteringBoundLogger) -> None:
        self._loop = asyncio.get_running_loop()
        self.connections = ClientConnections(
            options.max_connections, now=self._loop.time, closed=self._report, removed=self._resume
        )
        self._waits = options.waits
        self._closed = options.closed
        self._last_error = ""
        self._full, self._slow, self._failed = (
            LogThrottle(write, clock=clock)
            for write in (
                lambda count: log.warning(
                    "http.connections_full",
                    listener=name,
                    max_connections=options.max_connections,
                    count=count,
                    text=_FULL,
                ),
                lambda count: log.info("http.clients_slow", listener=name, count=count, text=_SLOW),
                lambda count: log.error("http.accept_failed", listener=name, error=self._last_error, count=count),
            )
        )
        self._listeners: Sequence[socket.socket] = ()
        self._accepting = False
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, listeners: Sequence[socket.socket], make_client: Callable[[], Client]) -> None:
        """Start accepting connections and enforcing time limits; `make_client` creates the protocol of a connection."""
        self._make_client = make_client
        self._listeners = listeners
        for listener in listeners:
            listener.setblocking(False)  # noqa: FBT003 -- `setblocking` takes no keyword arguments
        self._tick()

    def stop(self) -> None:
        """Stop accepting connections; the time limits of open connections are still enforced."""
        self._pause()
        self._listeners = ()

    def close(self) -> None:
        """Stop enforcing time limits, and log the events counted since the last log lines."""
        if self._timer is not None:
            self._timer.cancel()
        for line in (self._full, self._slow, self._failed):
            line.close()

    def _tick(self) -> None:
        self.connections.close_overdue()
        self._resume()
        self._timer = self._loop.call_later(min(_TICK, self._waits.shortest / 4), self._tick)

    def _resume(self) -> None:
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        """Stop accepting connections until a connection ends or until the next tick."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection; the event loop handles earlier clients before it accepts the next connection."""
        if self.connections.is_full:
            self._full.count()
            self.connections.make_room()
            self._pause()
            return
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no file descriptor or memory is left
            self._last_error = str(error.strerror)
            self._failed.count()
            self.connections.make_room()
            self._pause()
            return
        client = self._make_client()
        self.connections.add(client)
        task = self._loop.create_task(self._connect(client, accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: Client, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: cast("asyncio.Protocol", client), accepted)
        except OSError:  # the client has already disconnected
            accepted.close()
            self.connections.remove(client)

    def _report(self, reason: str) -> None:
        self._closed(reason)
        if reason in {self._waits.request.reason, self._waits.answer.reason}:
            self._slow.count()
