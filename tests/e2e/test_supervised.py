"""The command `serve` under a supervisor with systemd's protocols: notification, sockets, restarts."""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from amo_callback.clock import SystemClock
from tests.e2e.guest_commands import load
from tests.e2e.process import serving
from tests.service import API_KEY, BASE, Amo, environment, serve_amo
from tests.wait_limit import WAIT_LIMIT

_CALLERS = 16
_KEY = f"Authorization: Bearer {API_KEY}"
_RESTARTS = 3


class Notifier:
    """A supervisor's notification socket and the listening sockets."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.listener.bind(self.path)
        self.listeners = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in ("public", "private")]
        self.public, self.private = ("{}:{}".format(*address.getsockname()) for address in self.listeners)

    async def until(self, line: str) -> str:
        """Wait for a message with this line and return the message."""
        while True:
            message = (await asyncio.wait_for(self._hear(), WAIT_LIMIT)).decode()
            if line in message.splitlines():
                return message

    async def _hear(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.listener, 4096)

    def close(self) -> None:
        for one in (self.listener, *self.listeners):
            one.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Notifier]:
    made = Notifier(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def real_time_amo() -> AsyncIterator[Amo]:
    """Serve AMO's stand-in in real time."""
    async with serve_amo(SystemClock()) as amo:
        yield amo


async def test_serve_notifies_supervisor_of_ready_watchdog_reload_and_stop(
    supervisor: Notifier, real_time_amo: Amo, tmp_path: Path, encryption_key: str
) -> None:
    """The service sends READY once both listeners answer, WATCHDOG, RELOADING with READY, and STOPPING."""
    environ = environment(real_time_amo, encryption_key)
    environ |= {"NOTIFY_SOCKET": supervisor.path, "WATCHDOG_USEC": "600000"}
    async with serving(environ, tmp_path, listeners=supervisor.listeners) as process:
        await supervisor.until("READY=1")
        for address in (supervisor.public, supervisor.private):
            assert (await _get(address, "/healthz")).startswith(b"HTTP/1.1 200 ")
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


async def test_restart_under_load_loses_no_request(
    supervisor: Notifier,
    real_time_amo: Amo,
    tmp_path: Path,
    encryption_key: str,
    record_property: Callable[[str, object], None],
) -> None:
    """During restarts each request is answered, over new and over kept connections."""
    environ = environment(real_time_amo, encryption_key, LOG__ACCESS="false") | {"NOTIFY_SOCKET": supervisor.path}
    counts, ended = Counter[str](), asyncio.Event()
    callers: asyncio.Task[None] | None = None
    for _ in range(_RESTARTS + 1):
        async with serving(environ, tmp_path, listeners=supervisor.listeners) as process:
            await supervisor.until("READY=1")
            if callers is None:
                url = f"http://{supervisor.private}{await _connected(real_time_amo, supervisor)}"
                callers = asyncio.create_task(load(url, _CALLERS, [_KEY], counts=counts, ended=ended))
            wanted = counts.total() + 20 * _CALLERS
            while counts.total() < wanted:  # noqa: ASYNC110 -- the callers count
                await asyncio.sleep(0.02)
            await process.stop()
    assert callers is not None
    async with serving(environ, tmp_path, listeners=supervisor.listeners) as process:
        ended.set()
        await callers
        await process.stop()
    lost = counts["new_lost"] + counts["kept_lost"]
    record_property("requests", counts.total() - lost)
    record_property("lost", lost)
    assert lost == 0


async def _connected(amo: Amo, supervisor: Notifier) -> str:
    """Connect an account and return the path of its token."""
    query = f"code={amo.code()}&referer={amo.account.host}"
    answer = await _get(supervisor.public, f"{BASE}/callback?{query}")
    assert b"foryoure://amo-crm/callback?code=" in answer
    return f"/connections/account:{amo.account.id}/token"


async def _get(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer
