"""Processes that are measured: how they are run, and what the kernel tells of them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable, Mapping

_PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).parents[2]


@asynccontextmanager
async def running(
    *arguments: str, folder: Path, out: Path, environ: Mapping[str, str] | None = None, errors: Path | None = None
) -> AsyncIterator[Process]:
    """Run Python with its output in a file, and stop it at the end."""
    env = {"PYTHONPATH": str(HERE), "PATH": os.defpath, **(environ or {})}
    with out.open("wb") as file, (errors or Path(os.devnull)).open("ab") as error_file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=folder, env=env, stdout=file, stderr=error_file if errors else None
        )
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()


async def until(found: Callable[[], bool], process: Process, *, every: float = 0.02) -> None:
    """Wait until what a process does is seen; raises where it ends before, or takes too long."""
    give_up_at = time.monotonic() + _PATIENCE
    while not found():
        if process.returncode is not None:
            raise RuntimeError(f"the process ended with {process.returncode}")
        if time.monotonic() > give_up_at:
            raise TimeoutError
        await asyncio.sleep(every)


def cpu_seconds(pid: int) -> float:
    """Return how long all threads of a process have run, in the kernel too."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int) -> float:
    """Return a process's resident set, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1000
