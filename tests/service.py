"""A harness for tests of the whole service: the stand-in for AMO on a socket, and a service that calls it."""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from amo_callback.amo.client import AmoClient
from amo_callback.amo.protocol import Integration
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.sandbox.app import Fault, Sandbox
from amo_callback.amo.sandbox.fake_amo import FakeAmo, Lifetimes, SandboxAccount, SandboxIntegration
from amo_callback.amo.transport import Transport
from amo_callback.clock import Clock, SystemClock
from amo_callback.config.loader import load_settings
from amo_callback.config.settings import Settings
from amo_callback.events import Event
from amo_callback.model import Connection
from amo_callback.observe.log import LogObserver, make_logger
from amo_callback.observe.systemd import Notifier
from amo_callback.rate_limit import LocalLimits
from amo_callback.web.composition import DataPaths, Service, open_service
from amo_callback.web.listener import open_listener
from tests.fakes import RecordingObserver, ShiftedClock
from tests.openapi_conformance import conformance_of

HOST = "reforyou.amocrm.ru"
API_KEY = "test-api-key-0123456789-0123456789-0123456789"
READ_KEY = "test-read-key-0123456789-0123456789-012345678"
ADMIN_KEY = "test-admin-key-0123456789-0123456789-01234567"
BASE = "/api/amo-crm"
LINK = "foryoure://amo-crm/callback"


@dataclass(kw_only=True, slots=True)
class Amo:
    """The stand-in for AMO, its address, and one of its accounts."""

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
        return self.fake.allow(self.account)

    def request(self, **grant: str) -> dict[str, str]:
        """Return the body of a valid request to the token endpoint."""
        known = self.fake.integration
        return {
            "client_id": known.client_id,
            "client_secret": known.client_secret,
            "redirect_uri": known.redirect_uri,
            **grant,
        }

    def spend(self, **grant: str) -> None:
        """Present the service's code or refresh token to AMO, as another system could."""
        body = json.dumps(self.request(**grant)).encode()
        assert self.fake.token(self.account.host, body=body, content_type="application/json").status == 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def location(self) -> str:
        return self.headers["Location"]

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(kw_only=True, slots=True)
class Running:
    """The whole service, which calls the stand-in for AMO, and a client of its APIs."""

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
        accept = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8" if html else "*/*"}
        return await self.public(
            f"{BASE}/callback" + (f"?{query}" if query else ""), headers={**accept, **(headers or {})}
        )

    def query(self, *, state: str = "the-app's state", code: str | None = None) -> str:
        return f"code={code or self.amo.code()}&state={quote(state, safe='')}&referer={HOST}&platform=1"

    async def public(self, path: str, *, method: str = "GET", **options: Any) -> Answer:
        return await self._ask(self.service.public, method, path, **options)

    async def private(self, path: str, *, key: str | None = API_KEY, method: str = "GET", **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return await self._ask(
            self.service.private, method, path, headers={**headers, **options.pop("headers", {})}, **options
        )

    async def _ask(self, address: str, method: str, path: str, **options: Any) -> Answer:
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
        found = await self.service.services.store.connection(name)
        assert found is not None
        return found

    async def late(self, asking: Coroutine[Any, Any, Answer]) -> Answer:
        """Return the service's answer to a request after 8 s, when AMO has not answered yet."""
        answering = await self.begun(asking)
        await self.clock.until_sleeping(8)
        self.clock.advance(8)
        return await answering

    async def begun(self, asking: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Start a request, and return once the service's call has reached AMO, which does not answer it yet."""
        self.amo.sandbox.asked.clear()
        self.amo.sandbox.faults.add(Fault.SLOW)
        answering = asyncio.create_task(asking)
        await self.amo.sandbox.asked.wait()
        return answering

    async def refreshing(self, name: str) -> asyncio.Task[Answer]:
        """Start a refresh that AMO does not answer yet."""
        return await self.begun(self.private(f"/connections/{name}/refresh", method="POST"))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


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


@asynccontextmanager
async def serve_amo(clock: Clock, **lifetimes: float) -> AsyncIterator[Amo]:
    fake = FakeAmo(integration=SandboxIntegration(), now=clock.now, lifetimes=Lifetimes(**lifetimes))
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
    """Open a client of the stand-in; over TLS it trusts only the authorities in `tls`."""
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


@asynccontextmanager
async def run_service(
    amo: Amo,
    key: str,
    folder: Path,
    *,
    clock: ShiftedClock,
    witness: RecordingObserver | None = None,
    machine: str = "here",
    rescue: str = "rescue",
    supervisor: Notifier | None = None,
    **more: str,
) -> AsyncIterator[Running]:
    """Run the whole service against the stand-in, with the test's settings."""
    settings = load_settings(None, environment(amo, key, **more))
    witness, stream = witness or RecordingObserver(), io.StringIO()
    secrets = [settings.amo.client_secret.get_secret_value(), API_KEY, READ_KEY, ADMIN_KEY]
    secrets += settings.storage.encryption_keys.get_secret_value().split()
    log = make_logger(level="debug", style="json", stream=stream, secrets=secrets)
    log_observer = LogObserver(log)

    def observer(event: Event) -> None:
        log_observer(event)
        witness(event)

    paths = DataPaths(folder=folder, rescue=folder / rescue, machine=machine)
    connector = aiohttp.TCPConnector(limit=0)  # a test may send any number of requests at once
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        open_service(settings, paths=paths, clock=clock, log=log, observer=observer, supervisor=supervisor) as service,
    ):
        yield Running(
            amo=amo,
            clock=clock,
            service=service,
            http=http,
            witness=witness,
            log=stream,
            folder=folder,
            settings=settings,
        )
