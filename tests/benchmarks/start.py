"""How long the service takes to be ready, and how much memory it holds, fresh and with many connections.

    python -m tests.benchmarks.start [--rounds 5] [--connections 10000]

Ready is what systemd hears: `READY=1`, from the start of the process on. Memory is its resident set: when it is ready,
and once the token of each connection has been handed out, so that all of them are remembered.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from amo_callback.cipher import new_key
from amo_callback.cli.loop import run_loop
from amo_callback.clock import SystemClock
from tests.benchmarks.service import AT_ONCE, Server, connect_accounts, key_header, serving
from tests.conftest import environment, serve_amo


def _resident(server: Server) -> float:
    """Return a process's resident set, in MB."""
    [line] = [
        line
        for line in Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("VmRSS:")
    ]
    return int(line.split()[1]) / 1000


async def _start(folder: Path, environ: dict[str, str]) -> tuple[float, float]:
    """Start once; return the seconds until it was ready, and its memory then."""
    told = folder / "notify"
    told.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(told))
        began = time.perf_counter()
        ready = asyncio.create_task(asyncio.get_running_loop().sock_recv(listener, 4096))
        async with serving(folder, {**environ, "NOTIFY_SOCKET": str(told)}, access=False) as server:
            assert (await ready).startswith(b"READY=1")
            return time.perf_counter() - began, _resident(server)


async def _measure(options: argparse.Namespace, folder: Path) -> None:
    async with serve_amo(SystemClock()) as amo, aiohttp.ClientSession() as http:
        environ = environment(amo, new_key(), LIMITS__UNPROVEN="100000")
        starts = [await _start(folder, environ) for _ in range(options.rounds)]
        _print("with no connection", starts)
        async with serving(folder, environ, access=False) as server:
            names = await connect_accounts(http, server, amo, connections=options.connections)
            print(f"  after {options.connections} were connected: {_resident(server):.0f} MB")
        starts = [await _start(folder, environ) for _ in range(options.rounds)]
        _print(f"with {options.connections} connections", starts)
        async with serving(folder, environ, access=False) as server:
            await _hand_out(http, server, names)
            print(f"  with all of them remembered: {_resident(server):.0f} MB")


async def _hand_out(http: aiohttp.ClientSession, server: Server, names: list[str]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def take(name: str) -> None:
        async with places, http.get(f"{server.private}/connections/{name}/token", headers=key_header()) as answer:
            assert answer.status == 200, await answer.text()

    await asyncio.gather(*map(take, names))


def _print(what: str, starts: list[tuple[float, float]]) -> None:
    seconds, memory = [one for one, _ in starts], [one for _, one in starts]
    print(f"{what} (least / median / most of {len(starts)} starts)")
    print(f"  seconds to READY  {min(seconds):.2f} / {statistics.median(seconds):.2f} / {max(seconds):.2f}")
    print(f"  MB when ready     {min(memory):.0f} / {statistics.median(memory):.0f} / {max(memory):.0f}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=10_000)
    with TemporaryDirectory() as folder:
        run_loop(_measure(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
