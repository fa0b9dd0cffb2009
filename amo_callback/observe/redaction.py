"""Secrets, taken out of log lines: the second lock, for texts that come from elsewhere.

What writes lines passes no secret to begin with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping

_NAMES = frozenset(
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
    r"|def502[0-9a-f]{10,}"  # a code or refresh token of AMO's
    r"|(?i:bearer )\S+"
    r"|\b(?P<name>code|state|client_secret|(?:access_|refresh_)?token)=[^&\s\"']+"
)
_HINTS = ("eyJ", "def502", "=")
"""One of these, or `bearer `, is in whatever has one of the shapes."""
_PLAIN = frozenset({int, float, bool, type(None)})
_GONE = "[redacted]"
_SHORTEST = 6
"""Secrets shorter than this are not searched for: they are parts of ordinary words."""


class Redactor:
    """Take secrets out of log lines: by field name, by shape, and the configured ones by value."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets: list[str] = []
        self._hints: tuple[str, ...] = ()
        self.also(secrets)

    def also(self, secrets: Collection[str]) -> None:
        """Take these out, too, from now on."""
        self._secrets = sorted({*self._secrets, *(s for s in secrets if len(s) >= _SHORTEST)}, key=len, reverse=True)
        self._hints = (*self._secrets, *_HINTS)

    def __call__(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Scrub a line; a structlog processor."""
        if self._is_clean(line):
            return line
        return {key: _GONE if key in _NAMES else self._clean(value) for key, value in line.items()}

    def scrub(self, text: str) -> str:
        """Return the text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _GONE)
        return _SHAPES.sub(lambda found: f"{found['name']}={_GONE}" if found["name"] else _GONE, text)

    def _is_clean(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line may hold something to scrub: most need no search."""
        if not _NAMES.isdisjoint(line):
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
            return {str(key): _GONE if key in _NAMES else self._clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(item) for item in value]
        return self.scrub(value.isoformat() if hasattr(value, "isoformat") else str(value))
