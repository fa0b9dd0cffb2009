"""Notifications to systemd, the sockets inherited from it, and its journal.

The protocols are stable and need no library (https://systemd.io/PORTABILITY_AND_STABILITY/): sd_notify(3),
sd_watchdog_enabled(3), sd_listen_fds(3), sd-daemon(3) for the prefixes, systemd.exec(5) for `JOURNAL_STREAM`.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIXES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""The journal's prefixes for a line's priority."""
_FIRST = 3
"""The first inherited file descriptor."""
_KEPT = 64
"""Messages that are kept while systemd's queue is full: of more the oldest are dropped."""


class Notifier:
    """A sender of notifications to systemd, if it asks for them."""

    def __init__(self, environ: Mapping[str, str], *, pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environ, pid) if self.enabled else None
        """Seconds within which it expects the next notification; `None` without a watchdog."""
        self._unsent: deque[bytes] = deque(maxlen=_KEPT)

    @property
    def enabled(self) -> bool:
        return self._address is not None

    def __call__(self, *assignments: str) -> None:
        """Send some assignments in one message, without waiting: while the queue is full they are kept."""
        if self._address is None:
            return
        message = "\n".join(assignments).encode()
        if not self._unsent or self._unsent[-1] != message:
            self._unsent.append(message)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # noqa: FBT003 -- because it takes no names
            sender.connect(self._address)
            while self._unsent:
                sender.send(self._unsent[0])
                self._unsent.popleft()


def inherited_sockets(
    environ: Mapping[str, str], *, pid: int, names: Sequence[str], first: int = _FIRST
) -> Mapping[str, Sequence[socket.socket]]:
    """Return the listening sockets that systemd has opened, by their names.

    Raises `ConfigurationError` for one whose name is none of `names`: no API would answer there.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count, given = int(environ.get("LISTEN_FDS", "0")), environ.get("LISTEN_FDNAMES", "").split(":")
    given += [""] * (count - len(given))
    if unknown := set(given[:count]) - set(names):
        raise ConfigurationError(
            f"systemd hands over a socket named {min(unknown) or 'nothing'!r}: name it {' or '.join(names)}, with "
            "FileDescriptorName= in its .socket unit"
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
        raise ConfigurationError("NOTIFY_SOCKET: neither a path nor an abstract name, and no other kind is known here")
    return "\0" + text[1:] if text[0] == "@" else text


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not environ.get("WATCHDOG_USEC"):
        return None
    return int(environ["WATCHDOG_USEC"]) / 1e6


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether the journal reads this stream: a redirected process has the variable, too."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
