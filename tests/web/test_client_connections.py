"""The number of client connections of a listener, and the time limits of each."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from amo_callback.observe.log import make_logger
from amo_callback.web.client_connections import WAITS, ClientConnections, ClientWait, ListenerOptions, Waits
from amo_callback.web.listener import open_listener
from tests.fakes import FakeClock, ShiftedClock
from tests.wait_limit import WAIT_LIMIT

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
HUGE = 16 * 2**20
"""Size of a response that exceeds the socket buffers."""
SOON, NEVER = 0.2, 3600.0


def _waits(**seconds: float) -> Waits:
    """Return time limits; a limit that is not given is never reached."""
    reasons = {"request": "incomplete_request", "next_request": "idle", "answer": "unread_answer"}
    return Waits(
        **{name: ClientWait(reason=reason, seconds=seconds.get(name, NEVER)) for name, reason in reasons.items()}
    )


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, request: bytes = GET) -> bytes:
        """Send a request and read to the end of the response."""
        self.writer.write(request)
        return await asyncio.wait_for(self._reader.readuntil(b"hello"), WAIT_LIMIT)

    async def until_closed(self) -> bytes:
        """Read until the server closes the connection."""
        try:
            return await asyncio.wait_for(self._reader.read(), WAIT_LIMIT)
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    @property
    def is_closed(self) -> bool:
        return self._reader.at_eof()


class Log(io.StringIO):
    """A log that signals each written line."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


class Listener:
    """An application behind a listener with limits, and its clients."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._log = Log()
        self.closed: list[str] = []
        self.closed_one = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.clock = FakeClock()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._answer)
        app.router.add_get("/slow", self._slow)
        app.router.add_get("/huge", self._huge)
        app.router.add_post("/read", self._read)
        return app

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def _slow(self, _request: web.Request) -> web.Response:
        self.entered.release()
        await self.go_on.wait()
        return web.Response(text="hello")

    async def _huge(self, _request: web.Request) -> web.Response:
        return web.Response(body=b"x" * HUGE)

    async def _read(self, request: web.Request) -> web.Response:
        self.entered.release()
        await request.read()
        return web.Response(text="hello")

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Listener]:
        log = make_logger(level="debug", style="json", stream=self._log)

        def closed(reason: str) -> None:
            self.closed.append(reason)
            self.closed_one.set()

        clock = self.clock if options.pop("throttled", False) else ShiftedClock()
        sockets = options.pop("sockets", ())
        limits = ListenerOptions(closed=closed, **options)
        async with open_listener(
            self.app(), "127.0.0.1:0", name="public", clock=clock, log=log, sockets=sockets, options=limits
        ) as opened:
            self.address = opened.address
            self.opened = opened
            yield self
            await self._stack.pop_all().aclose()  # closing waits for partly received requests

    async def connect(self, *, receive_buffer: int | None = None) -> Client:
        host, _, port = self.address.rpartition(":")
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(0)
        await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        client = Client(*await asyncio.open_connection(sock=connection, limit=2**16))
        self._stack.push_async_callback(client.close)
        return client

    async def logged(self, event: str, *, times: int = 1) -> dict[str, Any]:
        """Wait until an event has been logged this many times."""
        while len(self.lines(event)) < times:
            self._log.written.clear()
            await asyncio.wait_for(self._log.written.wait(), WAIT_LIMIT)
        return self.lines(event)[-1]

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self._log.getvalue().splitlines()) if line["event"] == event]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with AsyncExitStack() as stack:
        yield Listener(stack)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", POST + b"abc"], ids=["none", "head", "body"]
)
async def test_client_incomplete_request_is_closed_after_request_limit(listener: Listener, sent: bytes) -> None:
    """A request's head, and then its body, must be complete within the request limit."""
    async with listener.open(waits=_waits(request=SOON)):
        client = await listener.connect()
        client.writer.write(sent)
        assert await client.until_closed() == b""
        assert listener.closed == ["incomplete_request"]
        assert listener.lines("http.bad_request") == []


async def test_client_request_byte_by_byte_does_not_extend_request_limit(listener: Listener) -> None:
    """The limit counts from the connection or from a request's first byte, not from its last byte."""
    async with listener.open(waits=_waits(request=SOON)):
        client = await listener.connect()
        await client.ask()
        client.writer.write(b"GET / HTTP/1.1\r\nX: ")
        closing = asyncio.create_task(client.until_closed())
        while not closing.done():
            client.writer.write(b"x")
            await asyncio.wait({closing}, timeout=SOON / 4)
        assert listener.closed == ["incomplete_request"]


async def test_client_second_request_begun_during_answer_has_request_limit(listener: Listener) -> None:
    """A client that sends more during a response is not idle afterwards."""
    async with listener.open(waits=_waits(request=SOON)):
        client = await listener.connect()
        client.writer.write(GET.replace(b"/ ", b"/slow "))
        await listener.entered.acquire()
        client.writer.write(b"GET / HT")
        other = await listener.connect()
        await other.until_closed()  # by then the first client's bytes have been read
        listener.go_on.set()
        assert (await client.until_closed()).endswith(b"hello")
        assert listener.closed == ["incomplete_request"] * 2


@pytest.mark.parametrize(("more", "reason"), [(b"GET / HT", "incomplete_request"), (b"", "idle")])
async def test_client_second_head_in_same_packet_has_request_limit(
    listener: Listener, more: bytes, reason: str
) -> None:
    """Only a client that has sent nothing more has the idle limit."""
    seconds = {"request": SOON} if more else {"next_request": SOON}
    async with listener.open(waits=_waits(**seconds)):
        client = await listener.connect()
        client.writer.write(GET + more)
        assert (await client.until_closed()).endswith(b"hello")
        assert listener.closed == [reason]


async def test_client_being_answered_has_no_limit(listener: Listener) -> None:
    """While a complete request is being answered, its connection has no time limit."""
    async with listener.open(waits=_waits(request=SOON, next_request=SOON, answer=SOON)):
        slow = await listener.connect()
        asking = asyncio.create_task(slow.ask(GET.replace(b"/ ", b"/slow ")))
        await listener.entered.acquire()
        for _ in range(2):
            await (await listener.connect()).until_closed()
        listener.go_on.set()
        assert await asking


async def test_client_not_reading_response_is_closed_after_answer_limit(listener: Listener) -> None:
    """A client that stops reading its response is closed after the answer limit."""
    async with listener.open(waits=_waits(answer=SOON)):
        client = await listener.connect(receive_buffer=4096)
        client.writer.write(GET.replace(b"/ ", b"/huge "))
        await asyncio.wait_for(listener.closed_one.wait(), WAIT_LIMIT)
        assert listener.closed == ["unread_answer"]
        assert len(await client.until_closed()) < HUGE


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", POST + b"abc", GET], ids=["none", "head", "body", "idle"])
async def test_connection_cap_new_client_replaces_longest_waiting(listener: Listener, sent: bytes) -> None:
    """At the cap the longest-waiting client is closed: without a request, with a partial request, or idle."""
    async with listener.open(waits=_waits(), max_connections=3):
        clients = []
        for _ in range(3):
            client = await listener.connect()
            client.writer.write(sent)
            if sent == GET:
                await client.ask(b"")
            elif sent.startswith(POST):
                await listener.entered.acquire()
            clients.append(client)
        assert await (await listener.connect()).ask()
        assert await clients[0].until_closed() == b""
        assert [client.is_closed for client in clients] == [True, False, False]
        assert (listener.closed, listener.opened.count_connections()) == (["max_connections"], 3)


async def test_connection_cap_clients_being_answered_are_not_closed(listener: Listener) -> None:
    """If every client is being answered, a new client waits: it is neither refused nor accepted."""
    async with listener.open(waits=_waits(), max_connections=2):
        asking = []
        for _ in range(2):
            client = await listener.connect()
            asking.append(asyncio.create_task(client.ask(GET.replace(b"/ ", b"/slow "))))
            await listener.entered.acquire()
        waiting = asyncio.create_task((await listener.connect()).ask())
        await listener.logged("http.connections_full")
        assert (listener.closed, listener.opened.count_connections(), waiting.done()) == ([], 2, False)
        listener.go_on.set()
        assert all(await asyncio.gather(*asking, waiting))


@dataclass(eq=False, slots=True)
class Answered:
    """A client whose response may still be in the send buffer."""

    has_unsent_bytes: bool
    aborted: bool = False

    def abort(self) -> None:
        self.aborted = True


def test_connection_cap_client_with_unsent_response_is_closed_last() -> None:
    """A client that has received its response is closed first; after a second, any other may be closed too."""
    now = 0.0
    connections = ClientConnections(2, now=lambda: now, closed=lambda _: None, removed=lambda: None)
    leaving, taken = Answered(has_unsent_bytes=True), Answered(has_unsent_bytes=False)
    for client in (leaving, taken):
        connections.add(client)
        connections.wait(client, WAITS.next_request)
    connections.make_room()
    connections.make_room()
    assert (leaving.aborted, taken.aborted) == (False, True)
    now = 1.0
    connections.make_room()
    assert leaving.aborted


class Exhausted(socket.socket):
    """A listening socket whose first `accept` finds no free descriptor."""

    failed = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.failed:
            self.failed = True
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_accept_without_free_descriptor_is_logged_and_continues(listener: Listener) -> None:
    """Accepting continues after descriptors were used up, and the log has the reason."""
    exhausted = Exhausted()
    exhausted.bind(("127.0.0.1", 0))
    exhausted.listen()
    async with listener.open(waits=_waits(answer=SOON), sockets=[exhausted]):
        assert await (await listener.connect()).ask()
        [line] = listener.lines("http.accept_failed")
        assert (line["level"], line["error"]) == ("error", "Too many open files")


async def test_connection_cap_flood_is_logged_once_a_minute(listener: Listener) -> None:
    """The first closed connection is logged immediately, the others as a count at the end of the minute."""
    async with listener.open(waits=_waits(), max_connections=2, throttled=True):
        clients = [await listener.connect() for _ in range(20)]
        for client in clients[:18]:
            await client.until_closed()
        [line] = listener.lines("http.connections_full")
        assert (line["level"], line["listener"], line["max_connections"], line["count"]) == ("warning", "public", 2, 1)
        assert listener.closed == ["max_connections"] * 18
        listener.clock.advance(60)
        assert (await listener.logged("http.connections_full", times=2))["count"] == 17
        closing = asyncio.create_task(listener.opened.close())
        await listener.clock.until_sleeping(0.25)
        listener.clock.advance(1)
        await closing


@pytest.mark.parametrize("name", ["public", "private"])
async def test_max_connections_setting_applies_to_each_listener(run: Any, name: str) -> None:
    """With a cap of two, a third client closes the first, and the metrics count it."""
    async with run(SERVER__MAX_CONNECTIONS="2") as app:
        host, _, port = getattr(app.service, name).rpartition(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        assert await asyncio.wait_for(opened[0][0].read(), WAIT_LIMIT) == b""
        closed = f'amo_callback_client_connections_closed_total{{listener="{name}",reason="max_connections"}} '
        text = (await app.private("/metrics", key=None)).text
        assert float(text.partition(closed)[2].partition("\n")[0]) >= 1
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()


async def test_socket_mode_setting_applies_to_created_unix_socket(run: Any, tmp_path: Path) -> None:
    """A Unix socket that the service creates has the configured mode."""
    path = tmp_path / "private.sock"
    async with run(SERVER__PRIVATE=f"unix:{path}", SERVER__SOCKET_MODE="0620"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
