"""How many refreshes a second the service makes where every connection is due, and AMO takes its time.

So many at once, each of which takes as long as AMO's answer, are what is possible: the ratio is to that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.amo import BigVendor, serving_amo, settle
from tests.benchmarks.bench import Bench, lag_figures
from tests.benchmarks.figures import Bar, Figure, Outcome
from tests.benchmarks.options import option
from tests.benchmarks.service import Seen, seen, serving
from tests.benchmarks.stock import fill, make_due, refreshed
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from tests.conftest import Amo

_BAR = Bar(at_least=0.9)
_PATIENCE = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a sweep is measured."""

    connections: int = option(10_000, quick=500, told="all of them due")
    concurrency: int = option(64, told="refreshes at once")
    latency: float = option(0.1, told="seconds that AMO takes for a refresh")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    per_second: float
    seen: Seen


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure: the service is started anew for each round, and stopped at its end."""
    key = new_key()
    async with serving_amo(latency=options.latency) as amo:
        assert isinstance(amo.fake, BigVendor)
        await fill(bench.folder, Cipher([key]), amo.fake, connections=options.connections)
        environ = environment(amo, key, REFRESH__CONCURRENCY=str(options.concurrency))
        rounds = []
        for number in range(bench.rounds):
            bench.say(f"sweep of {options.connections} connections, round {number + 1}")
            make_due(bench.folder)
            settle()
            rounds.append(await _round(options, bench, amo, environ, version=number + 2))
    possible = options.concurrency / options.latency
    speed = [one.per_second for one in rounds]
    cpu = [one.seen.cpu / options.connections * 1e6 for one in rounds]
    figures = [
        Figure(name="refreshes", unit="1/s", values=speed),
        Figure(name="refreshes, of what is possible", unit="ratio", values=[one / possible for one in speed], bar=_BAR),
        Figure(name="CPU a refresh", unit="us", values=cpu),
        *lag_figures([one.seen for one in rounds]),
    ]
    note = f"{options.concurrency} at once, {options.latency} s each: {possible:.0f} refreshes a second are possible"
    return Outcome(figures=figures, notes=[note])


async def _round(options: Options, bench: Bench, amo: Amo, environ: Mapping[str, str], *, version: int) -> _Round:
    """Sweep once: from the moment in which AMO is asked first to its last answer."""
    before, noted = amo.sandbox.requests, len(amo.fake.ledger.entries)
    first = asyncio.create_task(_first_asked(amo, before + 1))
    async with serving(bench.folder, environ) as service:
        swept = _swept(options, bench, amo, noted=noted, version=version)
        _, watched = await seen(service, bench.idle, swept, since=service.ready)
    entries = amo.fake.ledger.entries[noted:]
    if len(entries) != options.connections or not all(entry.spent for entry in entries):
        raise RuntimeError(f"AMO was asked {len(entries)} times for {options.connections} refreshes")
    took = (entries[-1].at - await first).total_seconds()
    return _Round(per_second=options.connections / took, seen=watched)


async def _first_asked(amo: Amo, times: int) -> datetime:
    await amo.sandbox.until_asked(times)
    return amo.fake.now()


async def _swept(options: Options, bench: Bench, amo: Amo, *, noted: int, version: int) -> None:
    """Wait until AMO has answered as often as there are connections, and every new pair is stored."""
    async with asyncio.timeout(_PATIENCE):
        while len(amo.fake.ledger.entries) < noted + options.connections:
            await asyncio.sleep(0.05)
        while refreshed(bench.folder, version=version) < options.connections:
            await asyncio.sleep(0.05)
