"""Chaos: faults strike three instances in the middle of refreshes, and the stand-in's ledger shows what that cost.

`pytest -n2 --dist load tests/e2e/test_chaos.py --chaos 10` runs ten rounds of each and ends with a table; without the
option some faults strike once.
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
PAIRS = ("unsaved", "saved")
AWAY = 8.0
"""Seconds between the stop of PostgreSQL and its start."""
LOCKED = 9.0
"""Seconds that another process holds SQLite's write lock: longer than the service waits for it."""


async def kill(cluster: Cluster) -> None:
    """Kill an instance, and start another in its place."""
    victim = cluster.stage.chance.randrange(INSTANCES)
    await cluster.begin_refreshes(victim)
    cluster.instances[victim].signal(signal.SIGKILL)
    await cluster.instances[victim].process.wait()
    await cluster.count_in_flight(victim)
    await cluster.start(victim)


async def stop(cluster: Cluster) -> None:
    """Stop an instance for longer than its leases, and let it continue."""
    victim = cluster.stage.chance.randrange(INSTANCES)
    await cluster.begin_refreshes(victim)
    cluster.instances[victim].signal(signal.SIGSTOP)
    await cluster.count_in_flight(victim)
    await asyncio.sleep(LEASE + 3)
    cluster.instances[victim].signal(signal.SIGCONT)


async def restart(cluster: Cluster) -> None:
    """Stop PostgreSQL, and start it again."""
    assert cluster.server is not None
    await cluster.begin_refreshes(*ALL)
    await cluster.count_in_flight(*ALL)
    await asyncio.to_thread(cluster.server.stop)
    await asyncio.sleep(AWAY)
    await asyncio.to_thread(cluster.server.start)


async def lock(cluster: Cluster) -> None:
    """Hold SQLite's write lock in another process: this one."""
    await cluster.begin_refreshes(*ALL)
    with closing(sqlite3.connect(cluster.stage.folder / DATABASE, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        await cluster.count_in_flight(*ALL)
        await asyncio.sleep(LOCKED)
        other.execute("ROLLBACK")


async def cut(cluster: Cluster) -> None:
    """Cut connections to PostgreSQL between COMMIT and its answer, while refreshes are claimed and pairs stored."""
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
"""SQLite has no connection that could be cut."""
SEVERAL_HOSTS = {"PostgreSQL, kill -9", "PostgreSQL, SIGSTOP", "PostgreSQL, restart"}
"""Faults that strike once in each run of all tests; tests/e2e/test_custody.py has those of SQLite."""


@pytest.fixture
def chaos(request: pytest.FixtureRequest, name: str) -> int:
    rounds = int(request.config.getoption("chaos"))
    if not rounds and name not in SEVERAL_HOSTS:
        pytest.skip("ask for this fault with --chaos ROUNDS")
    # Over several rounds a token may expire while the pair that replaced it is only in another instance's memory.
    return 1 if "keeps" in name else rounds or 1


@pytest.fixture
def progress(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return what prints a line at once, with the seconds since the test began, where many rounds were asked for."""
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
async def test_faults_in_the_middle_of_refreshes_lose_no_connection_silently(
    name: str,
    chaos: int,
    tmp_path: Path,
    encryption_key: str,
    progress: Callable[[str], None],
    record_property: Callable[[str, object], None],
) -> None:
    """Each connection stays good or is reported, no token is presented beyond the rules, none is invalid and fresh."""
    chance = Random(name)  # noqa: S311 -- because the moments of one run are to be those of the next
    async with AsyncExitStack() as stack:
        server = proxy = None
        if name.startswith("PostgreSQL"):
            if (why := why_not(ours=True)) is not None:
                pytest.skip(why)
            server = stack.enter_context(serving_postgres())
        if server is not None and FAULTS[name] is cut:
            proxy = await stack.enter_async_context(commit_proxy(server.folder, chance=chance))
        cluster = await stack.enter_async_context(running_cluster(tmp_path, encryption_key, server=server, proxy=proxy))
        cluster.stage.amo.fake.quirks.refresh_kills_access = kills = "keeps" not in name
        progress(f"{name}: {INSTANCES} instances are running")
        async with cluster.under_load():
            for number in range(1, chaos + 1):
                # Both behaviours of AMO's introspection, in turn.
                cluster.stage.amo.fake.quirks.introspection_accepts_spent = number % 2 == 0
                await FAULTS[name](cluster)
                await cluster.settle()
                progress(f"{name} {number}/{chaos}: {_line(cluster.figures())}")
            versions = {account: row.pair_version for account, row in (await cluster.rows()).items()}
            await cluster.settle(newer_than=versions)  # each can still be refreshed
        figures = cluster.figures()
        await cluster.stop()
        unsaved, saved = ([line for one in cluster.instances for line in one.named(f"pair.{word}")] for word in PAIRS)
    for figure, value in figures.items():
        record_property(figure, value)
    wrong = figures["invalid as fresh" if kills else "not served"]
    assert (figures["lost"], figures["beyond the rules"], wrong) == (0, 0, 0)
    assert min(figures["in flight"], figures["requests"], figures["refreshes"]) > 0
    if FAULTS[name] is restart:  # pairs are kept in memory and in rescue files, and stored when the database is back
        assert all(line["rescued"] for line in unsaved)
        assert len(saved) == len(unsaved)
        assert [file for file in tmp_path.glob("*/rescue/*") if not file.name.startswith(".")] == []


def _line(figures: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in figures.items())
