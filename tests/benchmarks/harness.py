"""The harness of all benchmarks: servers in separate processes, their loads, rounds and figures."""

import asyncio
import dataclasses
import json
import os
import re
import shutil
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.client import Answers, LoadRequest
from tests.benchmarks.report import Figure
from tests.service import API_KEY

ROOT = Path(__file__).parents[2]
AMO_CALLBACK = ("-m", "amo_callback.cli.main", "serve")
DEEP_LINK = "foryoure://amo-crm/callback?code="
WRK = shutil.which("wrk")
CALLERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The numbers of callers for which latency is plotted."""
_WAIT_LIMIT = 60.0
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

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Server:
    """A server's process, its addresses, and when it was started and became ready (CLOCK_MONOTONIC)."""

    public: str
    private: str
    pid: int
    lags: Path
    began: float
    ready: float
    lags_from: float | None = None
    """The time from which lags count for the next load, if they count before the load starts."""

    @property
    def resident(self) -> float:
        [size] = re.findall(
            r"^VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8"), re.MULTILINE
        )
        return int(size) / 1000

    def cpu_seconds(self) -> float:
        """Return the CPU time of all threads, in user and kernel mode."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedClient:
    """A server's CPU time in seconds during a load, and the longest lags of its loop and an idle loop in ms."""

    cpu: float
    lag: float
    idle: float


Load = tuple["Answers", ObservedClient]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The environment of a benchmark: an empty folder, an idle loop's lags, and whether curves are requested."""

    rounds: int
    folder: Path
    idle: Path
    curves: bool

    async def alternate(self, *, what: str, **measures: Callable[[], Awaitable[T]]) -> dict[str, list[T]]:
        """Run each measurement once per round, in turn; return the results by name."""
        found: dict[str, list[T]] = {name: [] for name in measures}
        for number in range(self.rounds):
            print(f"  {what}, round {number + 1}", file=sys.stderr, flush=True)
            for name, measure in measures.items():
                found[name].append(await measure())
        return found

    async def seen(self, server: Server, load: Coroutine[object, object, T]) -> tuple[T, ObservedClient]:
        """Run a load; return its result, and the server's CPU time and lags meanwhile."""
        began, cpu = time.monotonic(), server.cpu_seconds()
        result = await load
        cpu = server.cpu_seconds() - cpu
        since, server.lags_from = server.lags_from or began, None
        lag, idle = (
            longest_lag(one.read_text(encoding="utf-8"), since, time.monotonic()) for one in (server.lags, self.idle)
        )
        return result, ObservedClient(cpu=cpu, lag=lag, idle=idle)

    # --- loads ---------------------------------------------------------------------------------------

    async def tokens(self, server: Server, paths: Sequence[str], *, callers: int, seconds: float | None) -> Answers:
        """Request access tokens, repeatedly for `seconds`, or once per path if it is `None`."""
        if WRK is None or seconds is None:
            asked = LoadRequest(address=server.private, paths=paths, key=API_KEY, callers=callers, seconds=seconds)
            return await self._own_client(asked)
        script = self.folder / "load.lua"
        script.write_text(_SCRIPT.format(paths=", ".join(f'"{path}"' for path in paths)), encoding="utf-8")
        key = f"Authorization: Bearer {API_KEY}"
        options = (f"-d{max(seconds, 1):.0f}s", "-s", str(script), "-H", key)
        return await _answers(WRK, "-t1", f"-c{callers}", *options, server.private)

    async def callbacks(
        self, server: Server, paths: Sequence[str], *, callers: int = 0, dues: Sequence[float] = ()
    ) -> Answers:
        """Request each callback path once, as after AMO's redirect: after the caller's previous answer, or when due."""
        good = f"\r\nLocation: {DEEP_LINK}"
        return await self._own_client(
            LoadRequest(address=server.public, paths=paths, callers=callers, dues=dues, good=good)
        )

    async def _own_client(self, asked: LoadRequest) -> Answers:
        file = self.folder / "load.json"
        file.write_text(json.dumps(dataclasses.asdict(asked)), encoding="utf-8")
        return await _answers(sys.executable, "-m", "tests.benchmarks.client", str(file))

    async def curves_of(
        self, loads: Mapping[str, Callable[[int], Awaitable[Load]]]
    ) -> Mapping[str, Sequence[Sequence[float]]]:
        """Measure latency with an increasing number of callers, if curves are requested."""
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in loads if self.curves}
        for name, points in found.items():
            for callers in CALLERS:
                answers, _ = await loads[name](callers)
                points.append((callers, answers.per_second, answers.p50, answers.p99))
        return found

    # --- servers -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def bare(self, what: str, with_what: str) -> AsyncIterator[Server]:
        """Run a server of tests/benchmarks/servers.py, which prints its address."""
        lags, out, began = self.folder / f"{what}.lags", self.folder / f"{what}.log", time.monotonic()
        async with running("-m", "tests.benchmarks.servers", str(lags), what, with_what, out=out) as process:
            await until(lambda: out.read_bytes().endswith(b"\n"), process)
            at = out.read_text(encoding="utf-8").strip()
            yield Server(public=at, private=at, pid=process.pid, lags=lags, began=began, ready=time.monotonic())

    @asynccontextmanager
    async def service(
        self, environ: Mapping[str, str], *, access: bool = False, python: Sequence[str] = ()
    ) -> AsyncIterator[Server]:
        """Run the service with a sampler of its loop's lags, or by the arguments `python`; log to a file."""
        out, errors, lags = (self.folder / f"service.{name}" for name in ("log", "errors", "lags"))
        lags.unlink(missing_ok=True)
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        arguments = python or ("-m", "tests.benchmarks.servers", str(lags), "service")
        output: dict[str, float] = {}
        started = re.compile(rb'^.*"service.started".*\n', re.MULTILINE)

        def is_ready() -> bool:
            """Return whether `READY=1` was received and the start is in the log, which a thread writes later."""
            with suppress(BlockingIOError):
                if listener.recv(4096).startswith(b"READY=1"):
                    output["ready"] = time.monotonic()
            return "ready" in output and started.search(out.read_bytes()) is not None

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(str(notify))
            env = {**environ, "AMO_CALLBACK_LOG__ACCESS": str(access).lower(), "NOTIFY_SOCKET": str(notify)}
            began = time.monotonic()
            async with running(*arguments, out=out, environ=env, errors=errors, folder=self.folder) as process:
                try:
                    await until(is_ready, process, every=0.005)
                except RuntimeError as error:
                    raise RuntimeError(out.read_text("utf-8") + errors.read_text("utf-8")) from error
                line = json.loads(next(started.finditer(out.read_bytes()))[0])
                public, private = (f"http://{line[api]}" for api in ("public", "private"))
                yield Server(
                    public=public,
                    private=private,
                    pid=process.pid,
                    lags=lags,
                    began=began,
                    ready=output["ready"],
                    lags_from=output["ready"],
                )


@asynccontextmanager
async def idle_loop(folder: Path) -> AsyncIterator[Path]:
    """Run an idle event loop, whose lags are caused by the machine; yield the file of its lags."""
    lags = folder / "idle.lags"
    async with running("-m", "tests.benchmarks.servers", str(lags), "idle", out=folder / "idle.log") as process:
        await until(lags.exists, process)
        yield lags


@asynccontextmanager
async def running(
    *arguments: str,
    out: Path,
    errors: Path = Path(os.devnull),
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> AsyncIterator[Process]:
    """Run Python with its output in a file, and terminate it when the block ends."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, **(environ or {})}
    with out.open("wb") as file, errors.open("wb") as error_file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=folder or out.parent, env=env, stdout=file, stderr=error_file
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), _WAIT_LIMIT)


async def until(found: Callable[[], bool], process: Process, *, every: float = 0.02) -> None:
    """Wait until `found` is true; raise an error if the process ends first or the time limit is exceeded."""
    give_up_at = time.monotonic() + _WAIT_LIMIT
    while not found():
        if process.returncode is not None:
            raise RuntimeError(f"the process ended with {process.returncode}")
        if time.monotonic() > give_up_at:
            raise TimeoutError
        await asyncio.sleep(every)


async def _answers(*command: str) -> Answers:

    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    found = re.search(rb'^\{"requests.*\}$', out, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{command[0]} failed: {out.decode()}")
    answers = Answers(**json.loads(found[0]))
    if answers.failures or not answers.requests:
        raise RuntimeError(f"{answers.failures} of {answers.requests} failed, the first: {answers.first}")
    return answers


# --- figures -----------------------------------------------------------------------------------------


def longest_lag(text: str, since: float, until: float) -> float:
    """Return the longest lag that began between two times, in milliseconds; an incomplete last line is ignored."""
    found = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return 1000 * max((float(lag) for came, lag in found if since <= float(came) - float(lag) <= until), default=0.0)


def lag_figures(seen: Sequence[ObservedClient], *, suffix: str = "", at_most: float | None = 20) -> Sequence[Figure]:
    """Return the longest lags of the service's loop, and their difference from an idle loop's."""
    over = [one.lag - one.idle for one in seen]
    return [
        Figure(name=f"longest lag{suffix}", unit="ms", values=[one.lag for one in seen]),
        Figure(name=f"longest lag over idle's{suffix}", unit="ms", values=over, at_most=at_most),
    ]


def cpu_of(loads: Sequence[Load]) -> Sequence[float]:
    """Return the CPU time of one request in each load, in microseconds."""
    return [seen.cpu / answers.requests * 1e6 for answers, seen in loads]


def load_figures(loads: Sequence[Load], *, what: str, suffix: str = "") -> Sequence[Figure]:
    """Return the request rate, the latencies, and the CPU time per request."""
    return [
        Figure(name=f"{what}{suffix}", unit="1/s", values=[one.per_second for one, _ in loads]),
        *(
            Figure(name=f"{name}{suffix}", unit="ms", values=[getattr(one, name) for one, _ in loads])
            for name in ("p50", "p99", "max")
        ),
        Figure(name=f"CPU a request{suffix}", unit="us", values=cpu_of(loads)),
    ]


def ratios(name: str, ours: Sequence[float], theirs: Sequence[float], **bar: float | None) -> Figure:
    """Return the ratio of `ours` to `theirs` in each round."""
    return Figure(name=name, unit="ratio", values=[a / b for a, b in zip(ours, theirs, strict=True)], **bar)
