"""Log lines, and what is not in them."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from amo_callback.events import Event, Level
from amo_callback.model import Status
from amo_callback.observe.log import LevelFilter, LogObserver, Redactor, make_logger, take_over_library_logs

JWT = "eyJ0eXAiOiJKV1QifQ.eyJhY2NvdW50X2lkIjo3fQ.c2lnbmF0dXJl"
CODE = "def50200" + "ab" * 40


class Log:
    """A logger, and its lines."""

    def __init__(self, **options: Any) -> None:
        self.stream = io.StringIO()
        self.logger = make_logger(**{"level": "info", "style": "json", "stream": self.stream, **options})

    def line(self) -> dict[str, Any]:
        [line] = self.stream.getvalue().splitlines()
        return {key: value for key, value in json.loads(line).items() if key != "timestamp"}


def test_an_event_is_one_line() -> None:
    """Name, level, connection and fields; times and words as text."""
    log = Log()
    moment = datetime(2026, 11, 23, 12, tzinfo=UTC)
    fields = {"at": moment, "status": Status.ACTIVE, "count": 2, "none": None, "many": (1, "a")}
    LogObserver(log.logger)(Event(name="a.b", level=Level.WARNING, connection_id="c", fields=fields))
    assert log.line() == {
        "event": "a.b", "level": "warning", "connection_id": "c", "at": "2026-11-23T12:00:00+00:00",
        "status": "active", "count": 2, "none": None, "many": [1, "a"],
    }  # fmt: skip


def test_a_text_that_is_no_unicode_costs_no_line() -> None:
    """What came in bytes that are no UTF-8 is told with its escapes."""
    log = Log()
    log.logger.info("a.b", text="caf\udce9")
    assert log.line() == {"event": "a.b", "level": "info", "text": "caf\udce9"}


def test_a_bug_keeps_its_trace_without_secrets() -> None:
    """The trace is there, the text of the exception is scrubbed."""
    log = Log(secrets=["configured-secret"])
    error = ValueError(f"{CODE} configured-secret")
    LogObserver(log.logger)(Event(name="bug", level=Level.ERROR, error=error))
    assert log.line()["exception"] == "ValueError: [redacted] [redacted]"


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (f"a {JWT} b", "a [redacted] b"),
        (f"x={CODE}", "x=[redacted]"),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("/cb?code=abc&state=x%20y&referer=a", "/cb?code=[redacted]&state=[redacted]&referer=a"),
        ("my-configured-secret.", "my-[redacted]."),
        ("nothing secret: postcode=1, restate", "nothing secret: postcode=1, restate"),
    ],
)
def test_secrets_are_known_by_value_and_by_shape(text: str, scrubbed: str) -> None:
    """Configured secrets, tokens, codes and queries do not get through."""
    assert Redactor(["configured-secret", "tiny"]).scrub(text) == scrubbed


def test_a_secret_that_is_read_again_later_is_taken_out_too() -> None:
    """From then on, of plain lines as of others; the one before it is still a secret."""
    redactor = Redactor(["the-first-secret"])
    log = Log(redactor=redactor)
    redactor.also(["another-secret"])
    log.logger.info("a.b", text="another-secret, the-first-secret", nested=["another-secret"])
    assert log.line() == {"event": "a.b", "level": "info", "text": "[redacted], [redacted]", "nested": ["[redacted]"]}
    plain = Log(redactor=redactor)
    plain.logger.info("a.b", text="another-secret")
    assert plain.line()["text"] == "[redacted]"


def test_fields_with_telling_names_are_dropped() -> None:
    """Whatever somebody puts under such a name, also inside another field."""
    log = Log()
    log.logger.info("e", code="abc", nested={"refresh_token": "abc", "list": [{"state": "abc"}]}, plain="abc")
    line = log.line()
    assert line["code"] == "[redacted]"
    assert line["nested"] == {"refresh_token": "[redacted]", "list": [{"state": "[redacted]"}]}
    assert line["plain"] == "abc"


def test_levels_and_styles() -> None:
    """Below the level nothing is written; a file is no terminal, so `auto` is JSON there."""
    log = Log(level="warning", style="auto")
    log.logger.info("no")
    log.logger.warning("yes")
    assert log.line() == {"event": "yes", "level": "warning"}
    console = Log(style="console", journal=True)  # its lines are several where there is a trace: no prefix
    console.logger.warning("hello", name="value")
    assert "hello" in console.stream.getvalue()
    assert "name=value" in console.stream.getvalue()
    assert not console.stream.getvalue().startswith("<")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_may_be_another_one_at_any_time(level: str) -> None:
    """Of whoever has the logger already; also of what libraries and events bring by number."""
    levels = ["debug", "info", "warning", "error"]
    level_filter = LevelFilter("error")
    log = Log(level=level_filter)
    level_filter.set(level)
    for name in levels:
        getattr(log.logger, name)(f"direct.{name}")
        LogObserver(log.logger)(Event(name=f"event.{name}", level=Level(name)))
    told = [json.loads(line)["event"] for line in log.stream.getvalue().splitlines()]
    written = levels[levels.index(level) :]
    assert told == [f"{kind}.{name}" for name in written for kind in ("direct", "event")]


def test_the_journal_is_told_how_urgent_a_line_is() -> None:
    """By a prefix to each, which stays one line whatever is in it; the rest is the same JSON."""
    log = Log(level="debug", journal=True)
    for name in ("debug", "info", "warning", "error", "critical"):
        getattr(log.logger, name)("e", text="two\nlines\r\x00\u2028")
    try:
        raise ValueError("a bug")
    except ValueError:
        log.logger.exception("e")
    lines = log.stream.getvalue().split("\n")
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>", ""]
    assert [json.loads(line[3:])["level"] for line in lines[:5]] == ["debug", "info", "warning", "error", "critical"]
    assert "\x00" not in log.stream.getvalue()


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    """A closed stream or a full disk costs lines and nothing else, whoever writes them."""
    log = Log()
    log.stream.close()
    LogObserver(log.logger)(Event(name="e"))
    log.logger.error("e")
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 -- because its end fails, too
    make_logger(level="info", style="json", stream=full).warning("e")
    with pytest.raises(OSError, match="No space left"):
        full.close()


@pytest.fixture
def restored() -> Iterator[None]:
    logging.captureWarnings(capture=False)  # a command that ran in this process before may have left it on
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.unraisablehook = hook


@pytest.mark.usefixtures("restored")
def test_what_libraries_log_comes_in_our_lines() -> None:
    """Warnings and worse, scrubbed like the rest; their chatter does not."""
    log = Log()
    take_over_library_logs(log.logger)
    logging.getLogger("aiohttp.client").info("chatter")
    logging.getLogger("aiohttp.client").warning("odd %s", CODE)
    assert log.line() == {
        "event": "library.log", "level": "warning", "library": "aiohttp.client", "text": "odd [redacted]",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    assert "deprecated" in log.stream.getvalue().splitlines()[-1]


@pytest.mark.usefixtures("restored")
def test_a_line_that_a_library_has_got_wrong_breaks_none_of_its_work() -> None:
    """What does not fit its own placeholders is told as it stands, and nothing is raised where it was logged."""
    log = Log()
    take_over_library_logs(log.logger)
    logging.getLogger("aiohttp.client").warning("odd: %d", "words")
    assert log.line() == {
        "event": "library.log", "level": "warning", "library": "aiohttp.client", "text": "odd: %d",
    }  # fmt: skip
