"""Load without `wrk`: callers that send the next request after each answer, or each request at its due time.

Run it as a separate process, with a `LoadRequest` in a JSON file. It prints the result as JSON.
"""

import asyncio
import dataclasses
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amo_callback.cli.context import run_loop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRequest:
    """The requests of a load: each path once, repeatedly for `seconds`, or when it is due."""

    address: str
    paths: Sequence[str]
    key: str = ""
    callers: int
    seconds: float | None = None
    dues: Sequence[float] = ()
    """Seconds from the start until each path is requested, by a separate caller; latency counts from then."""
    good: str = "HTTP/1.1 200 "
    """Text that the head of every answer must contain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The result of a load, times in milliseconds, with the first failure."""

    requests: int
    failures: int
    first: str
    seconds: float
    p50: float
    p99: float
    max: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


async def load(asked: LoadRequest) -> Answers:
    host, port = asked.address.removeprefix("http://").split(":")
    key = f"Authorization: Bearer {asked.key}\r\n" if asked.key else ""
    requests = [f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: */*\r\n{key}\r\n" for path in asked.paths]
    took: list[float] = []
    failures: list[str] = []
    ready = asyncio.Barrier(asked.callers or 1)

    async def call(requests: Iterable[str], due: float | None = None) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        await (ready.wait() if due is None else asyncio.sleep(0))
        for request in requests:
            began = time.monotonic() if due is None else due
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            took.append(time.monotonic() - began)
            if asked.good.encode() not in head:
                failures.append((head + body[:500]).decode(errors="replace"))
        writer.close()

    async def call_at(due: float, request: str) -> None:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        await call([request], due)

    began = time.monotonic()
    until = began + (asked.seconds or math.inf)
    shared = itertools.takewhile(
        lambda _: time.monotonic() < until, itertools.cycle(requests) if asked.seconds else iter(requests)
    )
    at_their_time = (call_at(began + due, request) for due, request in zip(asked.dues, requests, strict=False))
    async with asyncio.timeout(120 + (asked.seconds or 0) + max(asked.dues, default=0)):
        await asyncio.gather(*(call(shared) for _ in range(asked.callers)), *at_their_time)
    took.sort()
    return Answers(
        requests=len(took),
        failures=len(failures),
        first=next(iter(failures), ""),
        seconds=time.monotonic() - began,
        p50=percentile(took, 0.5) * 1000,
        p99=percentile(took, 0.99) * 1000,
        max=took[-1] * 1000,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the ordered values that at least this share of them does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


if __name__ == "__main__":
    request = LoadRequest(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(dataclasses.asdict(run_loop(load(request)))))
