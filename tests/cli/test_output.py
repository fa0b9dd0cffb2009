"""Tables, progress bars and questions on a terminal, and where there is none."""

from __future__ import annotations

import io
import sys

import pytest

from amo_callback.cli.output import confirm, printable, progress, table
from amo_callback.errors import CommandFailed


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_has_columns_and_no_control_characters() -> None:
    """Absent values are dashes; a value moves no cursor; nothing is cut where the output is no terminal."""
    long = "x" * 300
    assert table(("id", "name"), [(1, None), (20, "a\x1b[H[b]"), (3, long)]).splitlines() == [
        "id  name",
        "1   -",
        "20  a?[H[b]",
        f"3   {long}",
    ]
    assert printable("a\nb") == "a?b"


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is shown, with the total where it is known."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("imported", 2000) as advance:
        advance(2000)
    with progress("read") as advance:
        advance(12345)
    assert "2,000 of 2,000" in terminal.getvalue()
    assert "12,345" in terminal.getvalue()


def test_progress_writes_nothing_into_a_file_or_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs stay readable."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("imported", 10) as advance:
        advance(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_a_question_is_answered_on_a_terminal(typed: str, *, agreed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a yes is a no, the end of the input, too."""
    monkeypatch.setattr(sys, "stdin", _Terminal(typed))
    assert confirm("Sure?", yes=False) is agreed


def test_nothing_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--yes` answers; else the error says so."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert confirm("Sure?", yes=True)
    with pytest.raises(CommandFailed, match="say --yes"):
        confirm("Sure?", yes=False)
