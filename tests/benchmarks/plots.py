"""Plots of latency against load, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.figures import Point
    from tests.benchmarks.report import Report


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
    """Draw latency (p50 and p99, on a logarithmic axis) against the requests that were answered in a second."""
    import pygal  # type: ignore[import-untyped]  # noqa: PLC0415 -- because nothing else needs it

    chart: Any = pygal.XY(
        title=f"{name}: latency against load" + (" (a quick run: no figures to quote)" if quick else ""),
        x_title="answered a second",
        y_title="milliseconds",
        logarithmic=True,
        legend_at_bottom=True,
        js=[],  # an image needs no script from elsewhere
    )
    for who, points in curves.items():
        for what in ("p50", "p99"):
            chart.add(f"{who}, {what}", [_dot(point, getattr(point, what)) for point in points])
    drawn: bytes = chart.render()
    return drawn


def _dot(point: Point, milliseconds: float) -> Mapping[str, object]:
    return {"value": (point.per_second, milliseconds), "label": f"{point.callers} callers"}
