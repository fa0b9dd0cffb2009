"""What it takes to import the service: Python's own account of it (`-X importtime`)."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINE = re.compile(r"import time:\s+(?P<own>[0-9]+) \|\s+[0-9]+ \| *(?P<name>\S+)")


def import_times(text: str, *, most: int = 10) -> Mapping[str, float]:
    """Return the packages that take longest, in milliseconds: each module's own time, by its top-level package."""
    times: Counter[str] = Counter()
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.rstrip()):
            times[match["name"].partition(".")[0]] += int(match["own"])
    return {name: microseconds / 1000 for name, microseconds in times.most_common(most)}
