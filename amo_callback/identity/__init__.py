"""Authentication of backends by API keys; `jwt` and `jwks` authenticate app users."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import unquote

from amo_callback.errors import UnknownApiKey
from amo_callback.model import ConnectionLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class Scope(StrEnum):
    READ = "read"
    TOKEN = "token"  # noqa: S105 -- the scope's name
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset({Scope.READ, Scope.TOKEN})
"""The scopes of a key without explicit scopes; these scopes are sufficient for a backend."""

MIN_KEY_LENGTH = 32
MAX_USER = 255
"""The maximum length of a user id in characters."""

_LINE = re.compile(
    r"(?P<name>[\w.-]{1,64}):(?:(?P<scopes>[a-z]+(?:\+[a-z]+)*):)?"
    r"(?:(?P<limits>[a-z]+=[^\s:+]+(?:\+[a-z]+=[^\s:+]+)*):)?(?P<key>[^\s:]+)"
)
_INVALID_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """An API key, represented by its digest."""

    name: str
    scopes: frozenset[Scope]
    limits: ConnectionLimits | None
    """The connections for which the key is valid; `None` for all connections."""
    digest: bytes = field(repr=False)


class ApiKeys:
    """The valid API keys; `on_refused` is called for each request without one of them."""

    def __init__(self, keys: Sequence[ApiKey], *, on_refused: Callable[[], None] = lambda: None) -> None:
        self._keys = tuple(keys)
        self._on_refused = on_refused

    def replace(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def find(self, presented: str | None, *readings: str) -> ApiKey:
        """Return the key that matches the presented text or one of its other `readings`; raises `UnknownApiKey`.

        Every key is compared, each in constant time. Callers with a wrong key are neither delayed nor locked out, so
        that an outdated key does not affect other callers.
        """
        digests = [_digest(text) for text in (presented or "", *readings)]
        found = None
        for key in self._keys:
            for digest in digests:
                if hmac.compare_digest(key.digest, digest):
                    found = key
        if found is None:
            self._on_refused()
            raise UnknownApiKey(presented=bool(presented))
        return found


def read_api_keys(text: str) -> Sequence[ApiKey]:
    """Parse API keys, one per line: `name:key`, `name:scope+scope:key` or `name:scope+scope:account=ID+owner=ID:key`.

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
    """Return the first key with this scope for all connections, or `None`; commands use it to call the private API."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is not None and scope in _scopes_of(match) and match["limits"] is None:
            return match["key"]
    return None


def _read_line(number: int, line: str) -> ApiKey:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(
            f"line {number} is none of name:key, name:scope+scope:key and name:scope+scope:account=ID+owner=ID:key"
        )
    if len(match["key"]) < MIN_KEY_LENGTH:
        raise ValueError(f"the key in line {number} is shorter than {MIN_KEY_LENGTH} characters")
    try:
        scopes = frozenset(map(Scope, _scopes_of(match)))
    except ValueError:
        raise ValueError(f"line {number} contains an unknown scope; the scopes are {', '.join(Scope)}") from None
    limits = None if match["limits"] is None else _read_limits(number, match["limits"])
    if limits is not None and Scope.ADMIN in scopes:
        raise ValueError(f"line {number} limits a key with the scope admin, which is for all connections: remove one")
    return ApiKey(name=match["name"], scopes=scopes, limits=limits, digest=_digest(match["key"]))


def _read_limits(number: int, text: str) -> ConnectionLimits:
    values: dict[str, set[str]] = {"account": set(), "owner": set()}
    for item in text.split("+"):
        kind, _, encoded = item.partition("=")
        if kind not in values:
            raise ValueError(f"line {number} contains an unknown limit; the limits are account=ID and owner=ID")
        values[kind].add(_decode(number, encoded))
    return ConnectionLimits(accounts=frozenset(values["account"]), owners=frozenset(values["owner"]))


def _decode(number: int, encoded: str) -> str:
    """Return a percent-decoded id; raises `ValueError`, because a limit that is read wrongly could permit too much."""
    try:
        value = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        value = ""
    if _INVALID_ESCAPE.search(encoded) or not 1 <= len(value) <= MAX_USER or not value.isprintable():
        raise ValueError(f"line {number} contains an invalid id; percent-encode characters such as %, + and :")
    return value


def _scopes_of(line: re.Match[str]) -> Collection[str]:
    return line["scopes"].split("+") if line["scopes"] else DEFAULT_SCOPES


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
