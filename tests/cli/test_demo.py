"""The demo's terminal output."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from datetime import UTC, datetime

from amo_callback.cli.demo import Output, line_of
from amo_callback.demo.feed import FeedEntry

_LINE = FeedEntry(
    number=1,
    at=datetime(2026, 11, 24, 12, tzinfo=UTC),
    who="service",
    text="It works\x1b[H again.",
    domain="a.amocrm.ru",
)


def _fail() -> None:
    raise AssertionError("the output is open")


def test_demo_entry_is_one_line_without_control_characters() -> None:
    """An entry is one line with time, source, account and text, without control characters."""
    assert line_of(_LINE) == "12:00:00  service  a.amocrm.ru              It works?[H again."


def test_demo_output_is_flushed_per_write() -> None:
    """Each line is flushed."""
    stream = io.StringIO()
    Output(stream, on_error=_fail).write("one\n")
    assert stream.getvalue() == "one\n"


def test_demo_closed_output_is_reported_once() -> None:
    """A closed pipe calls `on_error` at the first write, and later writes do nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    errors: list[str] = []
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
        output = Output(stream, on_error=lambda: errors.append("closed"))
        for _ in range(2):
            output.write("line\n")
        assert isinstance(output.error, BrokenPipeError)
    assert errors == ["closed"]
