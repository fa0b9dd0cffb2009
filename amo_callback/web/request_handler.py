"""aiohttp's request handler, with time limits and without the text of bad requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import EMPTY_PAYLOAD, web

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from amo_callback.web.client_connections import ClientConnections, ClientWait, Waits

SERVER = "amo-callback"
"""The `Server` header; aiohttp's names versions."""


class ParserLog:
    """A log for aiohttp's parser, without text and trace: they quote the request line, which may hold a code."""

    def __init__(self, log: FilteringBoundLogger, listener: str) -> None:
        self._log = log
        self._listener = listener

    def debug(self, *_: object, **__: object) -> None: ...

    def warning(self, *_: object, exc_info: object = None, **__: object) -> None:
        """Log the error's type, at `info`: any client can cause it."""
        if isinstance(exc_info, ConnectionError):
            return  # the client has disconnected, or was too slow: its request is not bad
        self._log.info("http.bad_request", listener=self._listener, error=type(exc_info).__name__)

    exception = error = warning


class RequestHandler(web.RequestHandler):
    """aiohttp's handler, which does not send back what the parser refuses, and reports each wait for the client."""

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
        self._wait: ClientWait | None = None
        self._answering = False
        self._next_has_begun = False
        self._socket: asyncio.Transport | None = None

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether a part of an answer is not in the socket's buffer yet."""
        return self._socket is not None and self._socket.get_write_buffer_size() > 0

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._socket = self.transport
        self._note(self._waits.request)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connections.remove(self)

    def data_received(self, data: bytes) -> None:
        """Limit the time for the rest of a request once its first bytes are there."""
        wait = self._wait
        super().data_received(data)
        if self._messages:  # a complete head: it is answered next
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
        message: str | None = None,  # noqa: ARG002 -- because it quotes the request line
    ) -> web.StreamResponse:
        """Answer with the status alone."""
        answer = super().handle_error(request, status, exc, f"{status}: this request cannot be read\n")
        answer.headers.update({"Cache-Control": "no-store", "Server": SERVER})
        return answer


class _HttpServer(web.Server):
    def __call__(self) -> RequestHandler:
        return RequestHandler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner with our handler: there is no option for it (a test holds on to the behaviour)."""

    async def _make_server(self) -> web.Server:
        server: Any = await super()._make_server()
        made = server._loop, server._kwargs  # noqa: SLF001 -- because they are what the runner was given
        return _HttpServer(server.request_handler, request_factory=server.request_factory, loop=made[0], **made[1])
