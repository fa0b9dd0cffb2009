"""Load without `wrk`: callers who ask again as soon as they are answered, or each at its time, answered or not.

Run as a process of its own, with a file that tells what to ask; prints what came of it as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from amo_callback.cli.context import run_loop
from tests.benchmarks.figures import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotDecision:
    """What to ask, and how."""

    address: str
    paths: Sequence[str]
    key: str
    status: int
    """What every answer's status must be."""
    location: str
    """What every answer's `Location` must begin with, if anything."""
    callers: int
    seconds: float | None
    """For how long the paths are asked for, over and over; `None` to ask for each of them once."""
    dues: Sequence[float]
    """Seconds after which each path is asked for, by a caller of its own; latency counts from then."""


@dataclass(slots=True)
class _Heard:
    """What came of all requests."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Caller(asyncio.Protocol):
    """One connection: writes a request, counts the bytes of its answer, and writes the next, while there is one."""

    asked: SlotDecision
    requests: Iterator[bytes]
    heard: _Heard
    ended: asyncio.Future[None]
    due: float | None = None
    transport: asyncio.Transport | None = None
    asked_at: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.heard.failures.append(f"connection lost: {exc!r}")
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, body = bytes(self.received).partition(b"\r\n\r\n")
        if not separator or len(body) < int(_header(head, b"content-length") or 0):
            return
        self.received.clear()
        self.heard.seconds.append(time.monotonic() - self.asked_at)
        location = _header(head, b"location").decode()
        if head.split(None, 2)[1] != b"%d" % self.asked.status or not location.startswith(self.asked.location):
            self.heard.failures.append(f"{head.decode(errors='replace')}\n\n{body[:500].decode(errors='replace')}")
        self.ask()

    def ask(self) -> None:
        """Write the next request, or end."""
        assert self.transport is not None
        request = next(self.requests, None)
        if request is None:
            self.ended.set_result(None)
            self.transport.close()
            return
        self.asked_at = time.monotonic() if self.due is None else self.due
        self.transport.write(request)


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def _requests(asked: SlotDecision) -> Iterator[bytes]:
    host = asked.address.removeprefix("http://")
    more = f"Authorization: Bearer {asked.key}\r\n" if asked.key else ""
    for path in asked.paths:
        yield f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{more}\r\n".encode()


def _for_so_long(requests: Sequence[bytes], seconds: float) -> Iterator[bytes]:
    until = time.monotonic() + seconds
    for request in itertools.cycle(requests):
        if time.monotonic() >= until:
            return
        yield request


async def _call(asked: SlotDecision, heard: _Heard, requests: Iterator[bytes], *, due: float | None = None) -> _Caller:
    host, port = asked.address.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    caller = _Caller(asked, requests, heard, loop.create_future(), due)
    await loop.create_connection(lambda: caller, host, int(port))
    return caller


async def _again_and_again(asked: SlotDecision, heard: _Heard) -> float:
    ready = list(_requests(asked))
    empty: Iterator[bytes] = iter(())
    callers = [await _call(asked, heard, empty) for _ in range(asked.callers)]
    began = time.monotonic()
    requests = iter(ready) if asked.seconds is None else _for_so_long(ready, asked.seconds)
    for caller in callers:
        caller.requests = requests
        caller.ask()
    await asyncio.gather(*(caller.ended for caller in callers))
    return began


async def _each_at_its_time(asked: SlotDecision, heard: _Heard) -> float:
    began = time.monotonic()

    async def call(request: bytes, due: float) -> None:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        caller = await _call(asked, heard, iter([request]), due=due)
        caller.ask()
        await caller.ended

    pairs = zip(_requests(asked), asked.dues, strict=True)
    await asyncio.gather(*(call(request, began + due) for request, due in pairs))
    return began


async def load(asked: SlotDecision) -> dict[str, object]:
    """Ask; return what came of it, times in milliseconds."""
    heard = _Heard()
    asking = _each_at_its_time(asked, heard) if asked.dues else _again_and_again(asked, heard)
    began = await asyncio.wait_for(asking, _PATIENCE + (asked.seconds or 0) + max(asked.dues, default=0))
    took, ordered = time.monotonic() - began, sorted(heard.seconds) or [0.0]
    return {
        "requests": len(heard.seconds),
        "failures": len(heard.failures),
        "first": next(iter(heard.failures), ""),
        "seconds": took,
        "p50": percentile(ordered, 0.5) * 1000,
        "p99": percentile(ordered, 0.99) * 1000,
        "max": ordered[-1] * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(run_loop(load(SlotDecision(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))))
