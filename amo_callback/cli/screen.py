"""The terminal: the same as the panel, as a table that is drawn again and again, and keys to try things with."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from amo_callback.cli.table import printable, table
from amo_callback.demo.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.demo.life import ConnectionLife, Life
    from amo_callback.demo.story import Line

    _Attempt = Callable[[str, ConnectionLife | None], None]

_INDENT = " " * 20
_BAR = 12
_HEAD = ("", "ACCOUNT", "STATUS", "ACCESS TOKEN", "NEXT REFRESH", "PAIRS", "A BACKEND GETS")
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The other screen, without a cursor; and back: xterm's control sequences, which all terminals know."""
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def line_of(line: Line) -> str:
    """Return a line of the story for a terminal."""
    return printable(f"{line.at:%H:%M:%S}  {line.who:<8} {line.domain:<24} {line.says}")


class Plain:
    """Write each line as it comes: where nobody looks, or a file takes it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def tell(self, line: Line) -> None:
        """Write a line."""
        self._write(f"{line_of(line)}\n")

    def show(self, life: Life) -> None:
        """Show nothing: a table would be of no use."""


class Screen:
    """Draw what there is to be seen, and take keys: each starts a trial, digits choose a connection."""

    def __init__(self, *, address: str, write: Callable[[str], None], attempt: _Attempt) -> None:
        self._address = address
        self._write = write
        self._attempt = attempt
        self._chosen = 0
        self._life: Life | None = None
        self._lines: list[str] = []

    def tell(self, line: Line) -> None:
        """Keep a line for the next time."""
        self._lines = [*self._lines[-99:], line_of(line)]

    def show(self, life: Life) -> None:
        """Draw."""
        self._life = life
        size = shutil.get_terminal_size()
        rows = picture(life, address=self._address, chosen=self._chosen)
        fitting = fitted(rows, self._lines, width=size.columns, height=size.lines)
        self._write(_HOME + "\n".join(f"{row}{_CLEAR_LINE}" for row in fitting) + _CLEAR_REST)

    def pressed(self, key: str) -> None:
        """Take a key."""
        if self._life is None:
            return
        connections = self._life.connections
        if key.isdecimal():
            self._chosen = min(max(int(key) - 1, 0), max(len(connections) - 1, 0))
        for trial in TRIALS:
            if trial.key == key:
                self._attempt(trial.name, connections[self._chosen] if self._chosen < len(connections) else None)


class Output:
    """Write, at once; where nobody takes it any more that is told once, and never raised among those who tell."""

    def __init__(self, stream: TextIO, *, gone: Callable[[], None]) -> None:
        self._stream = stream
        self._gone = gone
        self.problem: OSError | None = None
        """Why it takes nothing any more."""

    def __call__(self, text: str) -> None:
        """Write."""
        if self.problem is not None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as problem:
            self.problem = problem
            self._gone()


class Terminal:
    """The terminal, taken over: keys come at once, without Enter, and the other screen is shown."""

    def __init__(self, stdin: TextIO, write: Callable[[str], None]) -> None:
        import termios  # noqa: PLC0415 -- because it does not exist everywhere

        self._write = write
        self._number = stdin.fileno()
        self._before = termios.tcgetattr(self._number)

    def fileno(self) -> int:
        """Return what keys come from."""
        return self._number

    def take(self) -> None:
        """Take it over."""
        import tty  # noqa: PLC0415 -- because it does not exist everywhere

        self._write(_ENTER)
        tty.setcbreak(self._number)

    def give_back(self) -> None:
        """Leave it as it was; one that was closed is left as it is."""
        import termios  # noqa: PLC0415 -- because it does not exist everywhere

        with suppress(termios.error):
            termios.tcsetattr(self._number, termios.TCSADRAIN, self._before)
        self._write(_LEAVE)

    def key(self) -> str:
        """Return the next key; none where nobody is there any more."""
        with suppress(OSError):
            return os.read(self._number, 1).decode(errors="replace")
        return ""

    def suspend(self) -> None:
        """Stop, as on Ctrl-Z, with the terminal as it was; and take it over again where it goes on."""
        self.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.take()


def is_live(stdin: TextIO, stream: TextIO) -> bool:
    """Tell whether a table can be drawn and keys be read."""
    return stdin.isatty() and stream.isatty() and sys.platform != "win32"


def picture(life: Life, *, address: str, chosen: int) -> Sequence[str]:
    """Return the rows above the story."""
    service = f"not ready: {', '.join(life.not_ready)}" if life.not_ready else "ready"
    tokens = f"{life.issued} issued, {life.spent} spent, {life.again} presented again"
    rows = [
        f"Open {address} and connect.   Ctrl-C ends it.",
        "",
        f"service {service} | amoCRM {'AWAY' if life.away else 'there'} | refresh tokens: {tokens}",
        "",
    ]
    if life.connections:
        shown = [connection_row(one, chosen=number == chosen) for number, one in enumerate(life.connections)]
        rows += table(_HEAD, shown).splitlines()
    else:
        rows += ["Nobody is connected yet."]
    keys = [f"[{trial.key}] {trial.title}" for trial in TRIALS]
    return [*rows, "", "  ".join(keys[:4]), "  ".join([*keys[4:], "[1-9] choose a connection"]), ""]


def connection_row(one: ConnectionLife, *, chosen: bool) -> Sequence[object]:
    """Return a connection's cells."""
    full = round(_BAR * min(one.left / one.life, 1.0))
    due = "-" if one.due_in is None else f"in {max(one.due_in, 0):.0f} s"
    return (
        ">" if chosen else " ",
        one.domain,
        f"{one.status} {one.reason}".rstrip(),
        f"[{'#' * full}{'.' * (_BAR - full)}] {one.left:.0f} s",
        due,
        one.pairs,
        f"{one.backend_status} {one.backend_words}",
    )


def fitted(rows: Sequence[str], lines: Sequence[str], *, width: int, height: int) -> Sequence[str]:
    """Return the rows, cut to the width, and as many of the last lines, folded, as there is room for."""
    room = max(height - len(rows), 0)
    folded = [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=_INDENT)]
    last = folded[len(folded) - room :] if room < len(folded) else folded
    return [row[:width] for row in [*rows, *last][:height]]
