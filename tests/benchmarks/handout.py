"""How many access tokens are handed out in a second, with all of them in memory, beside a bare aiohttp server.

Both answer with the same bytes and headers, each in a process of its own, in alternation, under the same load.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.amo import BigVendor, serving_amo
from tests.benchmarks.bench import CALLERS, Bench, cpu_of, curve, lag_figures, load_figures
from tests.benchmarks.figures import Bar, Figure, Outcome, Point
from tests.benchmarks.load import WRK, Answers, hand_outs
from tests.benchmarks.options import option
from tests.benchmarks.service import Seen, Server, bare, key_header, seen, serving
from tests.benchmarks.stock import fill
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PATHS = 100
"""Connections that are asked for in turn; all of them are in the database."""
_BAR = Bar(at_least=0.6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How hand-outs are measured."""

    seconds: float = option(4.0, quick=1.0, told="of each load")
    connections: int = option(1000, quick=200, told="in the database")
    callers: int = option(64, told="who ask at once")
    plot_seconds: float = option(2.0, quick=1.0, told="of each load for the plot")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    bare: tuple[Answers, Seen]
    ours: tuple[Answers, Seen]


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, with the log's access lines off and on."""
    key = new_key()
    async with serving_amo() as amo:
        assert isinstance(amo.fake, BigVendor)
        names = await fill(bench.folder, Cipher([key]), amo.fake, connections=options.connections)
        paths = [f"/connections/{name}/token" for name in names[:_PATHS]]
        environ = environment(amo, key)
        (bench.folder / "answer").write_bytes(await _answer(bench, environ, paths[0]))
        figures: list[Figure] = []
        curves: dict[str, Sequence[Point]] = {}
        async with bare(bench.folder, "answer", str(bench.folder / "answer")) as other:
            for access in (False, True):
                bench.say(f"hand-outs, access lines {'on' if access else 'off'}")
                async with serving(bench.folder, environ, access=access) as service:
                    rounds = await _rounds(options, bench, service, other, paths)
                    figures += _figures(rounds, suffix=", access lines on" if access else "")
                    if bench.curves and not access:
                        curves = await _curves(options, bench, service, other, paths)
    note = f"{'wrk' if WRK else 'our own client'}, {options.callers} callers, {options.connections} connections"
    return Outcome(figures=figures, curves=curves, notes=[note])


async def _answer(bench: Bench, environ: Mapping[str, str], path: str) -> bytes:
    async with (
        serving(bench.folder, environ) as service,
        aiohttp.ClientSession() as http,
        http.get(service.private + path, headers=key_header()) as answer,
    ):
        assert answer.status == 200
        return await answer.read()


async def _rounds(
    options: Options, bench: Bench, service: Server, other: Server, paths: Sequence[str]
) -> Sequence[_Round]:
    async def load(server: Server, *, since: float | None = None) -> tuple[Answers, Seen]:
        loading = hand_outs(bench.folder, server.private, paths, callers=options.callers, seconds=options.seconds)
        return await seen(server, bench.idle, loading, since=since)

    for server in (other, service):  # the first hand-outs warm the memory
        await hand_outs(bench.folder, server.private, paths, callers=options.callers, seconds=1)
    rounds = []
    for number in range(bench.rounds):
        theirs = await load(other)
        ours = await load(service, since=None if number else service.ready)
        rounds.append(_Round(bare=theirs, ours=ours))
    return rounds


def _figures(rounds: Sequence[_Round], *, suffix: str) -> Sequence[Figure]:
    ours, theirs = [one.ours for one in rounds], [one.bare for one in rounds]
    speed = [one.ours[0].per_second / one.bare[0].per_second for one in rounds]
    cpu = [cpu_of(*one.ours) / cpu_of(*one.bare) for one in rounds]
    bar = None if suffix else _BAR
    lags = lag_figures([watched for _, watched in ours], suffix=suffix)
    return [
        *load_figures(ours, what="hand-outs", suffix=suffix),
        *load_figures(theirs, what="hand-outs", suffix=f", bare{suffix}", lag=True),
        Figure(name=f"hand-outs, ours/bare{suffix}", unit="ratio", values=speed, bar=bar),
        Figure(name=f"CPU a request, ours/bare{suffix}", unit="ratio", values=cpu),
        *(lags if not suffix else [dataclasses.replace(one, bar=None) for one in lags]),
    ]


async def _curves(
    options: Options, bench: Bench, service: Server, other: Server, paths: Sequence[str]
) -> dict[str, Sequence[Point]]:
    async def of(server: Server) -> Sequence[Point]:
        async def load(callers: int) -> Answers:
            return await hand_outs(bench.folder, server.private, paths, callers=callers, seconds=options.plot_seconds)

        return await curve(load, CALLERS)

    bench.say("hand-outs, latency against load")
    return {"amo-callback": await of(service), "bare aiohttp": await of(other)}
