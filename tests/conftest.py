"""What the tests share: the stand-in on a socket, a store in a file, and the whole service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import hypothesis
import pytest

from amo_callback.amo.client import AmoClient
from amo_callback.amo.protocol import Integration
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.sandbox.app import Sandbox
from amo_callback.amo.sandbox.fake_amo import FakeAmo, SandboxAccount
from amo_callback.amo.sandbox.faults import Fault
from amo_callback.amo.sandbox.rules import Lifetimes, SandboxIntegration
from amo_callback.amo.transport import Transport
from amo_callback.clock import Clock, SystemClock
from amo_callback.config.loader import load_settings
from amo_callback.config.settings import Settings
from amo_callback.crypto import Cipher, new_key
from amo_callback.events import Event
from amo_callback.model import Connection
from amo_callback.observe.log import LogObserver, make_logger
from amo_callback.rate_limit import LocalLimits
from amo_callback.store import Store, open_store
from amo_callback.web.composition import DataPaths, Service, open_service
from amo_callback.web.listener import open_listener
from tests.fakes import FakeClock, RecordingObserver, ShiftedClock
from tests.openapi_conformance import conformance_of
from tests.postgres import Databases, databases, why_not

HOST = "reforyou.amocrm.ru"
API_KEY = "test-api-key-0123456789-0123456789-0123456789"
READ_KEY = "test-read-key-0123456789-0123456789-012345678"
ADMIN_KEY = "test-admin-key-0123456789-0123456789-01234567"
BASE = "/api/amo-crm"


ROUNDS = 3
FUZZ = 10
_SECONDS_A_ROUND = 20
_SECONDS_A_CASE = 6
_SLOWEST = ("e2e", "browser", "fuzz")
"""Folders whose tests wait for processes and browsers: at the end they would leave the other cores without work."""

hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # a slow machine is no failure
hypothesis.settings.load_profile("suite")


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are cores: many tests wait for processes and browsers."""
    return (os.cpu_count() or 1) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        type=Path,
        metavar="FOLDER",
        help="where the browser tests save how the page looks in each state, language and colour scheme",
    )
    parser.addoption(
        "--rounds",
        type=int,
        default=ROUNDS,
        metavar="N",
        help=(
            "how often each round of the custody tests is run: a stop or a kill in the middle of refreshes, a refresh "
            "by several processes, callers all at once (default: %(default)s, which is quick; 40 for figures). "
            "tests/refresh/test_simulation.py splits more than 20 into parts, which --dist=load gives to processes, "
            "each with a seed of its own that --hypothesis-seed decides"
        ),
    )
    parser.addoption(
        "--chaos",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="how often each fault strikes three instances in the middle of refreshes (default: some of them, once)",
    )
    parser.addoption(
        "--fuzz",
        type=int,
        default=FUZZ,
        metavar="N",
        help="how many cases schemathesis tries of each operation (default: %(default)s; 1000 for a night)",
    )
    parser.addoption(
        "--engines",
        choices=("some", "both"),
        default="some",
        help="whether only some tests of custody run on PostgreSQL, too, or all that can (default: %(default)s)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests that run in rounds time for as many as were asked for, and begin with those that take longest."""
    items.sort(key=lambda item: -sum(f"/{folder}/" in item.nodeid for folder in _SLOWEST))
    limit = float(config.getini("timeout"))
    patience = pytest.mark.timeout(limit + _SECONDS_A_ROUND * config.getoption("rounds"))
    fuzz_patience = pytest.mark.timeout(limit + _SECONDS_A_CASE * config.getoption("fuzz"))
    for item in items:
        if isinstance(item, pytest.Function) and "rounds" in item.fixturenames:
            item.add_marker(patience)
        if isinstance(item, pytest.Function) and "fuzz_cases" in item.fixturenames:
            item.add_marker(fuzz_patience)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have recorded: a line for each test, a table for chaos."""
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


@dataclass(kw_only=True, slots=True)
class Amo:
    """The stand-in, where it listens, and one account in it."""

    sandbox: Sandbox
    address: str
    account: SandboxAccount
    scheme: str = "http"

    @property
    def fake(self) -> FakeAmo:
        return self.sandbox.fake

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.address}/{{domain}}"

    def code(self) -> str:
        """Return a fresh authorization code of the account."""
        return self.fake.allow(self.account)

    def request(self, **grant: str) -> dict[str, str]:
        """Return the body of a good request to the token endpoint."""
        known = self.fake.integration
        return {
            "client_id": known.client_id,
            "client_secret": known.client_secret,
            "redirect_uri": known.redirect_uri,
            **grant,
        }

    def spend(self, **grant: str) -> None:
        """Play another system that presents what is ours."""
        body = json.dumps(self.request(**grant)).encode()
        assert self.fake.token(self.account.host, body=body, content_type="application/json").status == 200


def pytest_configure() -> None:
    """Have SIGINT heard: a shell has it ignored by what it runs in the background, and so by all that this starts.

    AMO's stand-in is asked without TLS: the machine's authorities, which each service reads, are none.
    """
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@asynccontextmanager
async def serve_amo(clock: Clock, **lives: float) -> AsyncIterator[Amo]:
    """Serve the stand-in on a socket of its own."""
    fake = FakeAmo(integration=SandboxIntegration(), now=clock.now, lives=Lifetimes(**lives))
    sandbox = Sandbox(fake, clock=clock)
    log = make_logger(level="error", style="json", stream=io.StringIO())
    async with open_listener(sandbox.app(), "127.0.0.1:0", name="amo", clock=ShiftedClock(), log=log) as listener:
        yield Amo(sandbox=sandbox, address=listener.address, account=fake.open_account(HOST))


@asynccontextmanager
async def amo_client(
    amo: Amo,
    clock: Clock,
    *,
    timeout: float = 5.0,
    rate_limiter: RateLimiter | None = None,
    tls: ssl.SSLContext | None = None,
    allowed_domains: Sequence[str] = (),
) -> AsyncIterator[AmoClient]:
    """Open a client of the stand-in; over TLS it believes nobody but whom `tls` names."""
    known = amo.fake.integration
    system = SystemClock()
    rate_limiter = rate_limiter or RateLimiter(
        per_second=1000, shared=LocalLimits(clock=system), clock=system, observer=RecordingObserver()
    )
    yield AmoClient(
        integration=Integration(
            client_id=known.client_id,
            client_secret=known.client_secret,
            redirect_uri=known.redirect_uri,
            endpoint=amo.endpoint,
            allowed_domains=allowed_domains,
        ),
        transport=Transport(
            tls=tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), rate_limiter=rate_limiter, clock=clock, timeout=timeout
        ),
        rate_limiter=rate_limiter,
        clock=clock,
        observer=RecordingObserver(),
    )
    await rate_limiter.close()


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
    """Return where there are PostgreSQL databases."""
    if (why := why_not()) is not None:
        pytest.skip(why)
    with databases() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Return a new database of either engine."""
    if request.param == "sqlite":
        yield "sqlite:///amo-callback.db"
        return
    async with request.getfixturevalue("postgres").fresh() as url:
        yield url


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=clock) as opened:
        yield opened


# --- the whole service ---------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Running:
    """The whole service against the stand-in, and a client of its APIs."""

    amo: Amo
    clock: ShiftedClock
    service: Service
    http: aiohttp.ClientSession
    witness: RecordingObserver
    log: io.StringIO
    folder: Path
    settings: Settings = field(repr=False)

    async def callback(
        self, query: str | None = None, *, html: bool = False, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Come as AMO's redirect does."""
        accept = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8" if html else "*/*"}
        return await self.public(
            f"{BASE}/callback" + (f"?{query}" if query else ""), headers={**accept, **(headers or {})}
        )

    def query(self, *, state: str = "the-app's state", code: str | None = None) -> str:
        """Return the query of a good redirect."""
        return f"code={code or self.amo.code()}&state={quote(state, safe='')}&referer={HOST}&platform=1"

    async def public(self, path: str, *, method: str = "GET", **options: Any) -> Answer:
        return await self._ask(self.service.public, method, path, **options)

    async def private(self, path: str, *, key: str | None = API_KEY, method: str = "GET", **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return await self._ask(
            self.service.private, method, path, headers={**headers, **options.pop("headers", {})}, **options
        )

    async def _ask(self, address: str, method: str, path: str, **options: Any) -> Answer:
        from yarl import URL  # noqa: PLC0415 -- because only here must an address stay as it is written

        async with self.http.request(
            method, URL(f"http://{address}{path}", encoded=True), allow_redirects=False, **options
        ) as response:
            answer = Answer(
                status=response.status, headers=dict(response.headers), text=await response.text(errors="replace")
            )
        api = "public" if address == self.service.public else "private"
        conformance_of(self).check(api, method, path, answer)
        return answer

    async def connected(self) -> str:
        """Connect the account, and return the connection's id; its pair is old enough to be refreshed on demand."""
        answer = await self.callback(self.query())
        assert answer.status == 302
        name = str((await self.witness.until("connection.connected")).connection_id)
        self.clock.advance(10)
        return name

    async def stored(self, name: str) -> Connection:
        """Return a connection as the store has it."""
        found = await self.service.services.store.connection(name)
        assert found is not None
        return found

    async def late(self, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """Return the answer to a request for which AMO takes longer than 8 s: it is still being asked then."""
        self.amo.sandbox.asked.clear()
        self.amo.sandbox.faults.add(Fault.SLOW)
        answering = asyncio.create_task(asking)
        await self.amo.sandbox.asked.wait()
        await self.clock.until_sleeping(8)
        self.clock.advance(8)
        return await answering

    async def refreshing(self, name: str) -> asyncio.Task[Answer]:
        """Begin a refresh whose request has reached AMO, which does not answer yet."""
        self.amo.sandbox.asked.clear()
        self.amo.sandbox.faults.add(Fault.SLOW)
        refresh = asyncio.create_task(self.private(f"/connections/{name}/refresh", method="POST"))
        await self.amo.sandbox.asked.wait()
        return refresh

    def lines(self) -> list[dict[str, Any]]:
        """Return the log."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer of the service."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def location(self) -> str:
        return self.headers["Location"]

    def json(self) -> Any:
        return json.loads(self.text)


def environment(amo: Amo, encryption_key: str, **more: str) -> dict[str, str]:
    """Return the environment that configures the service for the stand-in."""
    known = amo.fake.integration
    return {
        "AMO_CALLBACK_SERVER__PUBLIC": "127.0.0.1:0",
        "AMO_CALLBACK_SERVER__PRIVATE": "127.0.0.1:0",
        "AMO_CALLBACK_AMO__CLIENT_ID": known.client_id,
        "AMO_CALLBACK_AMO__CLIENT_SECRET": known.client_secret,
        "AMO_CALLBACK_AMO__REDIRECT_URI": known.redirect_uri,
        "AMO_CALLBACK_AMO__ENDPOINT": amo.endpoint,
        "AMO_CALLBACK_AMO__REQUESTS_PER_SECOND": "1000",
        "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": encryption_key,
        "AMO_CALLBACK_API__KEYS": f"backend:{API_KEY}\nreader:read:{READ_KEY}\nadmin:read+token+admin:{ADMIN_KEY}",
        "AMO_CALLBACK_LOG__FORMAT": "json",
        **{f"AMO_CALLBACK_{key}": value for key, value in more.items()},
    }


@pytest.fixture
def environ(amo: Amo, encryption_key: str) -> dict[str, str]:
    return environment(amo, encryption_key)


@asynccontextmanager
async def run_service(
    amo: Amo,
    http: aiohttp.ClientSession,
    settings: Settings,
    paths: DataPaths,
    *,
    clock: ShiftedClock,
    witness: RecordingObserver,
) -> AsyncIterator[Running]:
    """Run the whole service against a stand-in."""
    stream = io.StringIO()
    secrets = [settings.amo.client_secret.get_secret_value(), API_KEY, READ_KEY, ADMIN_KEY]
    secrets += settings.storage.encryption_keys.get_secret_value().split()
    log = make_logger(level="debug", style="json", stream=stream, secrets=secrets)
    log_observer = LogObserver(log)

    def observer(event: Event) -> None:
        log_observer(event)
        witness(event)

    async with open_service(settings, paths=paths, clock=clock, log=log, observer=observer) as service:
        yield Running(
            amo=amo,
            clock=clock,
            service=service,
            http=http,
            witness=witness,
            log=stream,
            folder=paths.folder,
            settings=settings,
        )


@pytest.fixture
def run(tmp_path: Path, encryption_key: str, witness: RecordingObserver) -> Any:
    """Return how to run the whole service with some settings of one's own."""

    @asynccontextmanager
    async def running(
        *,
        lives: Mapping[str, float] | None = None,
        machine: str = "here",
        clock: ShiftedClock | None = None,
        **more: str,
    ) -> AsyncIterator[Running]:
        clock = clock or ShiftedClock()
        connector = aiohttp.TCPConnector(limit=0)  # as many callers as a test likes
        async with serve_amo(clock, **(lives or {})) as amo, aiohttp.ClientSession(connector=connector) as http:
            settings = load_settings(None, environment(amo, encryption_key, **more))
            paths = DataPaths(folder=tmp_path, rescue=tmp_path / "rescue", machine=machine)
            async with run_service(amo, http, settings, paths, clock=clock, witness=witness) as service:
                yield service

    return running


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the whole service with its defaults."""
    async with run() as running:
        yield running
