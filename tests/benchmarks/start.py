"""How long the service takes to be ready, and how much memory it holds, with no connection and with very many.

Ready is what systemd hears: `READY=1`, from the start of the process on. Memory is its resident set: when it is ready,
and once the token of each connection has been handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.amo import BigVendor, serving_amo
from tests.benchmarks.bench import Bench, lag_figures
from tests.benchmarks.figures import Bar, Figure, Outcome
from tests.benchmarks.imports import import_times
from tests.benchmarks.load import hand_outs_once
from tests.benchmarks.options import option
from tests.benchmarks.process import resident
from tests.benchmarks.service import AMO_CALLBACK, Seen, seen, serving
from tests.benchmarks.stock import fill
from tests.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SECONDS, _EMPTY, _FULL = Bar(at_most=0.8), Bar(at_most=70), Bar(at_most=150)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How starts are measured."""

    connections: int = option(100_000, quick=2000, told="in the full database")
    callers: int = option(16, told="who ask at once, until each token was handed out")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    seconds: float
    memory: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Full:
    start: _Start
    after: float
    """Memory, once every token was handed out."""
    watched: Seen
    """What the same did to the loop of a service with a sampler beside it."""


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure: with no connection, then with all of them, then what imports take."""
    key = new_key()
    async with serving_amo() as amo:
        environ = environment(amo, key)
        bench.say("starts with no connection")
        await _start(bench, environ)  # makes the database, and has Python compile what it must
        empty = [await _start(bench, environ) for _ in range(bench.rounds)]
        bench.say(f"a database of {options.connections} connections")
        names = await fill(bench.folder, Cipher([key]), BigVendor(), connections=options.connections)
        paths = [f"/connections/{name}/token" for name in names]
        full = []
        for number in range(bench.rounds):
            bench.say(f"starts and {options.connections} hand-outs, round {number + 1}")
            full.append(await _full(bench, environ, paths=paths, callers=options.callers))
        imports = await _imports(bench, environ)
    many = f", {options.connections:,} connections"
    return Outcome(
        figures=[
            Figure(name="seconds to READY=1", unit="s", values=[one.seconds for one in empty], bar=_SECONDS),
            Figure(name="memory", unit="MB", values=[one.memory for one in empty], bar=_EMPTY),
            Figure(name=f"seconds to READY=1{many}", unit="s", values=[one.start.seconds for one in full]),
            Figure(name=f"memory{many}", unit="MB", values=[one.start.memory for one in full]),
            Figure(name=f"memory{many} handed out", unit="MB", values=[one.after for one in full], bar=_FULL),
            *lag_figures([one.watched for one in full], suffix=f"{many} handed out"),
            *(Figure(name=f"import of {name}", unit="ms", values=[took]) for name, took in imports.items()),
        ],
        notes=["imports: each package's own modules, with -X importtime, which slows them down"],
    )


async def _start(bench: Bench, environ: Mapping[str, str]) -> _Start:
    """Start once."""
    async with serving(bench.folder, environ, python=AMO_CALLBACK) as server:
        return _Start(seconds=server.ready - server.began, memory=resident(server.pid))


async def _full(bench: Bench, environ: Mapping[str, str], *, paths: Sequence[str], callers: int) -> _Full:
    """Start, and hand out every token; then again with a sampler, which the memory is not to be told of."""
    async with serving(bench.folder, environ, python=AMO_CALLBACK) as server:
        start = _Start(seconds=server.ready - server.began, memory=resident(server.pid))
        await hand_outs_once(bench.folder, server.private, paths, callers=callers)
        after = resident(server.pid)
    async with serving(bench.folder, environ) as server:
        handing_out = hand_outs_once(bench.folder, server.private, paths, callers=callers)
        _, watched = await seen(server, bench.idle, handing_out, since=server.ready)
    return _Full(start=start, after=after, watched=watched)


async def _imports(bench: Bench, environ: Mapping[str, str]) -> Mapping[str, float]:
    async with serving(bench.folder, environ, python=("-X", "importtime", *AMO_CALLBACK)):
        pass
    return import_times((bench.folder / "service.errors").read_text(encoding="utf-8"))
