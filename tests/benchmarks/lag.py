"""The lag of an event loop: how much later than asked for it goes on with a task that sleeps."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

_PERIOD = 0.005
_LEAST = 0.001
"""Seconds up to which a lag is none: the loop's own timers are no finer."""

T = TypeVar("T")


async def beside(file: Path, work: Coroutine[object, object, T]) -> T:
    """Run `work`, and write the loop's lags meanwhile."""
    sampler = asyncio.create_task(_sample(file), name="lag")
    try:
        return await work
    finally:
        sampler.cancel()


async def _sample(file: Path) -> None:
    """Write each lag that is one: when the loop came (CLOCK_MONOTONIC is the same for all processes), and how late."""
    with file.open("w", buffering=1, encoding="utf-8") as lines:
        while True:
            due = time.monotonic() + _PERIOD
            await asyncio.sleep(_PERIOD)
            came = time.monotonic()
            if came - due > _LEAST:
                lines.write(f"{came:.6f} {came - due:.6f}\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of time, by CLOCK_MONOTONIC."""

    since: float
    until: float


def longest(file: Path, window: Window) -> float:
    """Return the longest lag that began in a window, in milliseconds; 0 where there was none of over a millisecond."""
    return longest_of(file.read_text(encoding="utf-8"), window)


def longest_of(text: str, window: Window) -> float:
    """Do so for the lines of such a file; the last may be half written."""
    found = 0.0
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            came, lag = map(float, line.split())
            if window.since <= came - lag <= window.until:
                found = max(found, lag)
    return found * 1000
