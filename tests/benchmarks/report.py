"""Reports: figures and the bars that they should reach, as JSON, a table and plots."""

import math
import os
import platform
import sqlite3
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amo_callback import __version__
from amo_callback.cli.output import table

_HEAD = ("BENCHMARK", "FIGURE", "UNIT", "LEAST", "MEDIAN", "MOST", "BAR", "REACHED")
QUICK = "A QUICK RUN, to see that all works: these are no figures to quote."


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of a benchmark: a value for each round, and the bar that their median should reach."""

    name: str
    unit: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the bar; `None` without one."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least or -math.inf) <= self.median <= (self.at_most or math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A benchmark's result; each server's curve has callers, answers per second, p50 and p99 in milliseconds."""

    figures: Sequence[Figure]
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A run's time, options, machine and results."""

    when: str
    quick: bool
    rounds: int
    machine: Mapping[str, object]
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def begin(*, quick: bool, rounds: int) -> Report:
    """Return a report of this machine without outcomes."""
    return Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        rounds=rounds,
        machine={
            "amo-callback": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("aiohttp", "uvloop")},
            "sqlite": sqlite3.sqlite_version,
            "cores": os.cpu_count(),
            "kernel": platform.release(),
        },
    )


def lines(report: Report, earlier: Report | None = None) -> str:
    """Return a report as text: a row per figure, with the earlier report's median if there is one."""
    before = {} if earlier is None else {(name, one.name): one.median for name, one in _figures(earlier)}
    head = [*_HEAD, *(("EARLIER", "CHANGE") if earlier else ())]
    rows = [
        [name, *_row(one), *(_change(one, before.get((name, one.name))) if earlier else ())]
        for name, one in _figures(report)
    ]
    result = [
        f"{report.when}, {report.rounds} rounds, "
        + ", ".join(f"{name} {value}" for name, value in report.machine.items()),
        *(f"{name}: {note}" for name, outcome in report.outcomes.items() for note in outcome.notes),
        "A longest lag of 0 is one of less than a millisecond.",
        *(f"{name} FAILED: {why}" for name, why in report.failed.items()),
        *([QUICK] if report.quick else []),
        *(["The earlier report is of a quick run."] if earlier is not None and earlier.quick else []),
    ]
    return "\n".join([table(head, rows), "", *result])


def _figures(report: Report) -> Sequence[tuple[str, Figure]]:
    return [(name, figure) for name, outcome in report.outcomes.items() for figure in outcome.figures]


def _row(figure: Figure) -> Sequence[object]:
    bar = f">= {figure.at_least:g}" if figure.at_least is not None else ""
    bar = f"<= {figure.at_most:g}" if figure.at_most is not None else bar
    values = map(_number, (min(figure.values), figure.median, max(figure.values)))
    return [figure.name, figure.unit, *values, bar, {None: "", True: "yes", False: "NO"}[figure.reached]]


def _change(figure: Figure, before: float | None) -> Sequence[object]:
    if before is None:
        return ["", ""]
    return [_number(before), f"{(figure.median / before - 1) * 100:+.0f} %" if before else ""]


def _number(value: float) -> str:
    """Format a number with at least three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def draw(report: Report, folder: Path) -> Sequence[Path]:
    """Plot p50 and p99 latency against the requests answered per second, on logarithmic axes; return the files."""
    import pygal  # type: ignore[import-untyped]  # noqa: PLC0415 -- because nothing else needs it

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, outcome in report.outcomes.items():
        if not outcome.curves:
            continue
        chart: Any = pygal.XY(
            title=f"{name}: latency against load" + (f" ({QUICK})" if report.quick else ""),
            x_title="answered a second, for so many callers as stand at the dots",
            y_title="milliseconds",
            logarithmic=True,
            print_labels=True,
            js=[],  # without this, an image would load a script from another host
        )
        for who, points in outcome.curves.items():
            chart.add(f"{who}, p50", [{"value": (speed, p50), "label": f"{n:g}"} for n, speed, p50, _ in points])
            chart.add(f"{who}, p99", [(speed, p99) for _, speed, _, p99 in points])
        drawn.append(folder / f"{name}.svg")
        drawn[-1].write_bytes(chart.render())
    return drawn
