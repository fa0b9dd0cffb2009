"""The pair in an answer: it has been paid for, so it is found wherever in the text it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from json import JSONDecodeError, JSONDecoder, detect_encoding
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_REFRESH_TOKEN = re.compile(r'"refresh_token"')
_PLACES = 8
"""Mentions of a refresh token in a text that is looked through, and braces before each: no text costs more work."""
_BRACES = 16
_CONTAINERS = 20_000
"""Objects and lists of a text that is looked through."""
_DECODER = JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFound:
    """The content of an answer with a pair in it."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: object = field(compare=False, repr=False)
    """As the answer has it: not checked."""


def find_pair(bodies: Sequence[bytes], *, presented: str) -> PairFound | None:
    """Return the pair in the first body that has one: the only object with both tokens, else nothing.

    An object with the refresh token that was `presented` is not a pair, but a copy of the request.
    """
    for body in bodies:
        text = body.decode(detect_encoding(body), errors="replace")
        pairs = {pair for found in _objects(text) if (pair := _pair(found)) and pair.refresh_token != presented}
        if pairs:
            return pairs.pop() if len(pairs) == 1 else None
    return None


def _objects(text: str) -> Iterator[object]:
    """Yield the objects around each mention of a refresh token, the innermost first.

    At most twice the text's length is parsed in all; what is left then is ignored.
    """
    mentions = [mention.start() for mention in _REFRESH_TOKEN.finditer(text)]
    if len(mentions) > _PLACES or text.count("{") + text.count("[") > _CONTAINERS:
        return
    left, tried = 2 * len(text), set[int]()
    for mention in mentions:
        brace = mention
        for _ in range(_BRACES):
            brace = text.rfind("{", 0, brace)
            if brace < 0 or left < 0:
                break
            if brace in tried:
                continue
            tried.add(brace)
            try:
                found, end = _DECODER.raw_decode(text, brace)
            except JSONDecodeError as error:
                left -= error.pos - brace
            except (ValueError, RecursionError):
                left -= len(text)
            else:
                left -= end - brace
                yield found


def _pair(found: object) -> PairFound | None:
    """Return the pair in an object, without spaces or line ends around its tokens."""
    if not isinstance(found, dict):
        return None
    access, refresh = (_token(found.get(name)) for name in ("access_token", "refresh_token"))
    if not access or not refresh:
        return None
    return PairFound(access_token=access, refresh_token=refresh, expires_in=found.get("expires_in"))


def _token(value: object) -> str:
    token = value.strip() if isinstance(value, str) else ""
    return token if token.isascii() and token.isprintable() else ""
