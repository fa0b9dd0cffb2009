"""Tables, progress bars and questions, with and without a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from amo_callback.cli.output import confirm, printable, progress, table
from amo_callback.errors import CommandFailed


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_has_columns_without_control_characters() -> None:
    """Absent values are dashes, control characters are replaced, and long values are not cut without a terminal."""
    long = "x" * 300
    assert table(("id", "name"), [(1, None), (20, "a\x1b[H[b]"), (3, long)]).splitlines() == [
        "id  name",
        "1   -",
        "20  a?[H[b]",
        f"3   {long}",
    ]
    assert printable("a\nb") == "a?b"


def test_progress_on_terminal_shows_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """The final count is shown, with the total if it is known."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("imported", 2000) as advance:
        advance(2000)
    with progress("read") as advance:
        advance(12345)
    assert "2,000 of 2,000" in terminal.getvalue()
    assert "12,345" in terminal.getvalue()


def test_progress_without_terminal_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is not written to a file or a pipe."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("imported", 10) as advance:
        advance(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_confirm_on_terminal_accepts_only_yes(typed: str, *, agreed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a yes confirms; a no, an empty line and the end of the input do not."""
    monkeypatch.setattr(sys, "stdin", _Terminal(typed))
    assert confirm("Sure?", yes=False) is agreed


def test_confirm_without_terminal_requires_yes_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--yes` confirms; without it the error names the option."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert confirm("Sure?", yes=True)
    with pytest.raises(CommandFailed, match="use --yes"):
        confirm("Sure?", yes=False)
