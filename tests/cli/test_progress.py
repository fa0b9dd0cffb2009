"""The bar on a terminal."""

from __future__ import annotations

import io

from amo_callback.cli.progress import Progress
from tests.fakes import FakeClock


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_written_over_ten_times_a_second_at_most() -> None:
    """Whatever is done in between, the end is told."""
    terminal, clock = _Terminal(), FakeClock()
    with Progress("imported", total=2000, stream=terminal, monotonic=clock.monotonic) as advance:
        for done in range(100, 1100, 100):
            advance(done)
            clock.advance(0.04)
    lines = terminal.getvalue().split("\r")[1:]
    assert [line.split()[-3] for line in lines] == ["100", "400", "700", "1,000", "1,000"]
    assert lines[-1] == "imported [###############...............] 1,000 of 2,000\n"


def test_without_a_total_it_counts() -> None:
    """A file's connections are known at its end."""
    terminal, clock = _Terminal(), FakeClock()
    with Progress("read", stream=terminal, monotonic=clock.monotonic) as advance:
        advance(12345)
    assert terminal.getvalue() == "\rread 12,345\rread 12,345\n"


def test_nothing_is_written_where_nobody_looks() -> None:
    """A log, or a pipe."""
    stream = io.StringIO()
    with Progress("read", stream=stream, monotonic=FakeClock().monotonic) as advance:
        advance(1)
    assert stream.getvalue() == ""
