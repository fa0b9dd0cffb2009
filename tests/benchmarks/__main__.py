"""Measure the service.

Every benchmark runs real servers in processes of their own, and the load in another. Missing a bar is no failure: the
exit status is 1 only where something could not be measured.
"""

import argparse
import dataclasses
import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from amo_callback.cli.context import run_loop
from tests.benchmarks import api, refreshes, start
from tests.benchmarks.harness import Bench, idle_loop
from tests.benchmarks.report import Report, begin, draw, lines

BENCHMARKS: Mapping[str, Any] = {
    "handout": api.handout,
    "refreshing": api.refreshing,
    "callback": api.callback,
    "sweep": refreshes.sweep,
    "backlog": api.backlog,
    "claims": refreshes.claims,
    "start": start.start,
}
QUICK: Mapping[str, Mapping[str, Any]] = {
    "handout": {"seconds": 1.0, "connections": 200},
    "refreshing": {"seconds": 1.0, "connections": 150},
    "callback": {"accounts": 200, "relay_accounts": 800},
    "sweep": {"connections": 500},
    "backlog": {"seconds": 4.0, "connections": 500},
    "claims": {"rows": 5000},
    "start": {"connections": 2000},
}
"""Options of a quick run, which shows only whether the benchmarks work."""


def options_of(name: str, given: list[str], *, quick: bool) -> dict[str, Any]:
    """Return a benchmark's options: given values, otherwise a quick run's, otherwise the function's defaults."""
    parameters = inspect.signature(BENCHMARKS[name]).parameters.values()
    known = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    values = known | dict(QUICK[name] if quick else {})
    for key, _, value in (one.partition("=") for one in given if one.startswith(f"{name}.")):
        option = key.partition(".")[2]
        values[option] = type(known[option])(value)
    return values


def main() -> int:
    given = _parser().parse_args()
    earlier = TypeAdapter(Report).validate_json(given.compare.read_bytes()) if given.compare else None
    report = begin(quick=given.quick, rounds=given.rounds or (2 if given.quick else 5))
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        report = run_loop(_measure(report, given, Path(folder)))
    print(lines(report, earlier))
    if given.plots:
        print(*draw(report, given.plots), sep="\n")
    return 1 if report.failed else 0


async def _measure(report: Report, given: argparse.Namespace, folder: Path) -> Report:
    async with idle_loop(folder) as idle:
        for name in given.benchmarks or BENCHMARKS:
            print(name, file=sys.stderr, flush=True)
            try:
                options = options_of(name, given.set, quick=report.quick)
                with TemporaryDirectory(dir=folder) as own:
                    bench = Bench(rounds=report.rounds, folder=Path(own), idle=idle, curves=given.plots is not None)
                    outcome = await BENCHMARKS[name](bench, **options)
            except Exception as error:  # noqa: BLE001 -- because an hour's other figures are worth keeping
                traceback.print_exc()
                why = f"{type(error).__name__}: {error}".strip().rpartition("\n")[2]
                report = dataclasses.replace(report, failed={**report.failed, name: why})
            else:
                report = dataclasses.replace(report, outcomes={**report.outcomes, name: outcome})
            if given.json:  # after each benchmark, so that an interrupted run keeps its results
                given.json.write_text(json.dumps(dataclasses.asdict(report), indent=2), encoding="utf-8")
    return report


def _parser() -> argparse.ArgumentParser:
    lines = (f"  {name}: {_summary_of(name)}" for name in BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog="\n".join(["benchmarks and their options:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 5, 2 in a quick run")
    parser.add_argument("--quick", action="store_true", help="a small run of all, which tells only whether it works")
    parser.add_argument("--set", action="append", default=[], metavar="NAME.OPTION=VALUE", help="an option below")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report is written")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier report to compare with")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where latency against load is drawn (SVG)")
    return parser


def _summary_of(name: str) -> str:
    return ", ".join(f"{option}={value}" for option, value in options_of(name, [], quick=False).items())


if __name__ == "__main__":
    sys.exit(main())
