"""The log line of a request, and throttled log lines for events that any client can cause."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web
    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
"""A `traceparent` header: https://www.w3.org/TR/trace-context/."""
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_MINUTE = 60.0


def make_request_id(request: web.Request, *, take_over: bool) -> str:
    """Return the request's `X-Request-ID` if it is well-formed and `take_over` is true, otherwise a random id."""
    sent = request.headers.get("X-Request-ID", "") if take_over else ""
    return sent if _REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(64):016x}"


def log_request(
    log: FilteringBoundLogger,
    request: web.Request,
    *,
    listener: str,
    route: str,
    status: int,
    seconds: float,
    peer: str | None,
    failure: Mapping[str, object],
) -> None:
    """Log a request without its path and query, which may contain a return handle or an authorization code.

    `failure` contains the code of the request's error, and the failed check if a JWT was refused.
    """
    sent = request.headers.get("traceparent")
    trace = None if sent is None else _TRACE.fullmatch(sent)
    write = log.debug if route in _QUIET else log.info
    write(
        "http.request",
        listener=listener,
        method=request.method if request.method in _METHODS else "other",
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
        peer=peer,
        **failure,
        **({"trace_id": trace[1]} if trace else {}),
    )


class LogThrottle:
    """A throttle that logs the first of many identical events immediately, then the number of others every minute."""

    def __init__(self, write: Callable[[int], None], *, clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._unwritten = 0
        self._waiting: asyncio.Task[None] | None = None

    def count(self) -> None:
        self._unwritten += 1
        if self._waiting is None or self._waiting.done():
            self._flush()
            self._waiting = asyncio.create_task(self._flush_later(), name="log throttle")

    def close(self) -> None:
        """Stop the throttle, and log the number of events since the last line."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._flush()

    async def _flush_later(self) -> None:
        while True:
            await self._clock.sleep(_MINUTE)
            if not self._unwritten:
                return
            self._flush()

    def _flush(self) -> None:
        count, self._unwritten = self._unwritten, 0
        if count:
            self._write(count)
