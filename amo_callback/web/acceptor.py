"""Accepting connections while there is room, so that clients cannot use up the process's descriptors.

asyncio's and uvloop's own servers accept without end, and stop accepting, or drop clients, when no descriptor is left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from amo_callback.web.client_connections import ClientConnections
from amo_callback.web.log_throttle import LogThrottle

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.web.client_connections import Client, Waits

_TICK = 1.0
"""Seconds between two looks at the time limits; also until an accept is tried again that found no room."""
_FULL = (
    "as many clients are connected as may be: for each new one, the connection is closed that has waited longest "
    "without a complete request"
)
_SLOW = "closed: no complete request, or an answer not read, within the time limit"


class Acceptor:
    """Accepts the connections of one listener, on one socket or several, and closes those that take too long."""

    def __init__(
        self,
        name: str,
        max_connections: int,
        *,
        waits: Waits,
        clock: Clock,
        log: FilteringBoundLogger,
        closed: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.connections = ClientConnections(
            max_connections, now=self._loop.time, closed=self._report, removed=self._resume
        )
        self._waits = waits
        self._closed = closed
        self._last_error = ""
        self._full, self._slow, self._failed = (
            LogThrottle(write, clock=clock)
            for write in (
                lambda count: log.warning(
                    "http.connections_full", listener=name, max_connections=max_connections, count=count, text=_FULL
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
        """Give each accepted connection to a protocol of its own, and enforce the time limits."""
        self._make_client = make_client
        self._listeners = listeners
        for listener in listeners:
            listener.setblocking(False)  # noqa: FBT003 -- because it takes no names
        self._tick()

    def stop(self) -> None:
        """Accept no more; what was accepted keeps its time limits."""
        self._pause()
        self._listeners = ()

    def close(self) -> None:
        """Log what is not logged yet; the connections have gone."""
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
        """Accept nothing until a connection has gone, or until the next tick."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection: before the next one, the loop reads what earlier clients have sent."""
        if self.connections.is_full:
            self._full.count()
            self.connections.make_room()
            self._pause()
            return
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # something else has used up the descriptors, or the memory
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
        except OSError:  # it has gone already
            accepted.close()
            self.connections.remove(client)

    def _report(self, reason: str) -> None:
        self._closed(reason)
        if reason in {self._waits.request.reason, self._waits.answer.reason}:
            self._slow.count()
