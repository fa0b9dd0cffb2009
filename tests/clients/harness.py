"""Clients of the service that run as processes, a gate that records their requests, and AMO at its own hosts."""

import asyncio
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from aiohttp import web
from trustme import CA

from tests.service import API_KEY, Answer, Running


class Gate:
    """A proxy in front of the private API, which repeats a response with `Retry-After` until that time is over."""

    def __init__(self, app: Running, address: str, path: Path) -> None:
        self.requests: list[str] = []
        """The last part of each request's path, and the status of its response."""
        self.retry_after: str | None = None
        """The value of `Retry-After` in place of the service's."""
        self.before_answer: Callable[[Answer], Awaitable[object]] | None = None
        """Called with each response of the service before the client receives it."""
        self.environment = {"AMO_CALLBACK": f"http://{address}", "API_KEY": API_KEY, "SOCKET": str(path)}
        self._app = app
        self._closed: tuple[float, Answer] | None = None

    async def forward(self, request: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        is_early = self._closed is not None and now < self._closed[0]
        answer = self._closed[1] if self._closed is not None and is_early else await self._ask(request)
        self.requests.append(f"{request.path.rpartition('/')[2]} {answer.status}")
        kept = {name: value for name, value in answer.headers.items() if name in {"Content-Type", "Retry-After"}}
        if "Retry-After" in kept and not is_early:
            self._closed = now + float(kept["Retry-After"]) - _EARLY, answer
            kept["Retry-After"] = self.retry_after or kept["Retry-After"]
        return web.Response(status=answer.status, body=answer.text.encode(), headers=kept)

    async def _ask(self, request: web.Request) -> Answer:
        known = {name: value for name, value in request.headers.items() if name in {"Authorization", "Content-Type"}}
        answer = await self._app.private(
            request.raw_path, key=None, method=request.method, headers=known, data=await request.read()
        )
        if self.before_answer is not None:
            await self.before_answer(answer)
        return answer


_EARLY = 0.1
"""Seconds by which a client's timer may be early."""


@asynccontextmanager
async def open_gate(app: Running) -> AsyncIterator[Gate]:
    """Open a gate on a TCP address and on a Unix socket."""
    gateway = web.Application()
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        path, listening = Path(folder) / "s", socket.create_server(("127.0.0.1", 0))
        gate = Gate(app, f"127.0.0.1:{listening.getsockname()[1]}", path)
        gateway.add_routes([web.route("*", "/{path:.*}", gate.forward)])
        runner = web.AppRunner(gateway)
        await runner.setup()
        try:
            await web.SockSite(runner, listening).start()
            await web.UnixSite(runner, path).start()
            yield gate
        finally:
            await runner.cleanup()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The exit status and the output of a process that has ended."""

    status: int
    out: str
    err: str

    @property
    def printed(self) -> str:
        """Both outputs: PHP's settings decide to which of them it prints errors."""
        return self.out + self.err


async def run_program(*command: str, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Ended:
    """Run a command in a folder, with this environment and the PATH."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(status=process.returncode, out=out.decode(), err=err.decode())


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


# --- AMO at its own hosts -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class AmoHosts:
    """The stand-in for AMO at `https://{host}`, for libraries that call no other address."""

    port: int
    proxy: str
    """The URL of a proxy that leads to the port, whatever the host."""
    authority: Path
    """The certificate authority, in PEM."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of clients: Python's requests and curl use the proxy, and `amo_hosts.cjs` uses the port."""
        return {
            "HTTPS_PROXY": self.proxy,
            "REQUESTS_CA_BUNDLE": str(self.authority),
            "NODE_EXTRA_CA_CERTS": str(self.authority),
            "AMO_PORT": str(self.port),
        }


@asynccontextmanager
async def open_amo_hosts(app: Running, folder: Path, *, explains_401: bool = False) -> AsyncIterator[AmoHosts]:
    """Serve the stand-in over TLS, and a proxy that leads to it; `explains_401` adds a problem to AMO's 401."""

    async def serve(request: web.Request) -> web.Response:
        url = f"http://{app.amo.address}/{request.host}{request.path_qs}"
        headers = {"Authorization": request.headers.get("Authorization", "")}
        async with app.http.request(request.method, url, headers=headers, data=await request.read()) as answer:
            if answer.status == 401 and explains_401:
                return web.json_response({"title": "Unauthorized", "status": 401}, status=401)
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    authority, context = CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(app.amo.account.host).configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    amo, listening = web.Application(), socket.create_server(("127.0.0.1", 0))
    amo.add_routes([web.route("*", "/{path:.*}", serve)])
    runner = web.AppRunner(amo)
    await runner.setup()
    port = listening.getsockname()[1]
    proxy = await asyncio.start_server(lambda reader, writer: _tunnel(reader, writer, port), "127.0.0.1", 0)
    try:
        await web.SockSite(runner, listening, ssl_context=context).start()
        yield AmoHosts(
            port=port,
            proxy=f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
            authority=folder / "authority.pem",
        )
    finally:
        proxy.close()
        await runner.cleanup()


async def _tunnel(client: asyncio.StreamReader, to_client: asyncio.StreamWriter, port: int) -> None:
    """Answer a CONNECT request, and connect the client to the port."""
    await client.readuntil(b"\r\n\r\n")
    server, to_server = await asyncio.open_connection("127.0.0.1", port)
    to_client.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.gather(_copy(client, to_server), _copy(server, to_client))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other side has closed
    finally:
        writer.close()
