"""How long a callback takes while thousands of refreshes wait for the rate limit.

Callbacks come when they are due, whether those before them were answered or not, and latency counts from then.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.amo import BigVendor, callback_paths, open_accounts, serving_amo
from tests.benchmarks.bench import Bench, lag_figures
from tests.benchmarks.figures import Bar, Figure, Outcome
from tests.benchmarks.load import Answers, callbacks
from tests.benchmarks.options import option
from tests.benchmarks.service import Seen, Server, seen, serving
from tests.benchmarks.stock import fill, make_due, waiting
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Amo

_BAR = Bar(at_most=300)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How callbacks are measured while refreshes wait."""

    seconds: float = option(30.0, quick=4.0, told="of each round")
    connections: int = option(5000, quick=500, told="whose refreshes wait")
    per_second: float = option(2.0, told="callbacks, evenly; half as many where they come at random")
    limit: float = option(5.0, told="requests a second that AMO allows")
    latency: float = option(0.1, told="seconds that AMO takes for an answer")
    seed: int = option(1, told="of the random arrivals: the same each time")


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, evenly and at random in alternation."""
    key = new_key()
    chance = random.Random(options.seed)  # noqa: S311 -- because nothing is secret in it
    async with serving_amo(latency=options.latency) as amo:
        assert isinstance(amo.fake, BigVendor)
        await fill(bench.folder, Cipher([key]), amo.fake, connections=options.connections)
        make_due(bench.folder)
        environ = environment(amo, key, AMO__REQUESTS_PER_SECOND=str(options.limit), LIMITS__FAILED_CODES="1000000")
        even, at_random = [], []
        async with serving(bench.folder, environ) as service:
            for number in range(bench.rounds):
                bench.say(f"callbacks while {options.connections} refreshes wait, round {number + 1}")
                dues = evenly(options.per_second, options.seconds)
                since = None if number else service.ready
                even.append(await _load(bench, amo, service, dues, since=since))
                dues = randomly(options.per_second / 2, options.seconds, chance)
                at_random.append(await _load(bench, amo, service, dues))
            left = waiting(bench.folder)
            if not left:
                raise RuntimeError("no refresh waits any more: more connections are needed")
    return Outcome(
        figures=[
            *_figures(even, options, bar=_BAR),
            *_figures(at_random, options, suffix=", at random"),
            *lag_figures([watched for _, watched in even]),
        ],
        notes=[
            f"{options.limit:g} requests a second are allowed; callbacks come {options.per_second:g} a second, evenly",
            f"{left} of {options.connections} refreshes waited in the end",
        ],
    )


def evenly(per_second: float, seconds: float) -> Sequence[float]:
    """Return when requests are due that come evenly."""
    return [number / per_second for number in range(int(per_second * seconds))]


def randomly(per_second: float, seconds: float, chance: random.Random) -> Sequence[float]:
    """Return when requests are due that come at random, each on its own (Poisson); one at least."""
    gaps = (chance.expovariate(per_second) for _ in itertools.count())
    dues = list(itertools.takewhile(lambda due: due < seconds, itertools.accumulate(gaps)))
    return dues or [0.0]


async def _load(
    bench: Bench, amo: Amo, service: Server, dues: Sequence[float], *, since: float | None = None
) -> tuple[Answers, Seen]:
    paths = callback_paths(amo.fake, open_accounts(amo.fake, len(dues)))
    return await seen(service, bench.idle, callbacks(bench.folder, service.public, paths, dues=dues), since=since)


def _figures(
    loads: Sequence[tuple[Answers, Seen]], options: Options, *, bar: Bar | None = None, suffix: str = ""
) -> Sequence[Figure]:
    over = [answers.p99 - options.latency * 1000 for answers, _ in loads]
    return [
        Figure(name=f"p50{suffix}", unit="ms", values=[answers.p50 for answers, _ in loads]),
        Figure(name=f"p99{suffix}", unit="ms", values=[answers.p99 for answers, _ in loads]),
        Figure(name=f"p99 over AMO's latency{suffix}", unit="ms", values=over, bar=bar),
    ]
