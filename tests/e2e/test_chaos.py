"""Faults during refreshes of three instances, with their cost counted from the stand-in's ledger.

`pytest -n2 --dist load tests/e2e/test_chaos.py --chaos 10` runs ten rounds of each fault and prints a table.
Without the option each fault in `ALWAYS_TESTED` happens once.
"""

import asyncio
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from random import Random

import pytest

from amo_callback.clock import SystemClock
from tests.e2e.cluster import INSTANCES, LEASE, Cluster, running_cluster
from tests.e2e.costs import LATENCY
from tests.e2e.processes import DATABASE
from tests.e2e.proxy import commit_proxy
from tests.postgres import serving_postgres, why_not

Fault = Callable[[Cluster], Awaitable[None]]

ALL = range(INSTANCES)
RESTART = 8.0
"""Seconds between the stop of PostgreSQL and its start."""
LOCKED = 9.0
"""Seconds that another process holds SQLite's write lock: longer than the service waits for it."""


async def kill(cluster: Cluster) -> None:
    """Kill an instance and start another in its place."""
    chosen = cluster.stage.chance.randrange(INSTANCES)
    await cluster.begin_refreshes(chosen)
    cluster.instances[chosen].signal(signal.SIGKILL)
    await cluster.instances[chosen].process.wait()
    await cluster.count_in_flight(chosen)
    await cluster.start(chosen)


async def stop(cluster: Cluster) -> None:
    """Stop an instance for longer than its leases, then continue it."""
    chosen = cluster.stage.chance.randrange(INSTANCES)
    await cluster.begin_refreshes(chosen)
    cluster.instances[chosen].signal(signal.SIGSTOP)
    await cluster.count_in_flight(chosen)
    await asyncio.sleep(LEASE + 3)
    cluster.instances[chosen].signal(signal.SIGCONT)


async def restart(cluster: Cluster) -> None:
    """Stop PostgreSQL and start it after a while."""
    assert cluster.server is not None
    await cluster.begin_refreshes(*ALL)
    await cluster.count_in_flight(*ALL)
    await asyncio.to_thread(cluster.server.stop)
    await asyncio.sleep(RESTART)
    await asyncio.to_thread(cluster.server.start)


async def lock(cluster: Cluster) -> None:
    """Hold SQLite's write lock in this process."""
    await cluster.begin_refreshes(*ALL)
    with closing(sqlite3.connect(cluster.stage.folder / DATABASE, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        await cluster.count_in_flight(*ALL)
        await asyncio.sleep(LOCKED)
        other.execute("ROLLBACK")


async def cut(cluster: Cluster) -> None:
    """Cut connections to PostgreSQL between COMMIT and its answer, during claims and writes of pairs."""
    assert cluster.proxy is not None
    await cluster.begin_refreshes(*ALL)
    await cluster.count_in_flight(*ALL)
    cuts = cluster.proxy.cuts
    cluster.proxy.cutting = True
    await asyncio.sleep(2 * LATENCY)
    cluster.proxy.cutting = False
    assert cluster.proxy.cuts > cuts, "no COMMIT was recognised"


FAULTS = {
    "SQLite, kill -9": kill,
    "SQLite, SIGSTOP": stop,
    "SQLite, write lock": lock,
    "PostgreSQL, kill -9": kill,
    "PostgreSQL, SIGSTOP": stop,
    "PostgreSQL, restart": restart,
    "PostgreSQL, restart, AMO keeps old access tokens": restart,
    "PostgreSQL, COMMIT cut": cut,
}
"""The faults to test; `cut` is for PostgreSQL only, because SQLite has no connection to cut."""
ALWAYS_TESTED = {"PostgreSQL, kill -9", "PostgreSQL, SIGSTOP", "PostgreSQL, restart"}
"""Faults that happen once in each run of all tests; tests/e2e/test_custody.py tests SQLite's."""


@pytest.fixture
def chaos(request: pytest.FixtureRequest, name: str) -> int:
    rounds = int(request.config.getoption("chaos"))
    if not rounds and name not in ALWAYS_TESTED:
        pytest.skip("ask for this fault with --chaos ROUNDS")
    # Over several rounds a token may expire while the next pair is only in another instance's memory.
    return 1 if "keeps" in name else rounds or 1


@pytest.fixture
def progress(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return a function that prints a line with the elapsed seconds if `--chaos` is given."""
    clock = SystemClock()
    began = clock.monotonic()

    def write(line: str) -> None:
        if not request.config.getoption("chaos"):
            return
        with capfd.disabled():
            sys.stderr.write(f"\n{clock.monotonic() - began:4.0f} s  {line}")

    return write


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FAULTS)
async def test_faults_during_refreshes_lose_no_connection_unreported(
    name: str,
    chaos: int,
    tmp_path: Path,
    encryption_key: str,
    progress: Callable[[str], None],
    record_property: Callable[[str, object], None],
) -> None:
    """Each connection stays valid or is reported, and no token is presented or handed out against the rules."""
    chance = Random(name)  # noqa: S311 -- the seed makes runs repeatable
    async with AsyncExitStack() as stack:
        server = proxy = None
        if name.startswith("PostgreSQL"):
            if (why := why_not(ours=True)) is not None:
                pytest.skip(why)
            server = stack.enter_context(serving_postgres())
        if server is not None and FAULTS[name] is cut:
            proxy = await stack.enter_async_context(commit_proxy(server.folder, chance=chance))
        cluster = await stack.enter_async_context(running_cluster(tmp_path, encryption_key, server=server, proxy=proxy))
        cluster.stage.amo.fake.quirks.refresh_kills_access = invalidates = "keeps" not in name
        progress(f"{name}: {INSTANCES} instances are running")
        async with cluster.under_load():
            for number in range(1, chaos + 1):
                # both behaviours of AMO's introspection alternate
                cluster.stage.amo.fake.quirks.introspection_accepts_spent = number % 2 == 0
                await FAULTS[name](cluster)
                await cluster.settle()
                progress(f"{name} {number}/{chaos}: {_line(cluster.figures())}")
            versions = {account: row.pair_version for account, row in (await cluster.rows()).items()}
            await cluster.settle(newer_than=versions)  # every connection can still be refreshed
        figures = cluster.figures()
        await cluster.stop()
        pending = [line for one in cluster.instances for line in one.named("pair.write_pending")]
        completed = [line for one in cluster.instances for line in one.named("pair.write_completed")]
    for figure, value in figures.items():
        record_property(figure, value)
    wrong = figures["invalid as fresh" if invalidates else "not served"]
    assert (figures["lost"], figures["beyond the rules"], wrong) == (0, 0, 0)
    assert min(figures["in flight"], figures["requests"], figures["refreshes"]) > 0
    if FAULTS[name] is restart:  # pairs stay in memory and rescue files until the database is available
        assert pending
        assert all(line["rescued"] for line in pending)
        assert len(completed) == len(pending)
        assert [file for file in tmp_path.glob("*/rescue/*") if not file.name.startswith(".")] == []


def _line(figures: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in figures.items())
