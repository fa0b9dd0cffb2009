"""A thread that writes the log: if the log is not read, lines are lost, but the service does not block.

A pipe holds 64 KiB; if it is not read, the next write blocks forever. The event loop therefore only appends to a
bounded queue, and only this thread writes.
"""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 4 * 1024 * 1024
"""The maximum number of characters in the queue."""
_CHUNK = 4096
"""The maximum number of characters per write, unless a line is longer; small writes to a shared pipe are atomic."""
_GATHER = 0.005
"""Seconds for which lines are collected; waking the thread for each line would slow down the event loop."""
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class LogWriter:
    """Writes to the descriptor of `stream` in a daemon thread, which never keeps the process from exiting.

    Lines are lost if the queue or the disk is full, or if the pipe is closed.
    """

    def __init__(self, stream: TextIO, *, limit: int = LIMIT) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._terminal = stream.isatty()
        self._limit = limit
        self._lock = threading.RLock()  # reentrant, because the garbage collector may log during a write
        self._lines: deque[str] = deque()
        self._size = 0
        self._full = False
        self._unreported = 0
        self._lost = 0
        self._idle = threading.Event()
        self._idle.set()
        self._wake = threading.Event()
        self.describe_loss: Callable[[int], str] = "{} log lines were lost\n".format
        """Return the line that reports the number of lost lines."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def lost(self) -> int:
        return self._lost

    def isatty(self) -> bool:
        return self._terminal

    def write(self, line: str) -> None:
        """Queue a complete line; if the queue is full, lines are lost until half of the queue is written."""
        with self._lock:
            if self._full and self._size > self._limit // 2:
                self._count_lost(1)
                return
            if self._size + len(line) > self._limit:
                self._full = True
                self._count_lost(1)
                return
            self._full = False
            if self._unreported:
                self._append(self.describe_loss(self._unreported))
                self._unreported = 0
            self._append(line)
            if self._idle.is_set():
                self._idle.clear()
                self._wake.set()

    def flush(self) -> None:
        """Do nothing, because the thread writes every line."""

    def finish(self, *, seconds: float) -> None:
        """Wait until all lines are written, for at most `seconds`."""
        self._idle.wait(seconds)

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _count_lost(self, lines: int) -> None:
        self._lost += lines
        self._unreported += lines

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            time.sleep(_GATHER)
            while lines := self._next():
                written = self._deliver("".join(lines))
                with self._lock:
                    self._size -= sum(map(len, lines))
                    if not written:
                        self._count_lost(len(lines))

    def _next(self) -> list[str]:
        """Return the lines of the next write; an empty list if the queue is empty."""
        lines: list[str] = []
        size = 0
        with self._lock:
            while self._lines and (not lines or size + len(self._lines[0]) <= _CHUNK):
                line = self._lines.popleft()
                size += len(line)
                lines.append(line)
            if not lines:
                self._idle.set()
        return lines

    def _deliver(self, text: str) -> bool:
        """Write all of `text`, blocking for as long as necessary; return whether the write succeeded."""
        left = memoryview(_encode(text, self._encoding))
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # another process has made the descriptor non-blocking
                    select.select((), (self._descriptor,), ())
        except (OSError, ValueError):
            return False
        return True


def _encode(text: str, encoding: str) -> bytes:
    """Encode a text; if the encoding lacks a character, escape all non-ASCII characters as in JSON."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text).encode(encoding)
