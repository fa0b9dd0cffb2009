"""How long hand-outs take while every connection is refreshed, one after the other, because backends ask for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.amo import BigVendor, serving_amo
from tests.benchmarks.bench import Bench, lag_figures, load_figures
from tests.benchmarks.figures import Figure, Outcome
from tests.benchmarks.load import Answers, hand_outs
from tests.benchmarks.options import option
from tests.benchmarks.service import Seen, Server, key_header, seen, serving
from tests.benchmarks.stock import fill
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATHS = 100
_AT_ONCE = 16
"""Refreshes: as many as the service does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How hand-outs are measured while connections are refreshed."""

    seconds: float = option(4.0, quick=1.0, told="of each load; there are as many as the refreshes give time for")
    connections: int = option(1000, quick=150, told="that are refreshed")
    per_second: int = option(50, told="refreshes, the rate limit")
    callers: int = option(64, told="who ask at once")
    latency: float = option(0.2, told="seconds that AMO takes for a refresh")


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure."""
    key = new_key()
    async with serving_amo(latency=options.latency) as amo:
        assert isinstance(amo.fake, BigVendor)
        names = await fill(bench.folder, Cipher([key]), amo.fake, connections=options.connections)
        environ = environment(amo, key, AMO__REQUESTS_PER_SECOND=str(options.per_second))
        paths = [f"/connections/{name}/token" for name in names[:_PATHS]]
        async with serving(bench.folder, environ) as service:
            await hand_outs(bench.folder, service.private, paths, callers=options.callers, seconds=1)
            bench.say(f"hand-outs, while {options.connections} connections are refreshed")
            refreshing = asyncio.create_task(_refresh(service, names))
            loads: list[tuple[Answers, Seen]] = []
            while True:
                asking = hand_outs(
                    bench.folder, service.private, paths, callers=options.callers, seconds=options.seconds
                )
                load = await seen(service, bench.idle, asking, since=None if loads else service.ready)
                if refreshing.done() and loads:
                    break  # it was measured in part while nothing was refreshed
                loads.append(load)
            figures = [
                *load_figures(loads, what="hand-outs"),
                Figure(name="refreshes", unit="1/s", values=[await refreshing]),
                *lag_figures([watched for _, watched in loads]),
            ]
    note = f"the values are of {len(loads)} loads, as many as the refreshes gave time for; {options.callers} callers"
    return Outcome(figures=figures, notes=[note])


async def _refresh(server: Server, names: Sequence[str]) -> float:
    """Refresh them all, as many at a time as the service does; return how many were done in a second."""
    places, began = asyncio.Semaphore(_AT_ONCE), time.perf_counter()
    async with aiohttp.ClientSession() as http:

        async def refresh(name: str) -> None:
            async with (
                places,
                http.post(f"{server.private}/connections/{name}/refresh", headers=key_header()) as answer,
            ):
                if answer.status != 200:
                    raise RuntimeError(await answer.text())

        await asyncio.gather(*map(refresh, names))
    return len(names) / (time.perf_counter() - began)
