"""A report for people: every figure a row, beside those of an earlier report where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cli.output import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.figures import Bar, Figure
    from tests.benchmarks.report import Report

_HEAD = ("BENCHMARK", "FIGURE", "UNIT", "LEAST", "MEDIAN", "MOST", "BAR", "REACHED")
NO_LAG = "A longest lag of 0 is one of less than a millisecond."
QUICK = "A QUICK RUN, to see that all works: these are no figures to quote."


def lines(report: Report, earlier: Report | None = None) -> str:
    """Return a report as text."""
    before = {} if earlier is None else medians(earlier)
    head = [*_HEAD, *(("EARLIER", "CHANGE") if earlier is not None else ())]
    rows = [
        [*_row(name, figure), *(_change(figure, before.get((name, figure.name))) if earlier is not None else ())]
        for name, outcome in report.outcomes.items()
        for figure in outcome.figures
    ]
    notes = [f"{name}: {note}" for name, outcome in report.outcomes.items() for note in outcome.notes]
    told = [
        f"{report.when}, {report.rounds} rounds, {_of(report.versions)}, {_of(report.machine)}",
        *notes,
        *([NO_LAG] if any(figure.name.startswith("longest lag") for figure in _all(report)) else []),
        *(f"{name} FAILED: {why}" for name, why in report.failed.items()),
        *([QUICK] if report.quick else []),
        *(["The earlier report is of a quick run."] if earlier is not None and earlier.quick else []),
    ]
    return "\n".join([table(head, rows), "", *told])


def medians(report: Report) -> Mapping[tuple[str, str], float]:
    """Return every figure's median, by its benchmark's name and its own."""
    return {
        (name, figure.name): figure.median for name, outcome in report.outcomes.items() for figure in outcome.figures
    }


def _all(report: Report) -> Sequence[Figure]:
    return [figure for outcome in report.outcomes.values() for figure in outcome.figures]


def _row(name: str, figure: Figure) -> Sequence[object]:
    reached = {None: "", True: "yes", False: "NO"}[figure.reached]
    values = (figure.least, figure.median, figure.most)
    return [name, figure.name, figure.unit, *map(_number, values), _bar(figure.bar), reached]


def _change(figure: Figure, before: float | None) -> Sequence[object]:
    if before is None:
        return ["", ""]
    return [_number(before), f"{(figure.median / before - 1) * 100:+.0f} %" if before else ""]


def _bar(bar: Bar | None) -> str:
    if bar is None:
        return ""
    return f">= {bar.at_least:g}" if bar.at_least is not None else f"<= {bar.at_most:g}"


def _number(value: float) -> str:
    """Write three digits or more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _of(told: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in told.items())
