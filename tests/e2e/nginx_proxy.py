"""An environment for tests of `nginx-proxy.conf`: nginx between a backend and AMO's API, which uses TLS."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from trustme import CA
from yarl import URL

from amo_callback.deploy.units import text_of
from tests.e2e.nginx import Nginx, run_nginx, unused_address, write_example
from tests.fakes import ShiftedClock
from tests.service import API_KEY, HOST, Amo, Answer, Running, run_service, serve_amo
from tests.wait_limit import WAIT_LIMIT

EXAMPLE = text_of("nginx-proxy.conf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A request as AMO's API received it."""

    server_name: str | None
    """The host name in the TLS handshake."""
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)

    def values(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]


class AmoApi:
    """AMO over TLS: the stand-in, and an API that records each request and sends the test's answer."""

    def __init__(self, amo: Amo, tls: ssl.SSLContext) -> None:
        self.requests: list[Seen] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._answer
        self.tls = tls
        self._amo = amo
        self._server_names: dict[object, str | None] = {}
        tls.sni_callback = lambda connection, name, _context: self._server_names.update({connection: name})

    def app(self) -> web.Application:
        app = self._amo.sandbox.app()
        app.router.add_route("*", "/{host}/{path:.*}", self._serve)  # after the routes of the stand-in
        return app

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        headers = [(name.decode(), value.decode("latin-1")) for name, value in request.raw_headers]
        target = request.raw_path.removeprefix(f"/{HOST}")
        name = self._server_names.get(request.get_extra_info("ssl_object"))
        seen = Seen(server_name=name, method=request.method, target=target, headers=headers, body=body)
        self.requests.append(seen)
        return await self.answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Answer 200 to a valid access token, and 401 to any other, as AMO does."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        valid = self._amo.fake.live_account(token) is self._amo.account
        return web.json_response({"valid": valid}, status=200 if valid else 401)


@dataclass(kw_only=True, slots=True)
class Proxied:
    """The service, nginx and AMO's API."""

    app: Running
    nginx: Nginx
    api: AmoApi
    name: str
    """The id of the connected account's connection."""

    @property
    def account(self) -> str:
        return f"account:{self.app.amo.account.id}"

    async def token(self) -> str:
        return str((await self.app.private(f"/connections/{self.name}/token")).json()["access_token"])

    async def ask(self, target: str, *, key: str | None = API_KEY, method: str = "GET", **options: Any) -> Answer:
        """Send a request to nginx as a backend does."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        async with self.app.http.request(
            method,
            URL(f"http://{self.nginx.address}{target}", encoded=True),
            headers={**headers, **options.pop("headers", {})},
            allow_redirects=False,
            **options,
        ) as answer:
            return Answer(status=answer.status, headers=dict(answer.headers), text=await answer.text(errors="replace"))

    async def send(self, request: bytes) -> bytes:
        """Send bytes to nginx, and return its whole answer."""
        host, _, port = self.nginx.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), WAIT_LIMIT)
        finally:
            writer.close()

    def leaked(self) -> list[str]:
        """Return each access token and API key that nginx or the service has logged."""
        logged = self.nginx.logged() + self.app.log.getvalue()
        keys = [line.rpartition(":")[2] for line in self.app.settings.api.keys.get_secret_value().splitlines()]
        secrets = [*self.app.amo.fake.ledger.access_tokens, *keys]
        return [secret for secret in secrets if secret in logged]


class _Resolver(asyncio.DatagramProtocol):
    """A DNS server for which every name has the address 127.0.0.1."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        answer = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 127, 0, 0, 1) if question[-4:-2] == b"\0\1" else b""
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(answer), 0, 0)
        self._transport.sendto(head + question + answer, addr)  # type: ignore[attr-defined]  # reason: a datagram transport


@asynccontextmanager
async def run_resolver() -> AsyncIterator[str]:
    """Serve the resolver, and return its address."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Resolver, local_addr=("127.0.0.1", 0))
    try:
        yield "{}:{}".format(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


@asynccontextmanager
async def serve_api(amo: Amo, authority: CA) -> AsyncIterator[AmoApi]:
    """Serve AMO over TLS, and let `amo` have its address."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    api = AmoApi(amo, tls)
    runner = web.AppRunner(api.app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        amo.scheme, amo.address = "https", f"localhost:{runner.addresses[0][1]}"
        yield api
    finally:
        await runner.cleanup()


def write_proxy(folder: Path, *, private: str, resolver: str = "127.0.0.1", authority: CA | None = None) -> str:
    """Write the example with local values, and return its address; nginx trusts only `authority`."""
    address, trusted = unused_address(), folder / "trusted-by-nginx.pem"
    (authority or CA()).cert_pem.write_to_path(str(trusted))
    changes = {
        "listen 127.0.0.1:8082;": f"listen {address};",
        "resolver 127.0.0.53;": f"resolver {resolver};",
        "/etc/ssl/certs/ca-certificates.crt;": f"{trusted};",
        "proxy_pass http://127.0.0.1:8081/": f"proxy_pass http://{private}/",
        "/var/log/nginx/": f"{folder}/",
    }
    write_example(folder, EXAMPLE, changes)
    return address


@asynccontextmanager
async def run_proxy(
    folder: Path, encryption_key: str, authority: CA, *, unix: bool = False, **settings: Any
) -> AsyncIterator[Proxied]:
    """Run AMO's API, the service and nginx, and connect an account; with `unix`, the private API has a Unix socket."""
    clock, socket = ShiftedClock(), f"unix:{folder}/private.sock"
    if unix:
        settings["SERVER__PRIVATE"] = socket
    async with (
        serve_amo(clock) as amo,
        serve_api(amo, authority) as api,
        run_service(amo, encryption_key, folder, clock=clock, **settings) as app,
        run_resolver() as resolver,
    ):
        private = f"{socket}:" if unix else app.service.private
        address = write_proxy(folder, private=private, resolver=resolver, authority=authority)
        async with run_nginx(folder, address) as nginx:
            yield Proxied(app=app, nginx=nginx, api=api, name=await app.connected())
