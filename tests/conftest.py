"""Options and fixtures of all tests."""

import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.crypto import Cipher, new_key
from amo_callback.store import Store, open_store
from tests.fakes import FakeClock, RecordingObserver, ShiftedClock
from tests.postgres import Databases, databases, why_not
from tests.service import Amo, Running, amo_client, environment, run_service, serve_amo

ROUNDS = 3
FUZZ = 10
_SECONDS_A_ROUND = 20
_SECONDS_A_CASE = 6
_SLOWEST = ("e2e", "browser", "fuzz")
"""Folders with slow tests, which run first: a slow test at the end would leave the other workers idle."""

# No test may fail because the machine is slow.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")


def pytest_xdist_auto_num_workers() -> int:
    """Return two workers more than there are cores, because many tests wait for processes and browsers."""
    return (os.cpu_count() or 1) + 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        type=Path,
        metavar="FOLDER",
        help="save screenshots of the pages in each state, language and color scheme to this folder",
    )
    parser.addoption(
        "--rounds",
        type=int,
        default=ROUNDS,
        metavar="N",
        help=(
            "the number of rounds of the tests that stop or kill a service during refreshes, refresh by several "
            "processes, or simulate faults (default: %(default)s, which is quick; use 40 for figures). "
            "tests/refresh/test_simulation.py splits more than 20 rounds into parts, which --dist=load distributes to "
            "processes; each part has its own seed, which depends on --hypothesis-seed"
        ),
    )
    parser.addoption(
        "--chaos",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="the number of rounds of each fault during refreshes by three instances (default: some faults, once)",
    )
    parser.addoption(
        "--fuzz",
        type=int,
        default=FUZZ,
        metavar="N",
        help="the number of cases that schemathesis generates for each operation (default: %(default)s)",
    )
    parser.addoption(
        "--openapi-generator",
        action="store_true",
        help=(
            "generate and use clients with OpenAPI Generator, too. This needs Java, the package openapi-generator-cli "
            "(34 MB), the tools of each language, and a network for their packages"
        ),
    )
    parser.addoption(
        "--engines",
        choices=("some", "both"),
        default="some",
        help="whether some or all refresh tests also run on PostgreSQL (default: %(default)s)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Extend the timeout of tests with rounds by their number of rounds, and run the slowest folders first."""
    items.sort(key=lambda item: -sum(f"/{folder}/" in item.nodeid for folder in _SLOWEST))
    limit = float(config.getini("timeout"))
    wait_limit = pytest.mark.timeout(limit + _SECONDS_A_ROUND * config.getoption("rounds"))
    fuzz_patience = pytest.mark.timeout(limit + _SECONDS_A_CASE * config.getoption("fuzz"))
    for item in items:
        if isinstance(item, pytest.Function) and "rounds" in item.fixturenames:
            item.add_marker(wait_limit)
        if isinstance(item, pytest.Function) and "fuzz_cases" in item.fixturenames:
            item.add_marker(fuzz_patience)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have recorded: one line per test, and a table for test_chaos.py."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows: list[list[str]] = []
    for report in reports:
        if figures := dict(getattr(report, "user_properties", ())):
            name = report.nodeid.rpartition("::")[2]
            if "test_chaos.py" in report.nodeid:
                rows = rows or [["", *figures], ["---", *(["---:"] * len(figures))]]
                rows.append([name.rpartition("[")[2].rstrip("]"), *map(str, figures.values())])
                continue
            terminalreporter.write_line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    for row in rows:
        terminalreporter.write_line(f"| {' | '.join(row)} |")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("rounds"))


@pytest.fixture
def fuzz_cases(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("fuzz"))


def pytest_configure() -> None:
    """Restore SIGINT's handler: a shell's background commands ignore SIGINT, and their child processes inherit that.

    Services load no certificate authorities, because they call the stand-in for AMO without TLS.
    """
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def witness() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
async def amo(clock: FakeClock) -> AsyncIterator[Amo]:
    async with serve_amo(clock) as served:
        yield served


@pytest.fixture
async def client(amo: Amo, clock: FakeClock) -> AsyncIterator[AmoClient]:
    async with amo_client(amo, clock) as opened:
        yield opened


@pytest.fixture(scope="session")
def encryption_key() -> str:
    return new_key()


@pytest.fixture
def cipher(encryption_key: str) -> Cipher:
    return Cipher([encryption_key])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    with databases() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Return the URL of a new database, once for each engine."""
    if request.param == "sqlite":
        yield "sqlite:///amo-callback.db"
        return
    async with request.getfixturevalue("postgres").fresh() as url:
        yield url


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
def environ(amo: Amo, encryption_key: str) -> dict[str, str]:
    return environment(amo, encryption_key)


@pytest.fixture
def run(tmp_path: Path, encryption_key: str, witness: RecordingObserver) -> Any:
    """Return a function that runs the whole service with the test's settings."""

    @asynccontextmanager
    async def running(
        *, lifetimes: Mapping[str, float] | None = None, clock: ShiftedClock | None = None, **more: Any
    ) -> AsyncIterator[Running]:
        clock = clock or ShiftedClock()
        async with (
            serve_amo(clock, **(lifetimes or {})) as amo,
            run_service(amo, encryption_key, tmp_path, clock=clock, witness=witness, **more) as service,
        ):
            yield service

    return running


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    async with run() as running:
        yield running
