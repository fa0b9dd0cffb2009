"""HTTP towards AMO: one request a connection, never repeated, of which it is known whether anything of it went out.

No client library is used: it may repeat a request or reject an answer that has been paid for because of its framing,
and it does not say whether a byte was written. A connection serves one request: one that is kept alive
may be closed by AMO just as we write to it, and then it is not known whether the token was spent.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from amo_callback import __version__
from amo_callback.amo.protocol import ANSWER_LIMIT, TOO_LARGE, AmoRequest, Answer
from amo_callback.amo.response import Response
from amo_callback.errors import RequestNotSent, UnknownOutcome

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from amo_callback.amo.rate_limiter import RateLimiter
    from amo_callback.clock import Clock
    from amo_callback.rate_limit import Priority

_LAST = 0.05
"""The share of a request's time that it gets at the end, whatever came between."""
_TICK = 0.01
"""Seconds between two looks at the time of a request that waits to leave, at least."""
_LONGEST_HOLD = 2.0
"""Seconds that a request may wait to leave once its connection is open; it is not sent after that."""
_NEXT_ADDRESS = 0.25
"""Seconds after which a host's next address is tried beside the one before: the IPv6 of a network may lead nowhere."""


def tls_context() -> ssl.SSLContext:
    """Return a TLS context with the authorities that this machine trusts, or those of `SSL_CERT_FILE`."""
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["http/1.1"])
    return tls


class Transport:
    """A sender of requests to AMO, with `timeout` seconds each; redirects are never followed.

    The time that a request waits for a slot does not count.
    """

    def __init__(self, *, tls: ssl.SSLContext, rate_limiter: RateLimiter, clock: Clock, timeout: float) -> None:
        self._tls = tls
        self._rate_limiter = rate_limiter
        self._clock = clock
        self.timeout = timeout

    async def send(self, request: AmoRequest, *, priority: Priority, not_after: float) -> Answer:
        """Send a request, not after this monotonic time, and return its answer, also where only a part of it came.

        Raises `RequestNotSent`, and `UnknownOutcome` where no answer came.
        """
        hold, connection = _Hold(), _HttpConnection()

        async def exchange() -> None:
            await self._connect(request, connection)
            with hold:
                may_leave = await self._rate_limiter.leave(priority, limit=_LONGEST_HOLD)
            if may_leave and self._clock.monotonic() <= not_after:
                await connection.exchange(_written(request))

        broken = None
        try:
            await _within(self.timeout, exchange(), hold=hold)
        except TimeoutError:
            broken = "timeout"
        except (OSError, UnicodeError):
            pass  # before anything was sent. The library's texts may quote what was to be: none is kept
        finally:
            connection.close()
        response = connection.response
        if not connection.is_sent:
            raise RequestNotSent
        if not response.status:
            raise UnknownOutcome(broken or "connection_lost")
        return _answer(response, broken=None if response.is_complete else broken or "half_an_answer")

    async def _connect(self, request: AmoRequest, connection: _HttpConnection) -> None:
        """Open a connection to the host that the request names; raises `OSError`."""
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
        self.response = Response(limit=ANSWER_LIMIT)
        self.is_sent = False
        """Whether anything of the request may have gone out."""
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        """Set once the response is complete, or nothing more can come."""

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
        """Write a request and wait for the end of its response; nothing is written to a peer that has gone away."""
        if self._transport is None or self._ended.is_set() or self._transport.is_closing():
            return
        self.is_sent = True
        self._transport.write(request)
        await self._ended.wait()

    def close(self) -> None:
        """Close the connection at once: nothing more is expected of it."""
        if self._transport is not None:
            self._transport.abort()


def _answer(response: Response, *, broken: str | None) -> Answer:
    headers = response.headers
    body, *others = response.bodies
    return Answer(
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
    """Return a request as it goes out: its headers and its body in one piece."""
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
        raise ValueError("a request's header holds what no header may")
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Hold:
    """A stopwatch for the time that a request waits to leave."""

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
    """Run `work`, at most so many seconds and those of its `hold`; raises `TimeoutError`.

    A process that was stopped finds its time over and, in the same moment, the answer in its socket. So the last
    twentieth is given only once the loop runs: what has arrived is read before anything is given up.
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
