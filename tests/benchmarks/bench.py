"""What every benchmark is given, and the figures that several of them tell."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.figures import Bar, Figure, Point

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.benchmarks.load import Answers
    from tests.benchmarks.service import Seen

LAG = Bar(at_most=20)
CALLERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Under how much load latency is plotted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What a benchmark is given."""

    rounds: int
    folder: Path
    """An empty one."""
    idle: Path
    """Where the lags of an idle loop are written."""
    curves: bool
    """Whether latency against load is asked for, too."""

    def say(self, what: str) -> None:
        """Tell what is done now."""
        print(f"  {what}", file=sys.stderr, flush=True)


def lag_figures(seen: Sequence[Seen], *, suffix: str = "") -> Sequence[Figure]:
    """Tell the service's loop's longest lags, and by how much they exceed an idle loop's."""
    return [
        Figure(name=f"longest lag{suffix}", unit="ms", values=[one.lag for one in seen]),
        Figure(name=f"longest lag, idle loop{suffix}", unit="ms", values=[one.idle for one in seen]),
        Figure(
            name=f"longest lag over idle's{suffix}", unit="ms", values=[one.lag - one.idle for one in seen], bar=LAG
        ),
    ]


def cpu_of(answers: Answers, seen: Seen) -> float:
    """Return the CPU time of one request, in microseconds."""
    return seen.cpu / answers.requests * 1e6


def load_figures(
    loads: Sequence[tuple[Answers, Seen]], *, what: str, suffix: str = "", lag: bool = False
) -> Sequence[Figure]:
    """Tell how fast requests were answered, and what CPU one took."""
    return [
        Figure(name=f"{what}{suffix}", unit="1/s", values=[one.per_second for one, _ in loads]),
        Figure(name=f"p50{suffix}", unit="ms", values=[one.p50 for one, _ in loads]),
        Figure(name=f"p99{suffix}", unit="ms", values=[one.p99 for one, _ in loads]),
        Figure(name=f"longest{suffix}", unit="ms", values=[one.max for one, _ in loads]),
        Figure(name=f"CPU a request{suffix}", unit="us", values=[cpu_of(one, seen) for one, seen in loads]),
        *([Figure(name=f"longest lag{suffix}", unit="ms", values=[seen.lag for _, seen in loads])] if lag else []),
    ]


async def curve(load: Callable[[int], Awaitable[Answers]], callers: Sequence[int]) -> Sequence[Point]:
    """Measure latency under more and more load."""
    points = []
    for number in callers:
        answers = await load(number)
        points.append(Point(callers=number, per_second=answers.per_second, p50=answers.p50, p99=answers.p99))
    return points
