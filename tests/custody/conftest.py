"""What the tests of custody share: on SQLite, and some of them on PostgreSQL, too, whose clock is then the tests'."""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from amo_callback.store import open_store
from amo_callback.store.rows import ticks
from tests.conftest import Amo, serve_amo
from tests.custody.house import House
from tests.fakes import FakeClock, InlineExecutor
from tests.postgres import GIVEN, with_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from amo_callback.amo.client import AmoClient
    from amo_callback.cipher import Cipher
    from amo_callback.ports import Store
    from tests.fakes import Witness
    from tests.postgres import Databases

ON_BOTH = {"test_interleavings"}
"""The tests that always run on both engines."""
ON_EITHER = ON_BOTH | {
    *("test_breaker", "test_farewell", "test_fleet", "test_history", "test_keeper", "test_liveness"),
    *("test_refresher", "test_rescue", "test_unsaved"),
}
"""Those that do with `--engines both`. The rest are about what only one engine does: SQLite's leases, seen for a length
of time by whoever looks; its one file that is copied; its clock that goes back."""
_OUR_TIME = """
CREATE SCHEMA ours;
CREATE FUNCTION ours.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
AS 'SELECT to_timestamp(CAST(pg_read_file(''{file}'') AS BIGINT) / 1e6)';
CREATE FUNCTION ours.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT ours.statement_timestamp()';
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on one engine, or on both."""
    if "engine" in metafunc.fixturenames:
        these = ON_EITHER if metafunc.config.getoption("engines") == "both" else ON_BOTH
        both = metafunc.module.__name__.rpartition(".")[2] in these
        metafunc.parametrize("engine", ["sqlite", "postgresql"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class WrittenClock(FakeClock):
    """A clock that a database server can read."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._write()

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._write()
        super().advance(0)

    def _write(self) -> None:
        """Write the time, which a step of the process's own wall clock does not change."""
        fresh = self.file.with_name("clock.fresh")
        fresh.write_text(str(ticks(self.now() - self._step)))
        fresh.replace(self.file)  # nobody reads half of it


@pytest.fixture
def clock(engine: str) -> Iterator[FakeClock]:
    if engine == "sqlite":
        yield FakeClock()
        return
    with tempfile.TemporaryDirectory(prefix="clock-") as folder:
        Path(folder).chmod(0o755)  # the server is another user
        yield WrittenClock(Path(folder) / "clock")


@pytest.fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    url = "sqlite:///amo-callback.db"
    if not isinstance(clock, WrittenClock):
        async with open_store(url, folder=tmp_path, clock=clock) as opened:
            yield opened
        return
    async with (
        _in_our_time(request.getfixturevalue("postgres"), clock.file) as url,
        open_store(url, folder=tmp_path, clock=clock) as opened,
    ):
        yield opened


@asynccontextmanager
async def _in_our_time(postgres: Databases, file: Path) -> AsyncIterator[str]:
    """Have a database whose clock is a file: what it asks the time is found before the server's own function."""
    if GIVEN in os.environ:
        pytest.skip("its server may not see our files")
    async with postgres.fresh() as url:
        connection = await asyncpg.connect(url)
        await connection.execute(_OUR_TIME.format(file=file))
        await connection.close()
        yield with_option(url, "search_path=ours,pg_catalog")


@pytest.fixture(params=[False, True], ids=["mild", "harsh"])
async def amo(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Amo]:
    """Serve the stand-in both ways that AMO may be: what is not known of it is never relied on."""
    async with serve_amo(clock) as served:
        unknowns = served.vendor.unknowns
        unknowns.refresh_kills_access = unknowns.look_up_knows_spent = request.param
        unknowns.moved_status = 401 if request.param else 404
        yield served


@pytest.fixture
async def house(store: Store, amo: Amo, client: AmoClient, cipher: Cipher, clock: FakeClock, witness: Witness) -> House:
    asyncio.get_running_loop().set_default_executor(InlineExecutor())  # no thread of which a test does not know
    return House(store=store, amo=amo, client=client, cipher=cipher, clock=clock, witness=witness)
