"""The servers that are measured, each in a process of its own, and what is seen of one during a load."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tests.benchmarks.lag import Window, longest
from tests.benchmarks.process import cpu_seconds, running, until
from tests.conftest import API_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
    from pathlib import Path

AMO_CALLBACK = ("-m", "amo_callback.cli.main", "serve")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A process that serves, where, and since when."""

    public: str
    private: str
    pid: int
    lags: Path
    began: float
    ready: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a load did to a server's process."""

    cpu: float
    """Seconds."""
    lag: float
    """The longest of its loop's, in milliseconds."""
    idle: float
    """The longest of an idle loop's meanwhile."""


@asynccontextmanager
async def idle(folder: Path) -> AsyncIterator[Path]:
    """Run an idle loop meanwhile; return where its lags are written."""
    lags = folder / "idle.lags"
    arguments = ("-m", "tests.benchmarks.idle", str(lags))
    async with running(*arguments, folder=folder, out=folder / "idle.log") as process:
        await until(lags.exists, process)
        yield lags


@asynccontextmanager
async def bare(folder: Path, what: str, with_what: str) -> AsyncIterator[Server]:
    """Run a bare server."""
    out, lags, began = folder / f"{what}.log", folder / f"{what}.lags", time.monotonic()
    arguments = ("-m", "tests.benchmarks.bare", str(lags), what, with_what)
    async with running(*arguments, folder=folder, out=out) as process:
        await until(lambda: bool(out.read_text(encoding="utf-8").strip()), process)
        at = out.read_text(encoding="utf-8").strip()
        yield Server(public=at, private=at, pid=process.pid, lags=lags, began=began, ready=time.monotonic())


@asynccontextmanager
async def serving(
    folder: Path, environ: Mapping[str, str], *, access: bool = False, python: tuple[str, ...] | None = None
) -> AsyncIterator[Server]:
    """Run the service, with a sampler of its loop's lags, or as `python` is told to; its log goes to a file."""
    out, lags, errors = folder / "service.log", folder / "service.lags", folder / "service.errors"
    lags.unlink(missing_ok=True)
    errors.unlink(missing_ok=True)
    arguments = python or ("-m", "tests.benchmarks.subject", str(lags))
    with _supervisor(folder / "notify") as (address, ready):
        env = {**environ, "AMO_CALLBACK_LOG__ACCESS": str(access).lower(), "NOTIFY_SOCKET": address}
        began = time.monotonic()
        async with running(*arguments, folder=folder, environ=env, out=out, errors=errors) as process:
            try:
                await until(lambda: ready.done() and _addresses(out) is not None, process, every=0.01)
            except RuntimeError as error:
                raise RuntimeError(out.read_text(encoding="utf-8") + errors.read_text(encoding="utf-8")) from error
            public, private = _addresses(out) or ("", "")
            yield Server(public=public, private=private, pid=process.pid, lags=lags, began=began, ready=ready.result())


def _addresses(out: Path) -> tuple[str, str] | None:
    """Return where the service listens, once its log tells."""
    for line in out.read_text(encoding="utf-8").splitlines(keepends=True):
        if '"service.started"' in line and line.endswith("\n"):
            told = json.loads(line)
            return f"http://{told['public']}", f"http://{told['private']}"
    return None


@contextmanager
def _supervisor(path: Path) -> Iterator[tuple[str, asyncio.Future[float]]]:
    """Listen as systemd does, meanwhile; the future is done when `READY=1` is heard."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[float] = loop.create_future()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(path))

        def hear() -> None:
            if listener.recv(4096).startswith(b"READY=1") and not ready.done():
                ready.set_result(time.monotonic())

        loop.add_reader(listener, hear)
        try:
            yield str(path), ready
        finally:
            loop.remove_reader(listener)


async def seen(
    server: Server, idle_lags: Path, load: Coroutine[object, object, T], *, since: float | None = None
) -> tuple[T, Seen]:
    """Watch a server during a load; its lags count from `since` on, where that was before."""
    began, cpu = time.monotonic(), cpu_seconds(server.pid)
    result = await load
    cpu = cpu_seconds(server.pid) - cpu
    window = Window(since=began if since is None else since, until=time.monotonic())
    return result, Seen(cpu=cpu, lag=longest(server.lags, window), idle=longest(idle_lags, window))


def key_header() -> dict[str, str]:
    """Return the header by which a backend is known."""
    return {"Authorization": f"Bearer {API_KEY}"}
