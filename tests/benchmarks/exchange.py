"""What CPU a request that spends a credential takes: by our own transport, and by aiohttp's client, which it replaced.

Each request has a new connection, over TLS or without. The server is a process of its own, and always answers the same.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import aiohttp

from amo_callback.amo.protocol import Integration, exchange_request
from amo_callback.amo.transport import Transport
from amo_callback.cli.context import run_loop
from amo_callback.clock import SystemClock
from amo_callback.rate_limit import Priority
from tests.benchmarks.figures import Figure, Outcome
from tests.benchmarks.options import option
from tests.benchmarks.process import running, until
from tests.certificates import make_authority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from amo_callback.amo.protocol import AmoRequest
    from amo_callback.amo.rate_limiter import RateLimiter
    from tests.benchmarks.bench import Bench

_PAIR = b"a" * 900, b"r" * 700
_BODY = b'{"token_type":"Bearer","expires_in":86400,"access_token":"%s","refresh_token":"%s"}' % _PAIR
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How exchanges are measured."""

    requests: int = option(2000, quick=200, told="one after the other, in each round")


class _Unpaced:
    """A rate limit that lets everything leave."""

    async def leave(self, _priority: Priority, *, limit: float) -> bool:  # noqa: ARG002 -- because nothing waits
        return True


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, in alternation: ours and aiohttp's, each without TLS and with it."""
    authority, figures = make_authority(bench.folder), []
    authority.server("localhost")  # writes its certificate and key
    for scheme in ("http", "https"):
        bench.say(f"exchanges, {scheme}")
        out = bench.folder / f"{scheme}.port"
        async with running("-m", "tests.benchmarks.exchange", scheme, folder=bench.folder, out=out) as process:
            await until(partial(_has_line, out), process)
            request = _request(f"{scheme}://localhost:{int(out.read_text(encoding='utf-8'))}/oauth2/access_token")
            figures += await _compare(options, bench, request, authority.client(), scheme=scheme)
    return Outcome(figures=figures)


def _has_line(file: Path) -> bool:
    return file.read_bytes().endswith(b"\n")


def _request(endpoint: str) -> AmoRequest:
    integration = Integration(
        client_id="c6190000-0000-4000-8000-000000000000",
        client_secret="s" * 64,
        redirect_uri="https://app.example/api/amo-crm/callback",
        endpoint=endpoint,
    )
    return exchange_request(integration, code=b"c" * 800, domain="example.amocrm.ru")


async def _compare(
    options: Options, bench: Bench, request: AmoRequest, tls: ssl.SSLContext, *, scheme: str
) -> list[Figure]:
    wire = Transport(tls=tls, rate_limiter=cast("RateLimiter", _Unpaced()), clock=SystemClock(), timeout=10.0)
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ours() -> None:
            answer = await wire.send(request, priority=Priority.STARTED, not_after=float("inf"))
            assert answer.body == _BODY

        async def theirs() -> None:
            async with session.post(request.url, data=request.body, headers=request.headers) as answer:
                assert await answer.read() == _BODY

        for one in (ours, theirs):
            await _cpu(one, options.requests // 10)  # so that both begin warm
        number = options.requests
        rounds = [(await _cpu(ours, number), await _cpu(theirs, number)) for _ in range(bench.rounds)]
    return [
        Figure(name=f"CPU an exchange, {scheme}, ours", unit="us", values=[one for one, _ in rounds]),
        Figure(name=f"CPU an exchange, {scheme}, aiohttp's client", unit="us", values=[other for _, other in rounds]),
        Figure(name=f"CPU an exchange, {scheme}, ours/aiohttp's", unit="ratio", values=[a / b for a, b in rounds]),
    ]


async def _cpu(request: Callable[[], Awaitable[None]], number: int) -> float:
    """Return the CPU time of one of so many requests, in microseconds, the kernel's part included."""
    began = time.process_time()
    for _ in range(number):
        await request()
    return (time.process_time() - began) / number * 1e6


async def _serve(scheme: str) -> None:
    """Answer every request, in a process of its own; print the port."""
    tls = None
    if scheme == "https":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain("server.pem", "server.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(_ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    run_loop(_serve(sys.argv[1]))
