"""HTTP listeners: aiohttp's server with time limits and graceful shutdown.

Neither log lines nor responses quote a malformed request, which may contain an authorization code.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aiohttp import EMPTY_PAYLOAD, web

from amo_callback.errors import CommandFailed, ConfigurationError
from amo_callback.web.client_connections import Acceptor, ListenerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.web.client_connections import Client, ClientConnections, ClientWait, Waits

SERVER = "amo-callback"
"""The `Server` header; aiohttp's default would reveal version numbers."""
UNIX = "unix:"
MAX_LINE = 32 * 1024
"""The maximum length of a request line in bytes; AMO's callback needs about 900."""
_BACKLOG = 4096
"""The maximum number of connections queued in the kernel, where they use no file descriptor."""
_ARRIVAL = 0.25
"""Seconds for which the listener waits for requests on accepted connections after closing its sockets."""
_SHUTDOWN_TIMEOUT = 8.0
_LINGERING = 1.0
"""Seconds for which the body of a rejected request is read, so that the client receives the response."""
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
    """Serve `app` at `address` (`host:port`, `unix:/path`), or on inherited `sockets`.

    Raises `CommandFailed` if the address is in use, and `ConfigurationError` if listening fails for another reason. On
    exit, or on `HttpListener.close`, requests in progress are answered.
    """
    listener = HttpListener(app, name=name, clock=clock, log=log, options=options)
    try:
        await listener.open(address, sockets)
        yield listener
    finally:
        await listener.close()


class HttpListener:
    """An HTTP listener with a graceful shutdown.

    On shutdown, its sockets are closed first; requests on accepted connections are then answered with
    `Connection: close`.
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
        """Listen; raises `CommandFailed` if the address is in use, and `ConfigurationError` if it cannot be used."""
        self._is_ours = not inherited
        self._sockets = inherited or [_listen(address, self._name, mode=self._socket_mode)]
        self.address = _address(self._sockets[0])
        await self._runner.setup()
        self._acceptor.start(self._sockets, cast("Callable[[], Client]", self._runner.server))

    async def close(self) -> None:
        """Finish the requests in progress, and close; further calls do nothing."""
        async with self._closed:
            if not self._sockets:
                return
            self._draining = True
            if self._is_ours:
                _remove_socket(self._sockets[0])
            self._acceptor.stop()
            for listening in self._sockets:
                listening.close()  # systemd keeps an inherited socket open for the next process
            await self._clock.sleep(_ARRIVAL)
            await self._runner.cleanup()
            self._acceptor.close()
            self._sockets = ()

    async def _prepare(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER
        if self._draining:
            response.force_close()
            response.headers["Connection"] = "close"  # force_close() does not send the header


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
        # After `CommandFailed`, systemd restarts the service, and the process at this address may exit in the meantime.
        failed = CommandFailed if is_in_use else ConfigurationError
        raise failed(f"server.{name}: cannot listen on {address}: {error.strerror or error}") from None


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Listen at a path; replace an existing socket only if no process listens on it."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as other:
            if Path(path).is_socket() and other.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(mode)  # before listen(), so that no client can connect before the mode is set
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_socket(listener: socket.socket) -> None:
    """Remove the path of a socket that is still open; after the socket is closed, another process may use the path."""
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return UNIX + name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ParserLog:
    """A log for aiohttp's parser, without messages and tracebacks, which may quote an authorization code."""

    def __init__(self, log: FilteringBoundLogger, listener: str) -> None:
        self._log = log
        self._listener = listener

    def debug(self, *_: object, **__: object) -> None: ...

    def warning(self, *_: object, exc_info: object = None, **__: object) -> None:
        """Log the type of the error at level `info`, because any client can cause it."""
        if isinstance(exc_info, ConnectionError):
            return  # the client disconnected or was too slow, but its request was not malformed
        self._log.info("http.bad_request", listener=self._listener, error=type(exc_info).__name__)

    exception = error = warning


class RequestHandler(web.RequestHandler):
    """aiohttp's request handler with time limits for the client; it never quotes a malformed request."""

    __slots__ = ("_answering", "_connections", "_next_has_begun", "_socket", "_wait", "_waits")

    def __init__(
        self,
        manager: web.Server,
        *,
        connections: ClientConnections,
        waits: Waits,
        **options: Any,  # noqa: ANN401 -- aiohttp's options
    ) -> None:
        super().__init__(manager, **options)
        self._connections = connections
        self._waits = waits
        self._wait: ClientWait | None = None
        self._answering = False
        self._next_has_begun = False
        self._socket: asyncio.Transport | None = None

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether part of a response has not been written to the socket yet."""
        return self._socket is not None and self._socket.get_write_buffer_size() > 0

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limit for the first request."""
        super().connection_made(transport)
        self._socket = self.transport
        self._note(self._waits.request)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connections.remove(self)

    def data_received(self, data: bytes) -> None:
        """Start the time limit for a request when its first bytes arrive."""
        wait = self._wait
        super().data_received(data)
        if self._messages:  # the head is complete, so the request is handled next
            _, payload = self._messages[-1]
            self._next_has_begun = payload is EMPTY_PAYLOAD and not data.endswith(b"\r\n\r\n")
            return
        if not data:
            return
        if wait is self._waits.next_request:
            self._note(self._waits.request)
        elif wait is not self._waits.request:
            self._next_has_begun = True

    def pause_writing(self) -> None:
        """Start the time limit for reading a response."""
        super().pause_writing()
        self._note(self._waits.answer)

    def resume_writing(self) -> None:
        """End the time limit for reading a response; after a complete response, start the next request's limit."""
        super().resume_writing()
        self._note(None if self._answering else self._waits.next_request)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answer a request whose head is complete, then start the time limit for the next request."""
        self._answering = True
        if request.content.is_eof():
            self._note(None)
        else:
            self._note(self._waits.request)
            request.content.on_eof(self._request_is_complete)
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self._answering = False
            if not self.writing_paused:
                self._note(self._waits.request if self._next_has_begun else self._waits.next_request)

    def _request_is_complete(self) -> None:
        if self._answering and self._wait is self._waits.request:
            self._note(None)

    def _note(self, wait: ClientWait | None) -> None:
        self._wait = wait
        self._connections.wait(self, wait)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- the message quotes the request line
    ) -> web.StreamResponse:
        """Respond with the status and a fixed text."""
        answer = super().handle_error(request, status, exc, f"{status}: malformed request\n")
        answer.headers.update({"Cache-Control": "no-store", "Server": SERVER})
        return answer


class _HttpServer(web.Server):
    def __call__(self) -> RequestHandler:
        return RequestHandler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner with `RequestHandler`; a test checks this override, because aiohttp has no option for it."""

    async def _make_server(self) -> web.Server:
        server: Any = await super()._make_server()
        made = server._loop, server._kwargs  # noqa: SLF001 -- the arguments of the runner
        return _HttpServer(server.request_handler, request_factory=server.request_factory, loop=made[0], **made[1])
