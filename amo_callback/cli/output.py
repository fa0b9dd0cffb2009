"""Terminal output: tables, progress bars and confirmation prompts.

rich is imported only when it is needed, because its import takes 50 ms.
"""

from __future__ import annotations

import io
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

EX_USAGE = 2
"""The exit status for an invalid command line."""
_UNLIMITED = 100_000
"""The table width, in columns, if the output is not a terminal."""


def echo(text: str) -> None:
    """Print a line and flush the output."""
    click.echo(text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Replace non-printable characters with `?`, so that a value cannot control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as a table; missing and empty values are shown as dashes."""
    from rich.console import Console  # noqa: PLC0415 -- its import takes 50 ms
    from rich.table import Table  # noqa: PLC0415 -- its import takes 50 ms
    from rich.text import Text  # noqa: PLC0415 -- its import takes 50 ms

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in head:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text("-" if value is None or value == "" else printable(str(value))) for value in row))
    output = io.StringIO()
    width = None if sys.stdout.isatty() else _UNLIMITED
    Console(file=output, width=width, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def rows(columns: Sequence[str], found: Sequence[Mapping[str, object]]) -> str:
    """Format the given members of objects as a table; `false` is also shown as a dash."""
    return table(columns, [[None if one[name] is False else one[name] for name in columns] for one in found])


def facts(found: Mapping[str, object], *, but: str = "") -> str:
    """Format an object as a table of names and values, without its member `but`."""
    values = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
    return table(("name", "value"), [(name, value) for name, value in values.items() if name != but])


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if stderr is a terminal; yield a function that takes the number of finished items."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console  # noqa: PLC0415 -- its import takes 50 ms
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 -- its import takes 50 ms

    count = "{task.completed:,.0f}" + ("" if total is None else " of {task.total:,.0f}")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn(count))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask for confirmation unless `yes` is true; end of input counts as no.

    Raises `CommandFailed` if stdin is not a terminal.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CommandFailed("cannot ask for confirmation without a terminal: use --yes; nothing was changed")
    # The event loop's SIGINT handler could not interrupt the prompt.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question)
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):
            return False
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def waiting_reporter() -> Callable[[float], None]:
    """Return a function whose first call prints that the command waits for refreshes in progress."""
    said = False

    def report(left: float) -> None:
        nonlocal said
        if not said:
            echo(f"Waiting up to {left:.0f} s for refreshes in progress.")
        said = True

    return report


def sigterm_as_interrupt() -> None:
    """Treat SIGTERM like Ctrl-C, so that a terminated command still removes partial files and prints its result."""
    # Raised as SIGINT, it cancels a running coroutine; a KeyboardInterrupt raised in a callback would be lost.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
