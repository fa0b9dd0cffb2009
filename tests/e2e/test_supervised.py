"""`amo-callback serve` under whoever speaks systemd's protocols: told, handed sockets, restarted under load."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from amo_callback.clock import SystemClock
from tests.conftest import API_KEY, BASE, Amo, environment, serve_amo
from tests.e2e.process import serving
from tests.patience import PATIENCE

_CALLERS = 8
"""Of each kind."""
_RESTARTS = 3


class Notifier:
    """Where the service tells how it is, and the sockets of its doors."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.listener.bind(self.path)
        self.doors = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in ("public", "private")]
        self.public, self.private = ("{}:{}".format(*door.getsockname()) for door in self.doors)

    async def until(self, fact: str) -> str:
        """Wait for a message that tells this; return all of it."""
        while True:
            message = (await asyncio.wait_for(self._hear(), PATIENCE)).decode()
            if fact in message.splitlines():
                return message

    async def _hear(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.listener, 4096)

    def close(self) -> None:
        for one in (self.listener, *self.doors):
            one.close()


class Callers:
    """Backends that ask without a pause, half of them on a new connection each time."""

    def __init__(self, door: str) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.answered = 0
        self.lost = 0
        self._door = door
        self._more = asyncio.Event()
        self._wanted = 0
        self._ended = False

    def begin(self, path: str) -> None:
        self.tasks = [
            asyncio.create_task(self._call(path, keep=keep)) for keep in (True, False) for _ in range(_CALLERS)
        ]

    async def until_more(self) -> None:
        """Wait until each has got twenty more answers, on an average."""
        self._more.clear()
        self._wanted = self.answered + 20 * len(self.tasks)
        await asyncio.wait_for(self._more.wait(), PATIENCE)

    async def end(self) -> None:
        self._ended = True
        await asyncio.gather(*self.tasks)

    async def _call(self, path: str, *, keep: bool) -> None:
        """Ask again and again, on one connection until the server says that it closes it."""
        while not self._ended:
            try:
                async with _connection(self._door) as (reader, writer):
                    going_on = True
                    while going_on and not self._ended:
                        writer.write(_request(path, keep=keep))
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                        await reader.readexactly(length)
                        assert head.startswith(b"HTTP/1.1 200 "), head
                        going_on = keep and b"connection: close" not in head.lower()
                        self._count()
            except (ConnectionError, asyncio.IncompleteReadError):
                self.lost += 1

    def _count(self) -> None:
        self.answered += 1
        if self.answered >= self._wanted:
            self._more.set()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Notifier]:
    made = Notifier(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def living_amo() -> AsyncIterator[Amo]:
    """Serve the stand-in in real time."""
    async with serve_amo(SystemClock()) as amo:
        yield amo


async def test_it_tells_when_it_is_ready_alive_reloading_and_ending(
    supervisor: Notifier, living_amo: Amo, tmp_path: Path, encryption_key: str
) -> None:
    """READY once both doors answer, WATCHDOG while it lives, RELOADING and READY, STOPPING at the signal."""
    environ = environment(living_amo, encryption_key)
    environ |= {"NOTIFY_SOCKET": supervisor.path, "WATCHDOG_USEC": "600000"}
    async with serving(environ, tmp_path, doors=supervisor.doors) as process:
        await supervisor.until("READY=1")
        for door in (supervisor.public, supervisor.private):
            assert (await _get(door, "/healthz")).startswith(b"HTTP/1.1 200 ")
        await supervisor.until("WATCHDOG=1")
        process.signal(signal.SIGHUP)
        [_, since] = (await supervisor.until("RELOADING=1")).splitlines()
        assert since.startswith("MONOTONIC_USEC=")
        assert 0 < int(since.partition("=")[2]) <= time.monotonic_ns() // 1000
        await supervisor.until("READY=1")
        process.signal(signal.SIGTERM)
        await supervisor.until("STOPPING=1")
        assert await process.ended() == 0
    started = process.named("service.started")[0]
    assert (started["public"], started["private"]) == (supervisor.public, supervisor.private)


async def test_a_restart_under_load_loses_no_request(
    supervisor: Notifier,
    living_amo: Amo,
    tmp_path: Path,
    encryption_key: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Callers who connect anew each time, and callers who keep their connection: each request gets its answer."""
    environ = environment(living_amo, encryption_key, LOG__ACCESS="false") | {"NOTIFY_SOCKET": supervisor.path}
    callers = Callers(supervisor.private)
    for _ in range(_RESTARTS + 1):
        async with serving(environ, tmp_path, doors=supervisor.doors) as process:
            await supervisor.until("READY=1")
            if not callers.tasks:
                callers.begin(await _connected(living_amo, supervisor))
            await callers.until_more()
            await process.stop()
    async with serving(environ, tmp_path, doors=supervisor.doors) as process:
        await callers.end()
        await process.stop()
    record_property("requests", callers.answered)
    record_property("lost", callers.lost)
    assert callers.lost == 0


async def test_a_socket_that_is_no_door_ends_the_start(
    supervisor: Notifier, living_amo: Amo, tmp_path: Path, encryption_key: str
) -> None:
    """Without `FileDescriptorName=` systemd names a socket after its unit: told in one line, with status 78."""
    environ = environment(living_amo, encryption_key)
    async with serving(environ, tmp_path, doors=supervisor.doors, names="amo-callback.socket:private") as process:
        assert await process.ended() == 78


async def _connected(amo: Amo, supervisor: Notifier) -> str:
    """Connect an account, and return where its token is handed out."""
    query = f"code={amo.code()}&referer={amo.account.host}"
    answer = await _get(supervisor.public, f"{BASE}/callback?{query}")
    assert b"foryoure://amo-crm/callback?code=" in answer
    return f"/connections/account:{amo.account.id}/token"


async def _get(door: str, path: str) -> bytes:
    async with _connection(door) as (reader, writer):
        writer.write(_request(path, keep=False))
        return await reader.read()


def _request(path: str, *, keep: bool) -> bytes:
    connection = "keep-alive" if keep else "close"
    return (
        f"GET {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {API_KEY}\r\nConnection: {connection}\r\n\r\n"
    ).encode()


@asynccontextmanager
async def _connection(door: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = door.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
