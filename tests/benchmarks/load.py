"""Load from a process of its own: `wrk` for hand-outs, where it is installed, else our own client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.bare import DEEP_LINK
from tests.benchmarks.client import SlotDecision
from tests.benchmarks.process import HERE
from tests.conftest import API_KEY

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
    '\\n{{"requests": %d, "failures": %d, "first": "", "seconds": %f, "p50": %f, "p99": %f, "max": %f}}\\n',
    summary.requests, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3
  ))
end
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What came of a load; times in milliseconds."""

    requests: int
    failures: int
    first: str
    """The first failure, where it is known."""
    seconds: float
    p50: float
    p99: float
    max: float

    @property
    def per_second(self) -> float:
        """Requests that were answered in a second."""
        return self.requests / self.seconds


async def hand_outs(folder: Path, address: str, paths: Sequence[str], *, callers: int, seconds: float) -> Answers:
    """Ask for tokens, over and over, for that long."""
    if WRK is None:
        return await _own(folder, _tokens(address, paths, callers=callers, seconds=seconds))
    script = folder / "load.lua"
    script.write_text(_SCRIPT.format(paths=", ".join(f'"{path}"' for path in paths)), encoding="utf-8")
    authorization = f"Authorization: Bearer {API_KEY}"
    options = (f"-d{max(seconds, 1):.0f}s", "-s", str(script), "-H", authorization)
    return await _answers(WRK, "-t1", f"-c{callers}", *options, address)


async def hand_outs_once(folder: Path, address: str, paths: Sequence[str], *, callers: int) -> Answers:
    """Ask for each of these tokens once."""
    return await _own(folder, _tokens(address, paths, callers=callers, seconds=None))


async def callbacks(
    folder: Path, address: str, paths: Sequence[str], *, callers: int = 0, dues: Sequence[float] = ()
) -> Answers:
    """Come as AMO's redirect does, by each of these paths once: as fast as is answered, or each when it is due."""
    asked = SlotDecision(
        address=address,
        paths=paths,
        key="",
        status=302,
        location=DEEP_LINK,
        callers=callers,
        seconds=None,
        dues=dues,
    )
    return await _own(folder, asked)


def _tokens(address: str, paths: Sequence[str], *, callers: int, seconds: float | None) -> SlotDecision:
    return SlotDecision(
        address=address, paths=paths, key=API_KEY, status=200, location="", callers=callers, seconds=seconds, dues=()
    )


async def _own(folder: Path, asked: SlotDecision) -> Answers:
    file = folder / "load.json"
    file.write_text(json.dumps(dataclasses.asdict(asked)), encoding="utf-8")
    return await _answers(sys.executable, "-m", "tests.benchmarks.client", str(file))


async def _answers(*command: str) -> Answers:
    process = await asyncio.create_subprocess_exec(*command, cwd=HERE, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    found = re.search(rb'^\{"requests.*\}$', out, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{command[0]} failed: {out.decode()}")
    answers = Answers(**json.loads(found[0]))
    if answers.failures or not answers.requests:
        raise RuntimeError(f"{answers.failures} of {answers.requests} failed, the first: {answers.first}")
    return answers
