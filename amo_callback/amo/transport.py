"""HTTP requests to AMO: one request per connection, never repeated.

The transport always reports whether any byte of a request may have been sent. HTTP client libraries are not used,
because they do not report this. They may also repeat a request, or reject a response with invalid framing that contains
the new pair. Connections are not reused, because AMO may close an idle connection just when a request is written to it.
It would then be unknown whether the token was spent.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from amo_callback import __version__
from amo_callback.amo.protocol import RESPONSE_LIMIT, TOO_LARGE, AmoRequest, AmoResponse
from amo_callback.amo.response import Response
from amo_callback.errors import RequestNotSent, UnknownOutcome

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from amo_callback.amo.rate_limiter import RateLimiter
    from amo_callback.clock import Clock
    from amo_callback.rate_limit import Priority

_LAST = 0.05
"""The fraction of a request's timeout that is reserved for reading the response."""
_TICK = 0.01
"""The minimum number of seconds between two checks of a request's timeout."""
_LONGEST_HOLD = 2.0
"""The maximum wait for a slot after a connection is open, in seconds; after that, the request is not sent."""
_NEXT_ADDRESS = 0.25
"""Seconds until the host's next address is also tried, because IPv6 does not work on some networks."""


def tls_context() -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities in `SSL_CERT_FILE`, or the system's if it is not set."""
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["http/1.1"])
    return tls


class Transport:
    """A sender of requests to AMO; redirects are never followed.

    Each request has a timeout of `timeout` seconds, which does not include the wait for a slot.
    """

    def __init__(self, *, tls: ssl.SSLContext, rate_limiter: RateLimiter, clock: Clock, timeout: float) -> None:
        self._tls = tls
        self._rate_limiter = rate_limiter
        self._clock = clock
        self.timeout = timeout

    async def send(self, request: AmoRequest, *, priority: Priority, not_after: float) -> AmoResponse:
        """Send a request and return the response, even if it is incomplete.

        Nothing is sent after the monotonic time `not_after`. Raises `RequestNotSent` if no byte was sent, and
        `UnknownOutcome` if the request may have been sent but no status was received.
        """
        hold, connection = _Hold(), _HttpConnection()

        async def exchange() -> None:
            await self._connect(request, connection)
            with hold:
                may_leave = await self._rate_limiter.wait_to_send(priority, limit=_LONGEST_HOLD)
            if may_leave and self._clock.monotonic() <= not_after:
                await connection.exchange(_written(request))

        broken = None
        try:
            await _within(self.timeout, exchange(), hold=hold)
        except TimeoutError:
            broken = "timeout"
        except (OSError, ValueError):
            pass  # nothing was sent; the exception is dropped, because its text may quote the request
        finally:
            connection.close()
        response = connection.response
        if not connection.is_sent:
            raise RequestNotSent
        if not response.status:
            raise UnknownOutcome(broken or "connection_lost")
        return _answer(response, broken=None if response.is_complete else broken or "half_an_answer")

    async def _connect(self, request: AmoRequest, connection: _HttpConnection) -> None:
        """Open a connection to the request's host; raises `OSError`."""
        loop, url = asyncio.get_running_loop(), urlsplit(request.url)
        host, is_https = url.hostname or "", url.scheme == "https"
        addresses = await loop.getaddrinfo(host, url.port or (443 if is_https else 80), type=socket.SOCK_STREAM)
        found = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS, interleave=1)
        try:
            await loop.create_connection(
                lambda: connection,
                sock=found,
                ssl=self._tls if is_https else None,
                server_hostname=host if is_https else None,
            )
        except BaseException:
            found.close()
            raise


class _HttpConnection(asyncio.Protocol):
    def __init__(self) -> None:
        self.response = Response(limit=RESPONSE_LIMIT)
        self.is_sent = False
        """Whether any byte of the request may have been sent."""
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        """Set when reading has ended, or when no more bytes can arrive."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.response.feed(data)
        if self.response.is_complete:
            self._ended.set()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self.response.end()
        self._ended.set()

    async def exchange(self, request: bytes) -> None:
        """Write a request and wait for the end of its response; write nothing if the peer has closed the connection."""
        if self._transport is None or self._ended.is_set() or self._transport.is_closing():
            return
        self.is_sent = True
        self._transport.write(request)
        await self._ended.wait()

    def close(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()


def _answer(response: Response, *, broken: str | None) -> AmoResponse:
    headers = response.headers
    body, *others = response.bodies
    return AmoResponse(
        status=response.status,
        body=body,
        others=tuple(others),
        broken=TOO_LARGE if response.is_too_large else broken,
        retry_after=headers.get("retry-after"),
        date=headers.get("date"),
        request_id=headers.get("x-request-id"),
        is_problem=headers.get("content-type", "").partition(";")[0].strip().lower() == "application/problem+json",
    )


def _written(request: AmoRequest) -> bytes:
    """Return the bytes of a request: the request line, the headers and the body."""
    url = urlsplit(request.url)
    body = request.body or b""
    headers = {
        "Host": url.netloc,
        "User-Agent": f"amo-callback/{__version__}",
        "Connection": "close",
        **({} if request.body is None else {"Content-Length": str(len(body))}),
        **request.headers,
    }
    lines = [f"{request.method} {url.path or '/'}{'?' + url.query if url.query else ''} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise ValueError("the request line or a header contains a character that is not printable ASCII")
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Hold:
    """A stopwatch for the time that a request waits for its slot."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def __exit__(self, *_: object) -> None:
        self._seconds, self._began = self.seconds, None

    @property
    def seconds(self) -> float:
        running = 0.0 if self._began is None else asyncio.get_running_loop().time() - self._began
        return self._seconds + running


async def _within(seconds: float, work: Coroutine[object, object, None], *, hold: _Hold) -> None:
    """Run `work` for at most `seconds`, not counting the time of `hold`; raises `TimeoutError`.

    After a suspension of the process, the timeout is over, but the response may already be in the socket's buffer. The
    last fraction of the timeout therefore starts only when the event loop runs again, so that the response is read.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds * (1 - _LAST)
    task = asyncio.ensure_future(work)
    try:
        while not task.done() and (left := until + hold.seconds - loop.time()) > 0:
            await asyncio.wait({task}, timeout=left + _TICK)
        if not task.done():
            await asyncio.wait({task}, timeout=seconds * _LAST)
        if task.done():
            task.result()
            return
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    raise TimeoutError
