"""Reports: what a run has found, where and with what, and how it is kept as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sqlite3
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amo_callback import __version__
from tests.benchmarks.figures import Bar, Figure, Outcome, Point

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A run."""

    when: str
    quick: bool
    """Whether it was a small run, to see that all works: then its figures are not to be quoted."""
    rounds: int
    versions: Mapping[str, str]
    machine: Mapping[str, object]
    options: Mapping[str, object] = field(default_factory=dict)
    """Of each benchmark."""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    """Benchmarks that failed, and why."""


def begin(*, folder: str, quick: bool, rounds: int) -> Report:
    """Return a report of this machine, where databases are in a folder, without any outcome yet."""
    return Report(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        rounds=rounds,
        versions=_versions(),
        machine={
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "cpu": _cpu(),
            "filesystem": _said("stat", "--file-system", "--format=%T", folder),
        },
    )


def to_json(report: Report) -> str:
    """Write a report; the least, the median and the most are there for who reads it elsewhere."""
    content = dataclasses.asdict(report)
    for name, outcome in report.outcomes.items():
        for written, figure in zip(content["outcomes"][name]["figures"], outcome.figures, strict=True):
            written |= {name: getattr(figure, name) for name in ("least", "median", "most", "reached")}
    return json.dumps(content, indent=2) + "\n"


def from_json(text: str) -> Report:
    """Read a report."""
    content = json.loads(text)
    return Report(**{**content, "outcomes": {name: _outcome(one) for name, one in content["outcomes"].items()}})


def _outcome(content: dict[str, Any]) -> Outcome:
    return Outcome(
        figures=[_figure(one) for one in content["figures"]],
        curves={name: [Point(**one) for one in points] for name, points in content["curves"].items()},
        notes=content["notes"],
    )


def _figure(content: dict[str, Any]) -> Figure:
    return Figure(
        name=content["name"],
        unit=content["unit"],
        values=content["values"],
        bar=None if content["bar"] is None else Bar(**content["bar"]),
    )


def _versions() -> Mapping[str, str]:
    return {
        "amo-callback": __version__,
        "commit": (_said("git", "rev-parse", "HEAD") or "unknown")
        + ("-dirty" if _said("git", "status", "--porcelain") else ""),
        "python": platform.python_version(),
        "aiohttp": version("aiohttp"),
        "uvloop": version("uvloop"),
        "sqlite": sqlite3.sqlite_version,
    }


def _said(*command: str) -> str:
    """Return what a command says, nothing where it cannot."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603 -- because the words are our own
    except OSError:
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()
