"""How many access tokens are handed out in a second, and how long one takes while others are refreshed.

    python -m tests.benchmarks.handout [--rounds 5] [--seconds 4] [--connections 1000]

The real service, with its log in a file, is measured against a bare aiohttp handler that answers with the same bytes:
each in a process of its own, in alternation, under the same load. Then again while every connection is refreshed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import aiohttp

from amo_callback.cipher import new_key
from amo_callback.cli.loop import run_loop
from amo_callback.clock import SystemClock
from tests.benchmarks.load import WRK, Load
from tests.benchmarks.service import AT_ONCE, Server, connect_accounts, key_header, running, serving
from tests.conftest import API_KEY, environment, serve_amo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_CLIENTS = 64
_PATHS = 100
"""Connections that are asked for in turn; all of them are in the database."""
_LATENCY = 0.2
"""Seconds that AMO takes for a refresh."""


@asynccontextmanager
async def _bare(folder: Path, answer: bytes) -> AsyncIterator[Server]:
    out, body = folder / "bare.log", folder / "answer"
    body.write_bytes(answer)
    async with running("-m", "tests.benchmarks.bare", str(body), folder=folder, environ={}, out=out):
        while not (address := out.read_text(encoding="utf-8").strip()):
            await asyncio.sleep(0.05)
        yield Server(private=address)


async def _refresh(http: aiohttp.ClientSession, server: Server, names: Sequence[str]) -> float:
    """Refresh them all, as many at a time as the service does; return how many were done in a second."""
    places, began = asyncio.Semaphore(AT_ONCE), time.perf_counter()

    async def refresh(name: str) -> None:
        async with places, http.post(f"{server.private}/connections/{name}/refresh", headers=key_header()) as answer:
            assert answer.status == 200, await answer.text()

    await asyncio.gather(*map(refresh, names))
    return len(names) / (time.perf_counter() - began)


def _told(figures: Sequence[float], form: str) -> str:
    """Write the least, the median and the most of some figures."""
    return " / ".join(format(figure, form) for figure in (min(figures), statistics.median(figures), max(figures)))


async def _measure(options: argparse.Namespace, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        amo = await stack.enter_async_context(serve_amo(SystemClock()))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        environ = environment(amo, new_key(), LIMITS__UNPROVEN="100000", AMO__REQUESTS_PER_SECOND="50")
        async with serving(folder, environ, access=False) as service:
            names = await connect_accounts(http, service, amo, connections=options.connections)
            async with http.get(f"{service.private}/connections/{names[0]}/token", headers=key_header()) as given:
                answer = await given.read()
        paths = [f"/connections/{name}/token" for name in names[:_PATHS]]
        load = Load(folder=folder, paths=paths, key=API_KEY, callers=_CLIENTS)
        print(f"{'wrk' if WRK else 'our own client'}, {_CLIENTS} clients, {options.connections} connections")
        bare = await stack.enter_async_context(_bare(folder, answer))
        for access in (False, True):
            async with serving(folder, environ, access=access) as service:
                await _compare(load, service, bare, access=access, options=options)
        async with serving(folder, environ, access=False) as service:
            amo.sandbox.latency = _LATENCY
            await load.on(service.private, seconds=1)
            refreshing = asyncio.create_task(_refresh(http, service, names))
            loads = []
            while not refreshing.done():
                loads.append(await load.on(service.private, seconds=options.seconds))
            print(f"while {len(names)} are refreshed, {await refreshing:.0f} a second (of {len(loads)} loads)")
            print(f"  hand-outs/s  {_told([one.per_second for one in loads], '.0f')}")
            print(f"  p50, ms      {_told([one.p50 for one in loads], '.1f')}")
            print(f"  p99, ms      {_told([one.p99 for one in loads], '.1f')}")
            print(f"  longest, ms  {_told([one.max for one in loads], '.1f')}")


async def _compare(load: Load, service: Server, bare: Server, *, access: bool, options: argparse.Namespace) -> None:
    ours, theirs = [], []
    for server in (service, bare):  # the first hand-outs warm the memory
        await load.on(server.private, seconds=1)
    for _ in range(options.rounds):
        theirs.append(await load.on(bare.private, seconds=options.seconds))
        ours.append(await load.on(service.private, seconds=options.seconds))
    ratios = [our.per_second / their.per_second for our, their in zip(ours, theirs, strict=True)]
    print(f"access lines {'on' if access else 'off'} (least / median / most of {options.rounds} rounds)")
    print(f"  hand-outs/s  {_told([our.per_second for our in ours], '.0f')}")
    print(f"  bare/s       {_told([their.per_second for their in theirs], '.0f')}")
    print(f"  ratio        {_told(ratios, '.2f')}")
    print(f"  p99, ms      {_told([our.p99 for our in ours], '.1f')}")
    print(f"  bare's p99   {_told([their.p99 for their in theirs], '.1f')}")
    print(f"  longest, ms  {_told([our.max for our in ours], '.1f')}")
    print(f"  bare's       {_told([their.max for their in theirs], '.1f')}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    parser.add_argument("--connections", type=int, default=1000)
    with TemporaryDirectory() as folder:
        run_loop(_measure(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
