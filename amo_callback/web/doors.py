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
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

    from amo_callback.ports import Clock

UNIX = "unix:"
MAX_LINE = 32 * 1024
"""Bytes of a request line: a callback of AMO's has some 900, a hostile one gets an answer of ours up to here."""
_BACKLOG = 4096
_ACCEPTED = 0.25
"""Seconds for which what was accepted before the listener closed may still arrive."""
_SHUTDOWN_TIMEOUT = 8.0


@asynccontextmanager
async def open_door(
    app: web.Application, address: str, *, name: str, clock: Clock, log: FilteringBoundLogger
) -> AsyncIterator[str]:
    """Serve `app` at `address` (`host:port`, `unix:/path`), and yield the address it got.

    At the end the listener closes first, what was accepted is answered, and connections are told to close.
    """
    draining = asyncio.Event()

    async def say_goodbye(_request: web.Request, response: web.StreamResponse) -> None:
        if draining.is_set():
            response.force_close()
            response.headers["Connection"] = "close"  # force_close() alone does not send it

    app.on_response_prepare.append(say_goodbye)
    runner = _Runner(
        app,
        access_log=None,
        logger=_ParserLog(log, name),
        max_line_size=MAX_LINE,
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_TIMEOUT,
    )
    listener = _listen(address, name)
    try:
        await runner.setup()
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        yield _address(listener)
        draining.set()
        for site in list(runner.sites):
            await site.stop()
        await clock.sleep(_ACCEPTED)
    finally:
        await runner.cleanup()
        listener.close()
        _remove_socket(address)


def _listen(address: str, name: str) -> socket.socket:
    try:
        if address.startswith(UNIX):
            return _listen_unix(address.removeprefix(UNIX))
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"server.{name}: {address} cannot be listened at: {error.strerror}") from None


def _listen_unix(path: str) -> socket.socket:
    """Listen at a path, over what a killed process has left there, but not over a living one."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as other:
            if other.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_socket(address: str) -> None:
    if address.startswith(UNIX):
        Path(address.removeprefix(UNIX)).unlink(missing_ok=True)


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
        """Note that something was odd."""
        self._log.warning("http.bad_request", door=self._door, error=type(exc_info).__name__)

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
        answer.headers["Cache-Control"] = "no-store"
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
