"""Real processes of the service and of its commands."""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.wait_limit import WAIT_LIMIT


class Process:
    """A running `amo-callback`, whose log is read continuously, because a full pipe would block it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._heard = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until(self, event: str, *, times: int = 1) -> dict[str, Any]:
        """Wait until an event has been logged a number of times."""
        async with asyncio.timeout(WAIT_LIMIT):
            while len(self.named(event)) < times:
                assert not self._reading.done(), "the process has ended"
                self._heard.clear()
                await self._heard.wait()
        return self.named(event)[-1]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):  # a killed process may leave an incomplete line
                self.lines.append(json.loads(line))
            self._heard.set()
        self._heard.set()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def stop(self) -> None:
        """Stop the process as systemd does."""
        self.signal(signal.SIGTERM)
        assert await self.ended() == 0

    async def ended(self) -> int:
        """Wait for the end of the log and return the exit status."""
        await asyncio.wait_for(asyncio.shield(self._reading), WAIT_LIMIT)
        return await self.process.wait()


def process_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without `AMO_CALLBACK*` and `PYTEST*` variables, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMO_CALLBACK", "PYTEST"))}
    return {**kept, **more}


_PASS_SOCKETS = """
import os, sys
given = [os.dup2(int(number), 100 + at) for at, number in enumerate(sys.argv[1:])]
for at, number in enumerate(given):
    os.dup2(number, 3 + at)
    os.close(number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}
os.execv(sys.executable, [sys.executable, "-m", "amo_callback.cli.main", "serve"])
"""
"""Passes sockets as systemd does: from descriptor 3 on, to this process only."""


def _limiting(open_files: tuple[int, int] | None) -> Callable[[], None] | None:
    """Return a function that sets a child's soft and hard limit of descriptors."""
    return None if open_files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, open_files)


@asynccontextmanager
async def serving(
    environ: Mapping[str, str],
    folder: Path,
    *,
    listeners: Sequence[socket.socket] = (),
    open_files: tuple[int, int] | None = None,
) -> AsyncIterator[Process]:
    """Run `amo-callback serve`, optionally with the listening sockets given, and kill it at the end.

    `open_files` are the soft and the hard limit of descriptors.
    """
    descriptors = [listener.fileno() for listener in listeners]
    run = ["-c", _PASS_SOCKETS, *map(str, descriptors)] if listeners else ["-m", "amo_callback.cli.main", "serve"]
    variables = {"LISTEN_FDNAMES": "public:private"} if listeners else {}
    started = await asyncio.create_subprocess_exec(
        sys.executable, *run, cwd=folder, env=process_environment({**environ, **variables}), pass_fds=descriptors,
        preexec_fn=_limiting(open_files), stdout=asyncio.subprocess.PIPE, limit=2**20,
    )  # fmt: skip
    process = Process(started)
    try:
        yield process
    finally:
        if started.returncode is None:
            started.kill()
            await process.ended()


async def command(
    *arguments: str, folder: Path, environ: Mapping[str, str] | None = None, open_files: tuple[int, int] | None = None
) -> tuple[int, str, str]:
    """Run `amo-callback` and return exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "amo_callback.cli.main", *arguments,
        cwd=folder, env=process_environment(environ or {}),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        preexec_fn=_limiting(open_files),
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), WAIT_LIMIT)
    return process.returncode or 0, without_slow_steps(out.decode()), without_slow_steps(err.decode())


def without_slow_steps(text: str) -> str:
    """Remove asyncio's development-mode warnings about slow steps, in plain text or log lines."""
    return "".join(line for line in text.splitlines(keepends=True) if "Executing <" not in line)
