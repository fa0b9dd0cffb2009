"""What CPU a request that spends a credential takes: by our own transport, and by aiohttp's client."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import aiohttp

from amo_callback.amo.protocol import Integration, exchange_request
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.transport import Transport
from amo_callback.clock import SystemClock
from amo_callback.rate_limit import Priority
from tests.benchmarks.harness import Bench, ratios
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.servers import BODY
from tests.certificates import make_authority


class _Unlimited:
    """A rate limit that lets everything leave."""

    async def leave(self, _priority: Priority, *, limit: float) -> bool:  # noqa: ARG002 -- because nothing waits
        return True


async def exchange(bench: Bench, *, requests: int = 2000) -> Outcome:
    """Measure over TLS; each request has a new connection to a server of its own process."""
    authority = make_authority(bench.folder)
    authority.server("localhost")  # writes its certificate and key
    tls, limiter = authority.client(), cast("RateLimiter", _Unlimited())
    transport = Transport(tls=tls, rate_limiter=limiter, clock=SystemClock(), timeout=10.0)
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    async with bench.bare("amo", str(bench.folder)) as amo, aiohttp.ClientSession(connector=connector) as session:
        integration = Integration(
            client_id="c6190000-0000-4000-8000-000000000000",
            client_secret="s" * 64,
            redirect_uri="https://app.example/api/amo-crm/callback",
            endpoint=f"{amo.public}/oauth2/access_token",
        )
        request = exchange_request(integration, code=b"c" * 800, domain="example.amocrm.ru")

        async def ours() -> None:
            answer = await transport.send(request, priority=Priority.STARTED, not_after=float("inf"))
            assert answer.body == BODY

        async def theirs() -> None:
            async with session.post(request.url, data=request.body, headers=request.headers) as answer:
                assert await answer.read() == BODY

        for one in (ours, theirs):
            await _cpu(one, requests // 10)  # so that both begin warm
        found = await bench.alternate(
            what="exchanges", ours=partial(_cpu, ours, requests), theirs=partial(_cpu, theirs, requests)
        )
    return Outcome(
        figures=[
            Figure(name="CPU an exchange, ours", unit="us", values=found["ours"]),
            Figure(name="CPU an exchange, aiohttp's client", unit="us", values=found["theirs"]),
            ratios("CPU an exchange, ours/aiohttp's", found["ours"], found["theirs"]),
        ]
    )


async def _cpu(request: Callable[[], Awaitable[None]], number: int) -> float:
    """Return the CPU time of one of so many requests, in microseconds, the kernel's part included."""
    began = time.process_time()
    for _ in range(number):
        await request()
    return (time.process_time() - began) / number * 1e6
