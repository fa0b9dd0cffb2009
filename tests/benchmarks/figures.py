"""Figures: what was measured, in every round, and the bar that it should reach."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the least of some ordered values that so large a share of them does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """What the median of a figure should reach: one of the two."""

    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of a benchmark: a value a round."""

    name: str
    unit: str
    values: Sequence[float]
    bar: Bar | None = None

    @property
    def least(self) -> float:
        """The least of its values."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The median of its values."""
        return statistics.median(self.values)

    @property
    def most(self) -> float:
        """The most of its values."""
        return max(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the bar; `None` without one."""
        return None if self.bar is None else self.bar.reached(self.median)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """How long answers took under the load of so many callers; times in milliseconds."""

    callers: int
    per_second: float
    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of one benchmark."""

    figures: Sequence[Figure]
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """Latency against load, by the name of who was asked."""
    notes: Sequence[str] = ()
    """What a reader of the figures should know."""
