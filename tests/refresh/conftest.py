"""Fixtures of refresh and access-token tests, on SQLite and partly on PostgreSQL, with the fake clock."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.crypto import Cipher
from amo_callback.store import Store, open_store
from tests.fakes import FakeClock, InlineExecutor, RecordingObserver
from tests.postgres import WrittenClock, in_our_time, written_clock
from tests.refresh.harness import RefreshHarness
from tests.service import Amo, serve_amo

ON_BOTH = {
    *("test_access_tokens", "test_address_block", "test_clocks", "test_hooks", "test_interleavings", "test_names"),
    "test_refused",
}
"""Modules that always run on both engines."""
ON_POSTGRES = {"test_shared_clock"}
"""Modules for instances on several machines, which run on PostgreSQL only."""
ON_EITHER = ON_BOTH | {
    *("test_access_token_check", "test_breaker", "test_coordinator", "test_disconnection", "test_history"),
    *("test_mass_failure", "test_pending_writes", "test_rescue", "test_scheduler"),
}
"""Modules that run on both engines with `--engines both`.

The other modules test functions of one engine only: SQLite's leases, which each process measures, its copied files,
and a clock that is moved back.
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on one or both engines, with both possible behaviours of AMO.

    With two engines, PostgreSQL gets one behaviour, because AMO's behaviour does not depend on the engine.
    """
    if "engine" not in metafunc.fixturenames:
        return
    these = ON_EITHER if metafunc.config.getoption("engines") == "both" else ON_BOTH
    name = metafunc.module.__name__.rpartition(".")[2]
    engines = ["sqlite"] * (name not in ON_POSTGRES) + ["postgresql"] * (name in these | ON_POSTGRES)
    if "amo" not in metafunc.fixturenames:
        metafunc.parametrize("engine", engines, indirect=True)
        return
    cases = [(engine, amo) for engine in engines for amo in ("mild", "harsh") if engine == engines[0] or amo == "harsh"]
    metafunc.parametrize(("engine", "amo"), cases, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(engine: str) -> Iterator[FakeClock]:
    if engine == "sqlite":
        yield FakeClock()
        return
    with written_clock() as clock:
        yield clock


@pytest.fixture
async def url(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[str]:
    """Return the URL of a new database that uses the fake clock."""
    if not isinstance(clock, WrittenClock):
        yield "sqlite:///amo-callback.db"
        return
    async with in_our_time(request.getfixturevalue("postgres"), clock) as found:
        yield found


@pytest.fixture
async def store(url: str, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(url, folder=tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
async def amo(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Amo]:
    """Serve the stand-in with the behaviour `mild` or `harsh`, because AMO's real behaviour is unknown."""
    async with serve_amo(clock) as served:
        quirks = served.fake.quirks
        quirks.refresh_kills_access = quirks.introspection_accepts_spent = request.param == "harsh"
        quirks.moved_status = 401 if request.param == "harsh" else 404
        yield served


@pytest.fixture
async def harness(
    store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock, witness: RecordingObserver
) -> RefreshHarness:
    asyncio.get_running_loop().set_default_executor(InlineExecutor())  # because a test cannot wait for a thread
    return RefreshHarness(store=store, amo=amo, client=client, cipher=cipher, clock=clock, witness=witness)
