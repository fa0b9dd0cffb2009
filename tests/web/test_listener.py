"""The HTTP listener and its graceful shutdown."""

import asyncio
import io
import json
import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from amo_callback.errors import CommandFailed, ConfigurationError
from amo_callback.observe.log import make_logger
from amo_callback.web.client_connections import ListenerOptions
from amo_callback.web.client_ip import TrustedProxies, peer_of
from amo_callback.web.listener import HttpListener, open_listener
from tests.fakes import ShiftedClock


class Served:
    """An application behind a listener."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.held = asyncio.Event()
        self.entered = asyncio.Event()
        self.app = web.Application()
        self.app.add_routes([web.get("/", self._answer), web.get("/slow", self._slow)])

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def _slow(self, _request: web.Request) -> web.Response:
        self.entered.set()
        await self.held.wait()
        return web.Response(text="done")

    def open(
        self, address: str, *, sockets: Sequence[socket.socket] = (), **limits: Any
    ) -> AbstractAsyncContextManager[HttpListener]:
        log, options = make_logger(level="debug", style="json", stream=self.log), ListenerOptions(**limits)
        return open_listener(
            self.app, address, name="public", clock=ShiftedClock(), log=log, sockets=sockets, options=options
        )


async def _ask(address: str, request: bytes) -> bytes:
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error.strerror}")


async def test_listener_unix_socket_replaces_stale_socket_and_is_removed(served: Served, tmp_path: Path) -> None:
    """A Unix socket replaces the socket left by a killed process, and is removed at the end."""
    path = tmp_path / "private.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with served.open(f"unix:{path}") as opened:
        address = opened.address
        assert address == f"unix:{path}"
        assert b"hello" in await _ask(address, GET)
    assert not path.exists()


async def test_listener_unix_socket_in_use_raises(served: Served, tmp_path: Path) -> None:
    """A second process does not replace a socket that another process listens on."""
    address = f"unix:{tmp_path / 'private.sock'}"
    async with served.open(address):
        with pytest.raises(CommandFailed, match="Address already in use"):
            async with Served().open(address):
                pass
        assert b"hello" in await _ask(address, GET)


@pytest.mark.usefixtures("ipv6")
async def test_listener_ipv6_address_in_brackets_is_accepted(served: Served) -> None:
    """An IPv6 address is written in brackets."""
    async with served.open("[::1]:0") as opened:
        address = opened.address
        assert address.startswith("[::1]:")
        assert b"hello" in await _ask(address, GET)


async def test_listener_unix_socket_trusts_forwarded_address(tmp_path: Path) -> None:
    """`X-Forwarded-For` is trusted on a Unix socket, even if the client's end has a name."""
    seen: list[str | None] = []

    async def look(request: web.Request) -> web.Response:
        seen.append(TrustedProxies(()).client_of(request))
        return web.Response()

    served = Served()
    served.app.router.add_get("/look", look)
    path = str(tmp_path / "public.sock")
    async with served.open(f"unix:{path}"):
        for number, header in enumerate((b"", b"X-Forwarded-For: 198.51.100.9\r\n")):
            client = socket.socket(socket.AF_UNIX)
            client.bind(str(tmp_path / f"client-{number}"))
            client.settimeout(0)
            await asyncio.get_running_loop().sock_connect(client, path)
            reader, writer = await asyncio.open_unix_connection(sock=client)
            writer.write(b"GET /look HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + header + b"\r\n")
            await reader.read()
            writer.close()
            await writer.wait_closed()
    assert seen == [None, "198.51.100.9"]


@pytest.mark.usefixtures("ipv6")
async def test_listener_dual_stack_socket_reports_ipv4_peer_as_ipv4(served: Served) -> None:
    """On a dual-stack socket, such as systemd's `[::]:8080`, an IPv4 peer has its plain IPv4 address."""
    seen: list[tuple[str | None, str | None]] = []

    async def look(request: web.Request) -> web.Response:
        seen.append((peer_of(request), TrustedProxies(("127.0.0.1",)).client_of(request)))
        return web.Response()

    served.app.router.add_get("/look", look)
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with served.open("", sockets=[listener]):
        await _ask(
            f"127.0.0.1:{listener.getsockname()[1]}",
            b"GET /look HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 198.51.100.9\r\n\r\n",
        )
    assert seen == [("127.0.0.1", "198.51.100.9")]


async def test_listener_unix_socket_path_of_other_file_raises(served: Served, tmp_path: Path) -> None:
    """A path that holds another kind of file is refused, and the file is kept."""
    path = tmp_path / "precious"
    path.write_text("data", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="Address already in use"):
        async with served.open(f"unix:{path}"):
            pass
    assert path.read_text(encoding="utf-8") == "data"


async def test_listener_close_answers_request_on_accepted_connection(served: Served) -> None:
    """A connection accepted before shutdown is answered, even if its request arrives during shutdown."""

    class Lingering(ShiftedClock):
        lingers, go_on = asyncio.Event(), asyncio.Event()

        async def sleep(self, _seconds: float) -> None:
            self.lingers.set()
            await self.go_on.wait()

    clock = Lingering()
    opened = HttpListener(
        served.app, name="public", clock=clock, log=make_logger(level="info", style="json", stream=served.log)
    )
    await opened.open("127.0.0.1:0")
    host, _, port = opened.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await _ask(opened.address, GET)  # after this round trip the earlier connection has been accepted
    closing = asyncio.create_task(opened.close())
    await clock.lingers.wait()
    writer.write(GET)
    assert (await reader.read()).endswith(b"hello")
    clock.go_on.set()
    await closing
    writer.close()
    await writer.wait_closed()


async def test_listener_responses_do_not_name_http_library(served: Served) -> None:
    """Neither a regular response nor a parser error names the HTTP library."""
    async with served.open("127.0.0.1:0") as opened:
        for request in (GET, b"junk\r\n\r\n"):
            answer = await _ask(opened.address, request)
            assert b"Server: amo-callback\r\n" in answer
            assert b"aiohttp" not in answer


async def test_listener_unusable_address_raises_with_setting_and_reason(served: Served, tmp_path: Path) -> None:
    """The error names setting, address and reason; it is retryable only if another process uses the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for wanted, error, reason in (
            (address, CommandFailed, "Address already in use"),
            (f"unix:{tmp_path}/no/x", ConfigurationError, "No such file"),
        ):
            with pytest.raises(error, match=f"server.public: cannot listen on {wanted}: {reason}"):
                async with served.open(wanted):
                    pass


async def test_listener_close_answers_request_in_progress(served: Served) -> None:
    """A request in progress at shutdown is answered with `Connection: close`; new connections are refused."""
    context = served.open("127.0.0.1:0")
    address = (await context.__aenter__()).address
    asking = asyncio.create_task(_ask(address, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))
    await served.entered.wait()
    closing = asyncio.create_task(context.__aexit__(None, None, None))
    while True:
        try:
            await _ask(address, GET)
        except ConnectionError:
            break
    served.held.set()
    answer = await asking
    await closing
    assert answer.endswith(b"done")
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    ("request_line", "is_logged"),
    [
        (b"GET /?code=the-secret-" + b"x" * 40_000 + b" HTTP/1.1", True),
        (b"GET /?code=the-secret HTTP/9.9", True),
        (b"the-secret", False),
        (b"GET /the-secret\x00 HTTP/1.1", True),
        (b"\x16\x03\x01the-secret", False),
        (b"GET / HTTP/1.1\r\nX: the-secret\x00", True),
        (b"GET / HTTP/1.1\r\nX-Long: the-secret" + b"x" * 40_000, True),
        (b"GET / HTTP/1.1\r\nContent-Length: the-secret", True),
    ],
)
async def test_listener_malformed_request_is_400_without_its_text(
    served: Served, request_line: bytes, *, is_logged: bool
) -> None:
    """A malformed request gets 400, and a log line if it is HTTP; neither quotes it, as it may contain a code."""
    async with served.open("127.0.0.1:0") as opened:
        answer = await _ask(opened.address, request_line + b"\r\nHost: a\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert b"the-secret" not in answer
    assert "the-secret" not in served.log.getvalue()
    assert "Traceback" not in served.log.getvalue()
    lines = [json.loads(line) for line in served.log.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("http.bad_request", "info")] * is_logged


TRUSTED = ("127.0.0.1", "10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.9"], "198.51.100.9"),
        ("127.0.0.1", ["6.6.6.6, 198.51.100.9"], "198.51.100.9"),
        ("127.0.0.1", ["6.6.6.6", "198.51.100.9, 10.0.0.1"], "198.51.100.9"),
        ("127.0.0.1", ["198.51.100.9, junk"], "127.0.0.1"),
        ("127.0.0.1", ["junk"], "127.0.0.1"),
        ("127.0.0.1", ["10.0.0.1"], "127.0.0.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["6.6.6.6, ::ffff:198.51.100.9"], "198.51.100.9"),
        ("127.0.0.1", ["198.51.100.9, ::ffff:10.0.0.1"], "198.51.100.9"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7:51234"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:51234, 10.0.0.1:443"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:DB8::1]:51234"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("127.0.0.1", ["[::ffff:203.0.113.7]:51234"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:port"], "127.0.0.1"),
        ("127.0.0.1", ["[203.0.113.7"], "127.0.0.1"),
        (None, ["198.51.100.9"], "198.51.100.9"),
        (None, [], None),
    ],
)
def test_client_address_is_rightmost_untrusted_address(
    peer: str | None, forwarded: list[str], address: str | None
) -> None:
    """Addresses further left are written by the client; a peer that is not trusted is the client itself."""
    assert TrustedProxies(TRUSTED).rightmost_untrusted(peer, forwarded) == address
