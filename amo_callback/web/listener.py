"""HTTP listeners: bounded accepting, time limits and a graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amo_callback.errors import CommandFailed, ConfigurationError
from amo_callback.web.client_connections import Acceptor, ListenerOptions
from amo_callback.web.request_handler import SERVER, ParserLog, Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aiohttp import web
    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.web.client_connections import Client

UNIX = "unix:"
MAX_LINE = 32 * 1024
"""Bytes of a request line: AMO's callback has some 900; a longer hostile one is answered by our handler up to here."""
_BACKLOG = 4096
"""Connections that wait in the kernel: before they are accepted they use no descriptor."""
_ARRIVAL = 0.25
"""Seconds for which requests of connections accepted before the listener closed may still arrive."""
_SHUTDOWN_TIMEOUT = 8.0
_LINGERING = 1.0
"""Seconds for which a refused body is still read, so that the client sees the answer."""
_DEFAULTS = ListenerOptions()


@asynccontextmanager
async def open_listener(
    app: web.Application,
    address: str,
    *,
    name: str,
    clock: Clock,
    log: FilteringBoundLogger,
    sockets: Sequence[socket.socket] = (),
    options: ListenerOptions = _DEFAULTS,
) -> AsyncIterator[HttpListener]:
    """Serve `app` at `address` (`host:port`, `unix:/path`), or on `sockets` that another process has opened.

    Raises `ConfigurationError`. At the end of the block, or with `HttpListener.close`, requests in flight are answered.
    """
    listener = HttpListener(app, name=name, clock=clock, log=log, options=options)
    try:
        await listener.open(address, sockets)
        yield listener
    finally:
        await listener.close()


class HttpListener:
    """An HTTP listener with graceful shutdown.

    Closing it, the sockets close first; accepted requests are answered, with `Connection: close`.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        name: str,
        clock: Clock,
        log: FilteringBoundLogger,
        options: ListenerOptions = _DEFAULTS,
    ) -> None:
        self._name = name
        self._socket_mode = options.socket_mode
        self._clock = clock
        self._draining = False
        self._sockets: Sequence[socket.socket] = ()
        self._is_ours = False
        self._closed = asyncio.Lock()
        app.on_response_prepare.append(self._prepare)
        self._acceptor = Acceptor(name, options, clock=clock, log=log)
        self._runner = Runner(
            app,
            access_log=None,
            logger=ParserLog(log, name),
            max_line_size=MAX_LINE,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
            lingering_time=_LINGERING,
            connections=self._acceptor.connections,
            waits=options.waits,
        )

    def count_connections(self) -> int:
        return len(self._acceptor.connections)

    async def open(self, address: str, inherited: Sequence[socket.socket] = ()) -> None:
        """Listen; raises `ConfigurationError`."""
        self._is_ours = not inherited
        self._sockets = inherited or [_listen(address, self._name, mode=self._socket_mode)]
        self.address = _address(self._sockets[0])
        await self._runner.setup()
        self._acceptor.start(self._sockets, cast("Callable[[], Client]", self._runner.server))

    async def close(self) -> None:
        """Drain and close; a second time does nothing."""
        async with self._closed:
            if not self._sockets:
                return
            self._draining = True
            if self._is_ours:
                _remove_socket(self._sockets[0])
            self._acceptor.stop()
            for listening in self._sockets:
                listening.close()  # of an inherited one this is our copy: the next process accepts from there
            await self._clock.sleep(_ARRIVAL)
            await self._runner.cleanup()
            self._acceptor.close()
            self._sockets = ()

    async def _prepare(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER
        if self._draining:
            response.force_close()
            response.headers["Connection"] = "close"  # force_close() alone does not send it


def _listen(address: str, name: str, *, mode: int) -> socket.socket:
    try:
        if address.startswith(UNIX):
            return _listen_unix(address.removeprefix(UNIX), mode)
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        is_in_use = error.errno == errno.EADDRINUSE and not Path(address.removeprefix(UNIX)).is_file()
        failed = CommandFailed if is_in_use else ConfigurationError  # another process may end
        raise failed(f"server.{name}: cannot listen on {address}: {error.strerror or error}") from None


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Listen at a path, with a mode; replace only the socket that a killed process has left there."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as other:
            if Path(path).is_socket() and other.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(mode)  # before listen(): no client can connect yet
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_socket(listener: socket.socket) -> None:
    """Remove our socket's path while it still listens: afterwards it may be another process's."""
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return UNIX + name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
