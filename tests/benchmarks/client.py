"""Load without `wrk`: as many callers as are asked for, each asking again as soon as it has its answer.

Run as a process of its own; prints requests, failures, seconds, and p50, p99 and the longest in milliseconds, as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cli.loop import run_loop

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class _Caller(asyncio.Protocol):
    """One connection: writes a request, counts the bytes of its answer, and writes the next."""

    requests: Iterator[bytes]
    until: float
    seconds: list[float]
    failures: list[bytes]
    ended: asyncio.Future[None]
    transport: asyncio.Transport | None = None
    asked_at: float = 0.0
    heard: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.failures.append(repr(exc).encode())
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard += data
        head, separator, body = bytes(self.heard).partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self.heard.clear()
        now = time.perf_counter()
        self.seconds.append(now - self.asked_at)
        if b" 200 " not in head[:20]:
            self.failures.append(head)
        if now < self.until:
            self._ask()
        elif not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        assert self.transport is not None
        self.asked_at = time.perf_counter()
        self.transport.write(next(self.requests))


async def load(address: str, paths: list[str], key: str, *, callers: int, seconds: float) -> dict[str, float]:
    """Ask for that long; return what came of it."""
    host, port = address.removeprefix("http://").split(":")
    requests = itertools.cycle(
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n\r\n".encode() for path in paths
    )
    took: list[float] = []
    failures: list[bytes] = []
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    ends = [loop.create_future() for _ in range(callers)]
    for end in ends:
        caller = _Caller(requests, began + seconds, took, failures, end)
        await loop.create_connection(lambda caller=caller: caller, host, int(port))  # type: ignore[misc]  # reason: mypy infers no default
    await asyncio.gather(*ends)
    took.sort()
    return {
        "requests": len(took),
        "failures": len(failures),
        "seconds": time.perf_counter() - began,
        "p50": took[len(took) // 2] * 1000,
        "p99": took[len(took) * 99 // 100] * 1000,
        "max": took[-1] * 1000,
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(run_loop(load(**asked))))
