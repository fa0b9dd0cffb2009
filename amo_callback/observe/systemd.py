"""Notifications to systemd, its watchdog, inherited sockets, and the journal.

The protocols are stable (https://systemd.io/PORTABILITY_AND_STABILITY/) and need no library. They are documented in
sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), sd-daemon(3) (the prefixes) and systemd.exec(5)
(`JOURNAL_STREAM`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from amo_callback.clock import Clock

PREFIXES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""The journal's priority prefix of each log level."""
_FIRST = 3
"""The first inherited file descriptor."""
_KEPT = 64
"""The maximum number of messages kept while systemd's queue is full; beyond it, the oldest ones are dropped."""

_STATUS_INTERVAL = 60.0
_EXTENSION = 30.0
"""Seconds of additional shutdown time that each notification requests from systemd.

The notification is repeated while a pair exists only in memory.
"""
_INTERVAL = 10.0
"""The maximum number of seconds between two notifications; the watchdog may require a shorter interval."""


class Notifier:
    """Sends notifications to systemd, if systemd expects any."""

    def __init__(self, environ: Mapping[str, str], *, pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environ, pid) if self.enabled else None
        """Seconds within which systemd expects the next notification; `None` without a watchdog."""
        self._unsent: deque[bytes] = deque(maxlen=_KEPT)

    @property
    def enabled(self) -> bool:
        return self._address is not None

    def __call__(self, *assignments: str) -> None:
        """Send assignments in one message without blocking; while systemd's queue is full, messages are kept."""
        if self._address is None:
            return
        message = "\n".join(assignments).encode()
        if not self._unsent or self._unsent[-1] != message:
            self._unsent.append(message)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # noqa: FBT003 -- takes no keyword arguments
            sender.connect(self._address)
            while self._unsent:
                sender.send(self._unsent[0])
                self._unsent.popleft()


class Watchdog:
    """Sends a process's notifications to systemd, from readiness until exit.

    systemd kills a process that stops sending notifications, and data that exists only in memory is then lost. The
    watchdog is therefore notified as long as `is_alive` returns true; a blocked event loop sends nothing. At shutdown,
    additional time is requested while `at_risk` returns true.
    """

    def __init__(
        self,
        notify: Notifier,
        *,
        clock: Clock,
        status: Callable[[], str],
        is_alive: Callable[[], bool],
        at_risk: Callable[[], bool],
    ) -> None:
        self._notify = notify
        self._clock = clock
        self._status = status
        self._is_alive = is_alive
        self._at_risk = at_risk
        self._interval = _INTERVAL if notify.watchdog is None else min(notify.watchdog / 3, _INTERVAL)
        self._status_at = 0.0
        self._ready = asyncio.Event()
        self._stopping = False

    def ready(self) -> None:
        self._notify("READY=1", f"STATUS={self._status()}")
        self._status_at = self._clock.monotonic()
        self._ready.set()

    def stop(self) -> None:
        if not self._stopping:
            self._notify("STOPPING=1", "STATUS=shutting down: finishing requests in progress and storing their results")
        self._stopping = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send notifications in the background, if systemd expects any."""
        task = asyncio.create_task(self._run(), name="watchdog") if self._notify.enabled else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def _run(self) -> None:
        await self._ready.wait()  # before readiness, systemd expects no other notification
        while True:
            if self._stopping:
                if self._at_risk():
                    self._notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1e6:.0f}")
            elif self._is_alive():
                self._notify("WATCHDOG=1", *self._status_if_due())
            await self._clock.sleep(self._interval)

    def _status_if_due(self) -> list[str]:
        now = self._clock.monotonic()
        if now - self._status_at < _STATUS_INTERVAL:
            return []
        self._status_at = now
        return [f"STATUS={self._status()}"]


def inherited_sockets(
    environ: Mapping[str, str], *, pid: int, names: Sequence[str], first: int = _FIRST
) -> Mapping[str, Sequence[socket.socket]]:
    """Return the listening sockets that systemd has opened, by name.

    Raises `ConfigurationError` for a name that is not in `names`, because no API listens on that socket.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count, given = int(environ.get("LISTEN_FDS", "0")), environ.get("LISTEN_FDNAMES", "").split(":")
    given += [""] * (count - len(given))
    if unknown := set(given[:count]) - set(names):
        raise ConfigurationError(
            f"systemd passes a socket with the unknown name {min(unknown)!r}: set FileDescriptorName= to "
            f"{' or '.join(names)} in its .socket unit"
        )
    found: dict[str, list[socket.socket]] = {}
    for number, name in enumerate(given[:count]):
        listener = socket.socket(fileno=first + number)
        listener.set_inheritable(False)
        found.setdefault(name, []).append(listener)
    return found


def _address(text: str) -> str | None:
    if not text:
        return None
    if text[0] not in "/@":
        raise ConfigurationError("NOTIFY_SOCKET must be a path or an abstract socket name")
    return "\0" + text[1:] if text[0] == "@" else text


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not environ.get("WATCHDOG_USEC"):
        return None
    return int(environ["WATCHDOG_USEC"]) / 1e6


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether the journal reads `stream`.

    `JOURNAL_STREAM` is also set if the stream is redirected, so the variable must match the stream.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # the stream is closed, or not a file
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
