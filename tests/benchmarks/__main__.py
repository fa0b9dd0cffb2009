"""Measure the service.

Every benchmark runs real servers in processes of their own, and the load in another. Missing a bar is no failure: the
exit status is 1 only where something could not be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from amo_callback.cli.context import run_loop
from tests.benchmarks import backlog, callback, claims, exchange, handout, refreshing, start, sweep
from tests.benchmarks.bench import Bench
from tests.benchmarks.options import add_flags, read_options
from tests.benchmarks.plots import draw
from tests.benchmarks.report import Report, begin, from_json, to_json
from tests.benchmarks.service import idle
from tests.benchmarks.table import lines

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

BENCHMARKS: Mapping[str, ModuleType] = {
    "handout": handout,
    "refreshing": refreshing,
    "callback": callback,
    "exchange": exchange,
    "sweep": sweep,
    "backlog": backlog,
    "claims": claims,
    "start": start,
}
_ROUNDS, _QUICK_ROUNDS = 5, 2


def main() -> int:
    """Measure, tell, and write what was asked for."""
    given = _parser().parse_args()
    earlier = from_json(given.compare.read_text(encoding="utf-8")) if given.compare else None
    rounds = given.rounds or (_QUICK_ROUNDS if given.quick else _ROUNDS)
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        report = run_loop(_measure(begin(folder=folder, quick=given.quick, rounds=rounds), given, Path(folder)))
    print(lines(report, earlier))
    if given.plots:
        for file in draw(report, given.plots):
            print(file)
    return 1 if report.failed else 0


async def _measure(report: Report, given: argparse.Namespace, folder: Path) -> Report:
    async with idle(folder) as lags:
        for name in given.benchmarks or BENCHMARKS:
            print(name, file=sys.stderr, flush=True)
            report = await _add(report, name, given, folder=folder, lags=lags)
            if given.json:  # each time: who ends a long run keeps what it has found
                given.json.write_text(to_json(report), encoding="utf-8")
    return report


async def _add(report: Report, name: str, given: argparse.Namespace, *, folder: Path, lags: Path) -> Report:
    """Run a benchmark, and return the report with what came of it; one that fails is not the others' end."""
    module: Any = BENCHMARKS[name]
    options = read_options(vars(given), name, module.Options, quick=report.quick)
    report = dataclasses.replace(report, options={**report.options, name: dataclasses.asdict(options)})
    try:
        with TemporaryDirectory(dir=folder) as own:
            bench = Bench(rounds=report.rounds, folder=Path(own), idle=lags, curves=given.plots is not None)
            outcome = await module.measure(options, bench)
    except Exception as error:  # noqa: BLE001 -- because an hour's other figures are worth keeping
        traceback.print_exc()
        _, _, last_line = str(error).strip().rpartition("\n")
        return dataclasses.replace(report, failed={**report.failed, name: f"{type(error).__name__}: {last_line}"})
    return dataclasses.replace(report, outcomes={**report.outcomes, name: outcome})


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BENCHMARKS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "benchmarks", nargs="*", type=_known, metavar="BENCHMARK", help=f"default: all ({', '.join(BENCHMARKS)})"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {_ROUNDS}, {_QUICK_ROUNDS} in a quick run")
    parser.add_argument("--quick", action="store_true", help="a small run of all, which tells only whether it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report is written")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier report to compare with")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where latency against load is drawn (SVG)")
    for name, module in BENCHMARKS.items():
        add_flags(parser, name, module.Options)
    return parser


if __name__ == "__main__":
    sys.exit(main())
