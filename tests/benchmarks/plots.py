"""Plots of latency against load, as SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.figures import Point
    from tests.benchmarks.report import Report


_COLOURS = ("#1f6fb4", "#c25a10", "#3a8a3a", "#7a4aa0")
"""One for each who was asked."""


def draw(report: Report, folder: Path) -> Sequence[Path]:
    """Draw what a report has of it; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, outcome in report.outcomes.items():
        if outcome.curves:
            drawn.append(folder / f"{name}.svg")
            drawn[-1].write_bytes(plot(name, outcome.curves, quick=report.quick))
    return drawn


def plot(name: str, curves: Mapping[str, Sequence[Point]], *, quick: bool) -> bytes:
    """Draw latency, p50 and p99 (dashed), against the requests that were answered in a second, on logarithmic axes."""
    import pygal  # type: ignore[import-untyped]  # noqa: PLC0415 -- because nothing else needs it
    from pygal.style import Style  # type: ignore[import-untyped]  # noqa: PLC0415 -- the same

    speeds = sorted(point.per_second for points in curves.values() for point in points)
    chart: Any = pygal.XY(
        title=f"{name}: latency against load" + (" (a quick run: no figures to quote)" if quick else ""),
        x_title="answered a second, for so many callers as stand at the dots",
        y_title="milliseconds",
        xrange=(speeds[0] * 0.8, speeds[-1] * 1.25),
        x_labels=ticks(speeds),
        y_labels=ticks([value for points in curves.values() for point in points for value in (point.p50, point.p99)]),
        logarithmic=True,
        legend_at_bottom=True,
        print_labels=True,
        js=[],  # an image needs no script from elsewhere
        style=Style(colors=[colour for colour in _COLOURS for _ in ("p50", "p99")]),
    )
    for who, points in curves.items():
        chart.add(f"{who}, p50", [_dot(point, point.p50, label=str(point.callers)) for point in points])
        p99 = [_dot(point, point.p99) for point in points]
        chart.add(f"{who}, p99 (dashed)", p99, stroke_style={"dasharray": "3, 4"})
    drawn: bytes = chart.render()
    return drawn


def ticks(values: Sequence[float]) -> Sequence[float]:
    """Return the round numbers around some values, three in each power of ten."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    found = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    low = max((tick for tick in found if tick <= min(values)), default=found[0])
    high = min((tick for tick in found if tick >= max(values)), default=found[-1])
    return [tick for tick in found if low <= tick <= high]


def _dot(point: Point, milliseconds: float, *, label: str = "") -> Mapping[str, object]:
    return {"value": (point.per_second, milliseconds), "label": label}
