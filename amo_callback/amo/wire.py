"""HTTP towards AMO: one request, never repeated, of which it is known whether anything of it went out."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.amo.claims import json_object
from amo_callback.amo.protocol import ANSWER_LIMIT, AmoRequest, Answer
from amo_callback.errors import NotSent, OutcomeOpen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from amo_callback.amo.pace import Pace
    from amo_callback.ports import Clock, Priority

_LAST = 0.05
"""The share of a request's time that it gets at the end, whatever came between."""
_TICK = 0.01
"""Seconds between two looks at the time of a request that waits to leave, at least."""
_LONGEST_HOLD = 2.0
"""Seconds that a request may wait to leave once its connection is open; it is not sent after that."""


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the HTTP session for `Wire`.

    A connection a request: one kept alive may be closed by AMO just as we write to it, and then nobody knows
    whether the token was spent. The trace tells the moment just before the first byte is written, which is the
    last one in which a request can be held back: there it waits until it may leave.
    """
    trace = aiohttp.TraceConfig()

    async def sending(_session: object, context: SimpleNamespace, _params: object) -> None:
        await context.trace_request_ctx.sending()

    trace.on_request_headers_sent.append(sending)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        trust_env=False,
        headers={"User-Agent": f"amo-callback/{__version__}"},
    ) as session:
        yield session


class Wire:
    """Carry requests to AMO and answers back, in `timeout` seconds each; redirects are never followed.

    The time that a request waits to leave does not count: AMO has as long to answer as without it.
    """

    def __init__(self, session: aiohttp.ClientSession, *, pace: Pace, clock: Clock, timeout: float) -> None:
        self._session = session
        self._pace = pace
        self._clock = clock
        self._timeout = timeout

    async def send(self, request: AmoRequest, *, priority: Priority, not_after: float) -> Answer:
        """Send a request, not after this monotonic time, and return its answer; raises `NotSent`, `OutcomeOpen`."""
        hold = _Hold()

        async def sending() -> None:
            with hold:
                may_leave = await self._pace.leave(priority, limit=_LONGEST_HOLD)
            if not may_leave or self._clock.monotonic() > not_after:
                raise NotSent
            context.sent = True

        context = SimpleNamespace(sent=False, sending=sending)
        received = _Received()
        try:
            await _within(self._timeout, self._send(request, context, received), hold=hold)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The library's texts may quote what was sent or received: none is kept, nor is the chain.
            if not context.sent:
                raise NotSent from None
            if not received.is_pair:
                raise OutcomeOpen(_what(error)) from None
        return received.answer

    async def _send(self, request: AmoRequest, context: SimpleNamespace, received: _Received) -> None:
        async with self._session.request(
            request.method,
            request.url,
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None),
            trace_request_ctx=context,
        ) as response:
            received.status = response.status
            received.retry_after = response.headers.get("Retry-After")
            received.date = response.headers.get("Date")
            received.request_id = response.headers.get("X-Request-ID")
            received.is_problem = response.content_type == "application/problem+json"
            async for chunk in response.content.iter_chunked(16 * 1024):
                received.body += chunk
                if len(received.body) > ANSWER_LIMIT:
                    break


@dataclass(slots=True)
class _Received:
    """What has come of an answer so far."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray, repr=False)
    retry_after: str | None = None
    date: str | None = None
    request_id: str | None = None
    is_problem: bool = False

    @property
    def is_pair(self) -> bool:
        """Whether a whole object has come, though its end was not told: a pair in it has been paid for."""
        return 200 <= self.status < 300 and json_object(bytes(self.body)) is not None

    @property
    def answer(self) -> Answer:
        return Answer(
            status=self.status,
            body=bytes(self.body[:ANSWER_LIMIT]),
            truncated=len(self.body) > ANSWER_LIMIT,
            retry_after=self.retry_after,
            date=self.date,
            request_id=self.request_id,
            is_problem=self.is_problem,
        )


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
        """The time so far."""
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


def _what(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "half_an_answer"
    return "connection_lost"
