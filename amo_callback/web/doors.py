"""A door: an application listening at an address, and the quiet end of that."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from amo_callback.ports import Clock

UNIX = "unix:"
MAX_LINE = 32 * 1024
"""Bytes of a request line: a callback of AMO's has some 900, a hostile one gets an answer of ours up to here."""
_BACKLOG = 4096
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
) -> AsyncIterator[Door]:
    """Serve `app` at `address` (`host:port`, `unix:/path`) until the end of the block, or of `Door.close`.

    Where there are `listeners`, that somebody else has opened and keeps open, it is served there instead.
    """
    door = Door(app, name=name, clock=clock, log=log)
    try:
        await door.open(address, listeners)
        yield door
    finally:
        await door.close()


class Door:
    """An application that listens.

    Closing it, the listener goes first; what was accepted is answered, and connections are told to close.
    """

    def __init__(self, app: web.Application, *, name: str, clock: Clock, log: FilteringBoundLogger) -> None:
        self._name = name
        self._clock = clock
        self._draining = False
        self._listeners: Sequence[socket.socket] = ()
        self._ours = False
        self._closed = asyncio.Lock()
        app.on_response_prepare.append(self._prepare)
        self._runner = _Runner(
            app,
            access_log=None,
            logger=_ParserLog(log, name),
            max_line_size=MAX_LINE,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
            lingering_time=_LINGERING,
        )

    async def open(self, address: str, handed_over: Sequence[socket.socket] = ()) -> None:
        """Listen; raises `ConfigurationError`."""
        self._ours = not handed_over
        self._listeners = handed_over or [_listen(address, self._name)]
        self.address = _address(self._listeners[0])
        await self._runner.setup()
        for listener in self._listeners:
            await web.SockSite(self._runner, listener, backlog=_BACKLOG).start()

    async def close(self) -> None:
        """Drain and close; a second time does nothing."""
        async with self._closed:
            if not self._listeners:
                return
            self._draining = True
            if self._ours:
                _remove_socket(self._listeners[0])
            for site in list(self._runner.sites):
                await site.stop()
            await self._clock.sleep(_ACCEPTED)
            await self._runner.cleanup()
            for listener in self._listeners:
                listener.close()  # of one that was handed over this is our copy: the next process takes it from there
            self._listeners = ()

    async def _prepare(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = _SERVER
        if self._draining:
            response.force_close()
            response.headers["Connection"] = "close"  # force_close() alone does not send it


def _listen(address: str, name: str) -> socket.socket:
    try:
        if address.startswith(UNIX):
            return _listen_unix(address.removeprefix(UNIX))
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"server.{name}: {address} cannot be listened at: {error.strerror or error}") from None


def _listen_unix(path: str) -> socket.socket:
    """Listen at a path, over the socket that a killed process has left there, but over nothing else."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as other:
            if Path(path).is_socket() and other.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
        listener.bind(path)
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
        self._log.info("http.bad_request", door=self._door, error=type(exc_info).__name__)

    exception = error = warning


class _RequestHandler(web.RequestHandler):
    """aiohttp's handler, but what the parser refuses is not sent back."""

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
    def __call__(self) -> web.RequestHandler:
        return _RequestHandler(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """aiohttp's runner with our handler: there is no option for it (a test holds on to the behaviour)."""

    async def _make_server(self) -> web.Server:
        server: Any = await super()._make_server()
        made = server._loop, server._kwargs  # noqa: SLF001 -- because they are what the runner was given
        return _Server(server.request_handler, request_factory=server.request_factory, loop=made[0], **made[1])
