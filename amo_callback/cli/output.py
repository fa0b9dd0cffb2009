"""Terminal output: tables, progress bars and questions. rich is imported only when needed."""

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
"""The width of tables if the output is not a terminal."""


def echo(text: str) -> None:
    """Print a line and flush."""
    click.echo(text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Replace control characters, so that a value cannot move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as a table; a missing value is a dash."""
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
    """Return objects as a table of the given members; `false` is also shown as a dash."""
    return table(columns, [[None if one[name] is False else one[name] for name in columns] for one in found])


def facts(found: Mapping[str, object], *, but: str = "") -> str:
    """Return an object as a table with two columns, omitting one of its members."""
    values = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in found.items()}
    return table(("name", "value"), [(name, value) for name, value in values.items() if name != but])


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal; yield a function that takes the number of finished items."""
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
    """Ask for confirmation unless `yes`; the end of input means no. Raises `CommandFailed` without a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask on: confirm with --yes; nothing was changed")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # the loop's handler could not interrupt the prompt
    try:
        return click.confirm(question)
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):
            return False
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def waiting_reporter() -> Callable[[float], None]:
    """Return a function that prints, once, that the command waits for refreshes in progress."""
    said = False

    def report(left: float) -> None:
        nonlocal said
        if not said:
            echo(f"Waiting for refreshes in progress, at most {left:.0f} s.")
        said = True

    return report


def sigterm_as_interrupt() -> None:
    """Treat SIGTERM like Ctrl-C: partial files are removed, and the state is printed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
