"""Log lines, and the redaction of secrets."""

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


def test_log_event_is_one_line() -> None:
    """The line has name, level, connection and fields, with times and enums as text."""
    log = Log()
    moment = datetime(2026, 11, 23, 12, tzinfo=UTC)
    fields = {"at": moment, "status": Status.ACTIVE, "count": 2, "none": None, "many": (1, "a")}
    LogObserver(log.logger)(Event(name="a.b", level=Level.WARNING, connection_id="c", fields=fields))
    assert log.line() == {
        "event": "a.b", "level": "warning", "connection_id": "c", "at": "2026-11-23T12:00:00+00:00",
        "status": "active", "count": 2, "none": None, "many": [1, "a"],
    }  # fmt: skip


def test_log_text_with_invalid_unicode_is_escaped() -> None:
    """Text from bytes that are not UTF-8 is logged with escapes."""
    log = Log()
    log.logger.info("a.b", text="caf\udce9")
    assert log.line() == {"event": "a.b", "level": "info", "text": "caf\udce9"}


def test_log_exception_is_redacted() -> None:
    """The trace is logged, and the exception's text is redacted."""
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
def test_redactor_scrubs_by_value_and_by_pattern(text: str, scrubbed: str) -> None:
    """Configured secrets, tokens, codes and queries are redacted."""
    assert Redactor(["configured-secret", "tiny"]).scrub(text) == scrubbed


def test_redactor_secret_added_later_is_redacted() -> None:
    """The new secret is redacted in every kind of line from then on, and the earlier one still is."""
    redactor = Redactor(["the-first-secret"])
    log = Log(redactor=redactor)
    redactor.also(["another-secret"])
    log.logger.info("a.b", text="another-secret, the-first-secret", nested=["another-secret"])
    assert log.line() == {"event": "a.b", "level": "info", "text": "[redacted], [redacted]", "nested": ["[redacted]"]}
    plain = Log(redactor=redactor)
    plain.logger.info("a.b", text="another-secret")
    assert plain.line()["text"] == "[redacted]"


def test_log_fields_with_secret_names_are_redacted() -> None:
    """A field with such a name is redacted whatever its value, also inside another field."""
    log = Log()
    log.logger.info("e", code="abc", nested={"refresh_token": "abc", "list": [{"state": "abc"}]}, plain="abc")
    line = log.line()
    assert line["code"] == "[redacted]"
    assert line["nested"] == {"refresh_token": "[redacted]", "list": [{"state": "[redacted]"}]}
    assert line["plain"] == "abc"


def test_log_level_and_style_are_applied() -> None:
    """Lines below the level are not written; the style `auto` is JSON if the stream is not a terminal."""
    log = Log(level="warning", style="auto")
    log.logger.info("no")
    log.logger.warning("yes")
    assert log.line() == {"event": "yes", "level": "warning"}
    console = Log(style="console", journal=True)  # a trace spans several lines, so there is no prefix
    console.logger.warning("hello", name="value")
    assert "hello" in console.stream.getvalue()
    assert "name=value" in console.stream.getvalue()
    assert not console.stream.getvalue().startswith("<")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_level_change_applies_to_existing_loggers(level: str) -> None:
    """The new level also applies to lines that libraries and events log by number."""
    levels = ["debug", "info", "warning", "error"]
    level_filter = LevelFilter("error")
    log = Log(level=level_filter)
    level_filter.set(level)
    for name in levels:
        getattr(log.logger, name)(f"direct.{name}")
        LogObserver(log.logger)(Event(name=f"event.{name}", level=Level(name)))
    logged = [json.loads(line)["event"] for line in log.stream.getvalue().splitlines()]
    written = levels[levels.index(level) :]
    assert logged == [f"{kind}.{name}" for name in written for kind in ("direct", "event")]


def test_log_journal_line_has_priority_prefix() -> None:
    """Each line stays one line whatever it contains, and the rest is the same JSON."""
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


def test_log_unwritable_stream_raises_nothing() -> None:
    """A closed stream or a full disk loses lines and nothing else."""
    log = Log()
    log.stream.close()
    LogObserver(log.logger)(Event(name="e"))
    log.logger.error("e")
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 -- because closing it fails, too
    make_logger(level="info", style="json", stream=full).warning("e")
    with pytest.raises(OSError, match="No space left"):
        full.close()


@pytest.fixture
def restored() -> Iterator[None]:
    logging.captureWarnings(capture=False)  # an earlier command in this process may have enabled it
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.unraisablehook = hook


@pytest.mark.usefixtures("restored")
def test_library_log_warnings_are_logged_and_redacted() -> None:
    """Warnings and errors of libraries are logged; lower levels are not."""
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
def test_library_log_with_wrong_placeholders_is_logged_unformatted() -> None:
    """A message that does not fit its placeholders is logged as it is, and the library's call does not raise."""
    log = Log()
    take_over_library_logs(log.logger)
    logging.getLogger("aiohttp.client").warning("odd: %d", "words")
    assert log.line() == {
        "event": "library.log", "level": "warning", "library": "aiohttp.client", "text": "odd: %d",
    }  # fmt: skip
