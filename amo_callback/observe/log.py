"""Log lines in JSON or for the console, with secrets redacted.

The service itself logs no secrets; redaction is for text from other sources, such as exceptions.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from pydantic_core import PydanticSerializationError, to_json
from structlog.processors import NAME_TO_LEVEL

from amo_callback.events import REQUEST_ID, Event, Level
from amo_callback.observe.log_writer import LogWriter
from amo_callback.observe.systemd import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping

    from structlog.typing import FilteringBoundLogger, Processor

_SECRET_FIELDS = frozenset(
    {
        "code",
        "code_verifier",
        "code_challenge",
        "ticket",
        "state",
        "authorize_url",
        "access_token",
        "refresh_token",
        "client_secret",
        "authorization",
        "handle",
        "signature",
    }
)
_SHAPES = re.compile(
    r"eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*"  # a JWT
    r"|def502[0-9a-f]{10,}"  # an authorization code or refresh token from AMO
    r"|(?i:bearer )\S+"
    r"|\b(?P<name>code|state|client_secret|(?:access_|refresh_)?token)=[^&\s\"']+"
)
_HINTS = ("eyJ", "def502", "=")
"""Every match of `_SHAPES` contains one of these texts or, in upper or lower case, `bearer `."""
_PLAIN = frozenset({int, float, bool, type(None)})
_GONE = "[redacted]"
_SHORTEST = 6
"""The minimum length of a configured secret that is redacted; shorter ones occur in ordinary words."""


class LevelFilter:
    """A structlog processor that drops log lines below a minimum level, which can be changed at any time."""

    def __init__(self, level: str) -> None:
        self.set(level)

    def set(self, level: str) -> None:
        self._number = logging.getLevelName(level.upper())

    def __call__(self, _logger: object, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if NAME_TO_LEVEL[method] < self._number:
            raise structlog.DropEvent
        return line


class Redactor:
    """Redacts secrets in log lines: by field name, by shape, and by the values of configured secrets."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets: list[str] = []
        self._hints: tuple[str, ...] = ()
        self.also(secrets)

    def also(self, secrets: Collection[str]) -> None:
        """Add values to redact."""
        self._secrets = sorted({*self._secrets, *(s for s in secrets if len(s) >= _SHORTEST)}, key=len, reverse=True)
        self._hints = (*self._secrets, *_HINTS)

    def __call__(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
        if self._is_clean(line):
            return line
        return {key: _GONE if key in _SECRET_FIELDS else self._clean(value) for key, value in line.items()}

    def scrub(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _GONE)
        return _SHAPES.sub(lambda found: f"{found['name']}={_GONE}" if found["name"] else _GONE, text)

    def _is_clean(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line certainly contains nothing to redact, as most lines do."""
        if not _SECRET_FIELDS.isdisjoint(line):
            return False
        texts = []
        for value in line.values():
            if type(value) is str:
                texts.append(value)
            elif type(value) not in _PLAIN:
                return False
        text = "\n".join(texts)
        for hint in self._hints:
            if hint in text:
                return False
        return "bearer " not in text.lower()

    def _clean(self, value: object) -> object:
        if isinstance(value, bool | int | float | None):
            return value
        if isinstance(value, dict):
            return {str(key): _GONE if key in _SECRET_FIELDS else self._clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(item) for item in value]
        return self.scrub(value.isoformat() if hasattr(value, "isoformat") else str(value))


def make_logger(
    *,
    level: str | LevelFilter,
    style: str,
    stream: TextIO | LogWriter,
    secrets: Collection[str] = (),
    redactor: Redactor | None = None,
    journal: bool = False,
) -> FilteringBoundLogger:
    """Return the process's logger; `style` is `json`, `console` or `auto` (console on a terminal, otherwise JSON).

    If `journal` is true, each JSON line begins with a priority prefix for the journal.
    """
    console = style == "console" or (style == "auto" and stream.isatty())
    processors: list[Processor] = [
        level if isinstance(level, LevelFilter) else LevelFilter(level),
        structlog.processors.add_log_level,
        _add_context,
        structlog.processors.format_exc_info,
        redactor or Redactor(secrets),
    ]
    render: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else _as_json
    )
    prefixes = PREFIXES if journal and not console else {}
    if isinstance(stream, LogWriter):
        stream.describe_loss = partial(_describe_loss, render, prefixes.get("warning", ""))
    return structlog.wrap_logger(  # type: ignore[no-any-return]  # reason: structlog types it as Any
        _Sink(stream, prefixes=prefixes),
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG
        ),  # `LevelFilter` applies the configured level
    ).bind()  # without `bind`, structlog makes a logger for every line


def _add_context(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (request_id := REQUEST_ID.get()) is not None:
        line["request_id"] = request_id
    line["timestamp"] = datetime.now(UTC).isoformat()[:-6] + "Z"  # three times as fast as structlog's `TimeStamper`
    return line


def _as_json(_logger: object, _method: str, line: Mapping[str, Any]) -> str:
    try:
        return to_json(line).decode()  # three times as fast as `json`
    except PydanticSerializationError:
        return json.dumps(line, default=str)  # the line contains, for example, an unpaired surrogate


def _describe_loss(render: Processor, prefix: str, lines: int) -> str:
    text = "the process that reads the log was too slow, or the log could not be written"
    line = {"event": "log.lines_lost", "level": "warning", "lines": lines, "text": text}
    return f"{prefix}{render(None, 'warning', _add_context(None, 'warning', line))!s}\n"


class _Sink:
    """The output of the log; on a full disk or a closed pipe, lines are lost but no error is raised."""

    def __init__(self, stream: TextIO | LogWriter, *, prefixes: Mapping[str, str]) -> None:
        self._stream = stream
        for level in PREFIXES:
            setattr(self, level, partial(self._write, prefixes.get(level, "")))

    def _write(self, prefix: str, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(f"{prefix}{line}\n")
            self._stream.flush()


class LogObserver:
    def __init__(self, logger: FilteringBoundLogger) -> None:
        self._logger = logger

    def __call__(self, event: Event) -> None:
        fields = dict(event.fields)
        for name, value in fields.items():
            if isinstance(value, datetime):
                fields[name] = value.isoformat()
            elif isinstance(value, StrEnum):
                fields[name] = value.value
        if event.connection_id is not None:
            fields["connection_id"] = event.connection_id
        if event.error is not None:
            fields["exc_info"] = event.error
        self._logger.log(_NUMBERS[event.level], event.name, **fields)


_NUMBERS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}


class LibraryLog(logging.Handler):
    """A logging handler that writes the warnings and errors of libraries to the service's log."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 -- a malformed log call must not raise in the library
            text = str(record.msg)
        self._logger.log(record.levelno, "library.log", library=record.name, text=text, exc_info=record.exc_info)


def take_over_library_logs(logger: FilteringBoundLogger) -> None:
    """Send the logs of all libraries only to `logger`, because writing to stderr may block."""
    logging.basicConfig(handlers=[LibraryLog(logger)], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    observe = LogObserver(logger)
    sys.unraisablehook = lambda unraisable: observe(
        Event(name="library.unraisable", level=Level.ERROR, error=unraisable.exc_value)
    )
    threading.excepthook = lambda thread: observe(
        Event(name="library.unraisable", level=Level.ERROR, error=thread.exc_value)
    )
