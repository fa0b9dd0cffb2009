"""How an Expo app reads a link, as far as it matters here: what expo-linking's `parse` does with a query.

It decodes each value twice, once as the parameter of a form and once more as a part of an address, and where the
second fails, that value, all later ones, the host and the path are lost.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """What the app gets."""

    hostname: str | None
    path: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse(link: str) -> Parsed:
    """Read a link as an Expo app does."""
    parts = urlsplit(link)
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True, errors="replace"):
        try:
            parameters[name] = _decode_component(value)
        except ValueError:
            return Parsed(hostname=None, path=link, parameters=parameters)
    return Parsed(hostname=parts.hostname, path=parts.path.removeprefix("/"), parameters=parameters)


def _decode_component(value: str) -> str:
    if _BROKEN_ESCAPE.search(value):
        raise ValueError("malformed")
    return unquote_to_bytes(value).decode()
