"""Authentication of backends by API keys; `jwt` and `jwks` authenticate app users."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Scope(StrEnum):
    READ = "read"
    TOKEN = "token"  # noqa: S105 -- the scope's name
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.TOKEN})
"""The scopes of a key without explicit scopes; these scopes are sufficient for a backend."""

MIN_KEY_LENGTH = 32
MAX_USER = 255
"""The maximum length of a user id in characters."""

_LINE = re.compile(r"(?P<name>[\w.-]{1,64}):(?:(?P<scopes>[a-z]+(?:\+[a-z]+)*):)?(?P<key>[^\s:]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """An API key, represented by its digest."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)


class ApiKeys:
    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def replace(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def find(self, presented: str) -> ApiKey | None:
        """Return the matching key, or `None`; every key is compared, each in constant time."""
        digest = _digest(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def read_api_keys(text: str) -> Sequence[ApiKey]:
    """Parse API keys, one per line: `name:key` or `name:scope+scope:key`.

    Empty lines and lines that begin with `#` are ignored. Raises `ValueError` if a line is invalid, or if two lines
    have the same name or key.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    keys = [_read_line(number, line) for number, line in lines if line and not line.startswith("#")]
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two lines have the same name; use a different name for each key")
    if len({key.digest for key in keys}) < len(keys):
        raise ValueError("two lines have the same key; use a different key for each name")
    return keys


def key_with(text: str, scope: Scope) -> str | None:
    """Return the first key with this scope, or `None`; commands use the key to call the private API."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is not None and scope in _scopes_of(match):
            return match["key"]
    return None


def _read_line(number: int, line: str) -> ApiKey:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"line {number} is neither name:key nor name:scope+scope:key")
    if len(match["key"]) < MIN_KEY_LENGTH:
        raise ValueError(f"the key in line {number} is shorter than {MIN_KEY_LENGTH} characters")
    try:
        scopes = frozenset(map(Scope, _scopes_of(match)))
    except ValueError:
        raise ValueError(f"line {number} contains an unknown scope; the scopes are {', '.join(Scope)}") from None
    return ApiKey(name=match["name"], scopes=scopes, digest=_digest(match["key"]))


def _scopes_of(line: re.Match[str]) -> Collection[str]:
    return line["scopes"].split("+") if line["scopes"] else DEFAULT_SCOPES


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
