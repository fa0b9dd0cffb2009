"""A door: an application listening at an address, and the quiet end of that."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from aiohttp import web

from amo_callback.errors import ConfigurationError
from amo_callback.web.acceptor import Acceptor
from amo_callback.web.client_connections import WAITS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import Unpack

    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.web.client_connections import ClientConnections, Wait, Waits

UNIX = "unix:"
MAX_LINE = 32 * 1024
"""Bytes of a request line: a callback of AMO's has some 900, a hostile one gets an answer of ours up to here."""
_BACKLOG = 4096
"""Connections that wait in the kernel: what is not accepted uses no descriptor."""
_ACCEPTED = 0.25
"""Seconds for which what was accepted before the listener closed may still arrive."""
_SHUTDOWN_TIMEOUT = 8.0
_LINGERING = 1.0
"""Seconds for which a body that was refused is still read, so that the client sees the answer."""
_SERVER = "amo-callback"
"""Instead of aiohttp's, which tells versions."""


@asynccontextmanager
async def open_door(
    app: web.Application,
    address: str,
    *,
    name: str,
    clock: Clock,
    log: FilteringBoundLogger,
    listeners: Sequence[socket.socket] = (),
    **limits: Unpack[Limits],
) -> AsyncIterator[Door]:
    """Serve `app` at `address` (`host:port`, `unix:/path`) until the end of the block, or of `Door.close`.

    Where there are `listeners`, that somebody else has opened and keeps open, it is served there instead.
    """
    door = Door(app, name=name, clock=clock, log=log, **limits)
    try:
        await door.open(address, listeners)
        yield door
    finally:
        await door.close()


class Limits(TypedDict, total=False):
    """What a listener may be given besides."""

    socket_mode: int
    """Who may connect to a Unix socket: 0o660 where it is not given."""
    max_connections: int
    """The connections that may be open at once: 1,000 where it is not given."""
    waits: Waits
    closed: Callable[[str], None]
    """Called with the reason of each connection that is closed because of a limit."""


class Door:
    """An application that listens.

    Closing it, the listener goes first; what was accepted is answered, and connections are told to close.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        name: str,
        clock: Clock,
        log: FilteringBoundLogger,
        socket_mode: int = 0o660,
        max_connections: int = 1000,
        waits: Waits = WAITS,
        closed: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._name = name
        self._socket_mode = socket_mode
        self._clock = clock
        self._draining = False
        self._listeners: Sequence[socket.socket] = ()
        self._ours = False
        self._closed = asyncio.Lock()
        app.on_response_prepare.append(self._prepare)
        self._acceptor = Acceptor(name, max_connections, waits=waits, clock=clock, log=log, closed=closed)
        self._runner = _Runner(
            app,
            access_log=None,
            logger=_ParserLog(log, name),
            max_line_size=MAX_LINE,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
            lingering_time=_LINGERING,
            connections=self._acceptor.connections,
            waits=waits,
        )

    @property
    def connection_count(self) -> int:
        """Return the number of open connections."""
        return len(self._acceptor.connections)

    async def open(self, address: str, handed_over: Sequence[socket.socket] = ()) -> None:
        """Listen; raises `ConfigurationError`."""
        self._ours = not handed_over
        self._listeners = handed_over or [_listen(address, self._name, mode=self._socket_mode)]
        self.address = _address(self._listeners[0])
        await self._runner.setup()
        self._acceptor.start(self._listeners, cast("_Server", self._runner.server))

    async def close(self) -> None:
        """Drain and close; a second time does nothing."""
        async with self._closed:
            if not self._listeners:
                return
            self._draining = True
            if self._ours:
                _remove_socket(self._listeners[0])
            self._acceptor.stop()
            for listener in self._listeners:
                listener.close()  # of one that was handed over this is our copy: the next process takes it from there
            await self._clock.sleep(_ACCEPTED)
            await self._runner.cleanup()
            self._acceptor.close()
            self._listeners = ()

    async def _prepare(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = _SERVER
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
        raise ConfigurationError(f"server.{name}: {address} cannot be listened at: {error.strerror or error}") from None


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Listen at a path that has this mode, over the socket that a killed process has left, but over nothing else."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as other:
            if Path(path).is_socket() and other.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(mode)  # before listen(): nobody can connect yet
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_socket(listener: socket.socket) -> None:
    """Take our socket's name away while it still listens: afterwards it may be a successor's."""
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return UNIX + name
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _ParserLog:
    """What aiohttp's parser logs, without text and trace: they quote the request line, and that may hold a code."""

    def __init__(self, log: FilteringBoundLogger, door: str) -> None:
        self._log = log
        self._door = door

    def debug(self, *_: object, **__: object) -> None:
        """Drop what is noise."""

    def warning(self, *_: object, exc_info: object = None, **__: object) -> None:
        """Note that something was odd; anybody can bring it about, so it is no warning."""
        if isinstance(exc_info, ConnectionError):
            return  # the client has gone, or was too slow: nothing is wrong with its request
        self._log.info("http.bad_request", door=self._door, error=type(exc_info).__name__)

    exception = error = warning


class _RequestHandler(web.RequestHandler):
    """aiohttp's handler, but what the parser refuses is not sent back, and each wait for the client is noted."""

    __slots__ = ("_answering", "_connections", "_next_has_begun", "_socket", "_wait", "_waits")

    def __init__(
        self,
        manager: web.Server,
        *,
        connections: ClientConnections,
        waits: Waits,
        **options: Any,  # noqa: ANN401 -- because they are aiohttp's
    ) -> None:
        super().__init__(manager, **options)
        self._connections = connections
        self._waits = waits
        self._wait: Wait | None = None
        self._answering = False
        self._next_has_begun = False
        self._socket: asyncio.Transport | None = None

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is not in the socket's buffer yet."""
        return self._socket is not None and self._socket.get_write_buffer_size() > 0

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._socket is not None:
            self._socket.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._socket = self.transport
        self._note(self._waits.request)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._connections.remove(self)

    def data_received(self, data: bytes) -> None:
        """Limit the time for the rest of a request once its first bytes are there."""
        wait = self._wait
        super().data_received(data)
        if self._messages or not data:
            return  # a complete head: it is answered next
        if wait is self._waits.next_request:
            self._note(self._waits.request)
        elif wait is not self._waits.request:
            self._next_has_begun = True

    def pause_writing(self) -> None:
        """Wait until the client reads its answer."""
        super().pause_writing()
        self._note(self._waits.answer)

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self._note(None if self._answering else self._waits.next_request)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answer a request whose head is complete, and then wait for the next one."""
        self._answering, self._next_has_begun = True, False
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

    def _note(self, wait: Wait | None) -> None:
        self._wait = wait
        self._connections.wait(self, wait)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- because it quotes the request line
    ) -> web.StreamResponse:
        """Answer with the status alone."""
        answer = super().handle_error(request, status, exc, f"{status}: this request cannot be read\n")
        answer.headers.update({"Cache-Control": "no-store", "Server": _SERVER})
        return answer


class _Server(web.Server):
    def __call__(self) -> _RequestHandler:
        return _RequestHandler(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """aiohttp's runner with our handler: there is no option for it (a test holds on to the behaviour)."""

    async def _make_server(self) -> web.Server:
        server: Any = await super()._make_server()
        made = server._loop, server._kwargs  # noqa: SLF001 -- because they are what the runner was given
        return _Server(server.request_handler, request_factory=server.request_factory, loop=made[0], **made[1])
