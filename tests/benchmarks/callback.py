"""What a callback costs, the durable store included, beside a relay that asks AMO as well and stores nothing.

The relay is aiohttp with uvloop, and asks by a session that keeps its connections alive. The main figures are of new
accounts, each of which becomes a new row; then the same accounts connect again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.crypto import new_key
from tests.benchmarks.amo import callback_paths, open_accounts, serving_amo
from tests.benchmarks.bench import CALLERS, Bench, cpu_of, curve, lag_figures, load_figures
from tests.benchmarks.figures import Bar, Figure, Outcome, Point
from tests.benchmarks.load import Answers, callbacks
from tests.benchmarks.options import option
from tests.benchmarks.service import Seen, Server, bare, seen, serving
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.amo.sandbox.fake_amo import SandboxAccount
    from tests.conftest import Amo

_BAR = Bar(at_most=3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How callbacks are measured."""

    accounts: int = option(2000, quick=200, told="that connect in each load")
    relay_accounts: int = option(8000, quick=800, told="that come to the relay: it is quicker, and CPU time is coarse")
    callers: int = option(16, told="who come at once")
    plot_accounts: int = option(1000, quick=300, told="that connect in each load for the plot")
    plot_relay_accounts: int = option(8000, quick=2000, told="that come to the relay in each")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    relay: tuple[Answers, Seen]
    new: tuple[Answers, Seen]
    again: tuple[Answers, Seen]


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, in alternation: the relay, new accounts, the same accounts again."""
    curves: dict[str, Sequence[Point]] = {}
    async with serving_amo() as amo:
        environ = environment(amo, new_key(), LIMITS__FAILED_CODES="1000000")
        async with bare(bench.folder, "relay", amo.endpoint) as relay, serving(bench.folder, environ) as service:
            bench.say("callbacks")
            for server in (relay, service):  # so that all begin warm
                paths = callback_paths(amo.fake, open_accounts(amo.fake, 100))
                await callbacks(bench.folder, server.public, paths, callers=options.callers)
            rounds = [
                await _round(options, bench, amo, relay, service, since=None if number else service.ready)
                for number in range(bench.rounds)
            ]
            if bench.curves:
                bench.say("callbacks, latency against load")
                curves = {
                    "amo-callback": await _curve(bench, amo, service, accounts=options.plot_accounts),
                    "bare relay": await _curve(bench, amo, relay, accounts=options.plot_relay_accounts),
                }
    note = f"{options.callers} callers; the main figures are of new accounts, {options.accounts} a load"
    return Outcome(figures=_figures(rounds), curves=curves, notes=[note])


async def _round(
    options: Options, bench: Bench, amo: Amo, relay: Server, service: Server, *, since: float | None
) -> _Round:
    async def load(
        server: Server, accounts: Sequence[SandboxAccount], *, since: float | None = None
    ) -> tuple[Answers, Seen]:
        paths = callback_paths(amo.fake, accounts)
        loading = callbacks(bench.folder, server.public, paths, callers=options.callers)
        return await seen(server, bench.idle, loading, since=since)

    accounts = open_accounts(amo.fake, options.accounts)
    return _Round(
        relay=await load(relay, open_accounts(amo.fake, options.relay_accounts)),
        new=await load(service, accounts, since=since),
        again=await load(service, accounts),
    )


def _figures(rounds: Sequence[_Round]) -> Sequence[Figure]:
    new, again, relay = [one.new for one in rounds], [one.again for one in rounds], [one.relay for one in rounds]
    ratio = [cpu_of(*one.new) / cpu_of(*one.relay) for one in rounds]
    ratio_again = [cpu_of(*one.again) / cpu_of(*one.relay) for one in rounds]
    return [
        *load_figures(new, what="callbacks"),
        *load_figures(again, what="callbacks", suffix=", known accounts"),
        *load_figures(relay, what="callbacks", suffix=", relay", lag=True),
        Figure(name="CPU a request, ours/relay", unit="ratio", values=ratio, bar=_BAR),
        Figure(name="CPU a request, ours/relay, known accounts", unit="ratio", values=ratio_again),
        *lag_figures([watched for _, watched in new]),
    ]


async def _curve(bench: Bench, amo: Amo, server: Server, *, accounts: int) -> Sequence[Point]:
    async def load(callers: int) -> Answers:
        paths = callback_paths(amo.fake, open_accounts(amo.fake, accounts))
        return await callbacks(bench.folder, server.public, paths, callers=callers)

    return await curve(load, CALLERS)
