"""Who the app's user is, by a JWT of the app's: what makes one good but for its signature, without I/O.

What is checked, and why: https://www.rfc-editor.org/rfc/rfc8725 (JSON Web Token best current practices).
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from amo_callback.errors import Unauthorized

if TYPE_CHECKING:
    from datetime import datetime

MAX_TOKEN = 8 * 1024
"""Bytes of a token that is looked at at all."""
LEEWAY = 60.0
"""Seconds by which the issuer's clock may differ from ours."""
MAX_USER = 255

_END_OF_TIME = 253402300799
"""The last second of the year 9999; whoever counts milliseconds is beyond it."""
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_NOT_FOR_US = frozenset({"b64", "crit", "enc", "zip"})
"""Headers that change what the rest means; we understand none of them."""


class Users(Protocol):
    """Who can tell the app's users."""

    async def user_of(self, token: str) -> str:
        """Return the id of the user whose JWT this is; raises `Unauthorized`, `JwksUnavailable`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserRules:
    """What a JWT must say."""

    audience: str
    issuer: str | None = None
    user_claim: str = "sub"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token in the form of one, with the name of the key it says it was signed with. Nothing is proven."""

    text: str = field(repr=False)
    payload: str = field(repr=False)
    kid: str | None


def read_token(text: str) -> Token:
    """Return a token as far as its form tells; raises `Unauthorized`."""
    match = _COMPACT.fullmatch(text) if len(text) <= MAX_TOKEN else None
    if match is None:
        raise Unauthorized("form")
    header = _decode(match[1])
    kid = header.get("kid")
    if header.keys() & _NOT_FOR_US or not (kid is None or isinstance(kid, str)):
        raise Unauthorized("form")
    return Token(text=text, payload=match[2], kid=kid)


def claims_in(token: Token) -> dict[str, object]:
    """Return what a token says, whoever has signed it; raises `Unauthorized`."""
    return _decode(token.payload)


def user_in(claims: dict[str, object], *, rules: UserRules, now: datetime) -> str:
    """Return the user's id where the claims are good now; raises `Unauthorized`."""
    if "exp" not in claims or now.timestamp() >= _moment(claims["exp"]) + LEEWAY:
        raise Unauthorized("expired")
    for name in ("nbf", "iat"):
        if name in claims and _moment(claims[name]) > now.timestamp() + LEEWAY:
            raise Unauthorized("time")
    audiences = claims.get("aud")
    if rules.audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise Unauthorized("audience")
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        raise Unauthorized("issuer")
    return _user(claims.get(rules.user_claim))


def json_object(content: bytes) -> dict[str, object]:
    """Read a JSON object that others cannot read otherwise; raises `ValueError`, also for names given twice and NaN."""
    try:
        found = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("is no object")  # noqa: TRY004 -- because whoever wrote it is wrong, and not our caller
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("has a name twice")
    return found


def _refuse(_constant: str) -> object:
    raise ValueError("has a number that is none")


def _decode(part: str) -> dict[str, object]:
    try:
        return json_object(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        raise Unauthorized("form") from None


def _moment(value: object) -> float:
    # Compared as it is: a float of what JSON can write may be too much for one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _END_OF_TIME:
        raise Unauthorized("time")
    return value


def _user(value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_USER or not text.isprintable():
        raise Unauthorized("user")
    return text
