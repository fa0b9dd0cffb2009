"""Load from a process of its own: `wrk` where it is installed, else our own client."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WRK = shutil.which("wrk")
_SCRIPT = """
local paths, at = {{ {paths} }}, 0
function request()
  at = at % #paths + 1
  return wrk.format("GET", paths[at])
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "failures": %d, "seconds": %f, "p50": %f, "p99": %f, "max": %f}}\\n',
    summary.requests, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3
  ))
end
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What came of a load; times in milliseconds."""

    requests: int
    failures: int
    seconds: float
    p50: float
    p99: float
    max: float

    @property
    def per_second(self) -> float:
        """Requests that were answered in a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Callers who ask for these paths, in turn, as fast as they are answered."""

    folder: Path
    paths: Sequence[str]
    key: str
    callers: int

    async def on(self, address: str, *, seconds: float) -> Figures:
        """Ask a server for that long."""
        command = self._wrk(address, seconds) if WRK else self._own(address, seconds)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        found = re.search(rb'^\{"requests.*\}$', out, re.MULTILINE)
        assert found, out.decode()
        figures = Figures(**json.loads(found[0]))
        assert figures.failures == 0, figures
        return figures

    def _wrk(self, address: str, seconds: float) -> Sequence[str]:
        script = self.folder / "load.lua"
        script.write_text(_SCRIPT.format(paths=", ".join(f'"{path}"' for path in self.paths)), encoding="utf-8")
        authorization = f"Authorization: Bearer {self.key}"
        options = ("-t1", f"-c{self.callers}", f"-d{seconds:.0f}s", "-s", str(script), "-H", authorization)
        return (WRK or "wrk", *options, address)

    def _own(self, address: str, seconds: float) -> Sequence[str]:
        asked = self.folder / "load.json"
        what = {"address": address, "paths": self.paths, "key": self.key, "callers": self.callers, "seconds": seconds}
        asked.write_text(json.dumps(what), encoding="utf-8")
        return (sys.executable, "-m", "tests.benchmarks.client", str(asked))
