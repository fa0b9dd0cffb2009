"""Extraction of token pairs from AMO's responses, and of claims from access tokens.

A lost pair means a lost connection, so the whole response is searched for the pair. Claims are only hints: the token
was received over TLS, but its signature cannot be verified, because AMO publishes no key. AMO does not document the
claims, so missing or malformed claims are ignored.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError, JSONDecoder, detect_encoding
from typing import TYPE_CHECKING, TypeGuard

from amo_callback.hosts import parse_account_host
from amo_callback.model import Account, TokenClaims

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_REFRESH_TOKEN = re.compile(r'"refresh_token"')
_PLACES = 8
"""The maximum number of mentions of `refresh_token` in a response; a response with more is not searched."""
_BRACES = 16
"""The maximum number of opening braces before a mention that are tried as the start of its object."""
_CONTAINERS = 20_000
"""The maximum number of objects and lists in a response; a response with more is not searched."""
_DECODER = JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFound:
    """A token pair found in a response."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: object = field(compare=False, repr=False)
    """The unchecked value from the response."""


def find_pair(bodies: Sequence[bytes], *, presented: str) -> PairFound | None:
    """Return the token pair from the first body that contains a pair.

    Returns `None` if no body contains a pair, or if the first body with a pair contains several different pairs. An
    object with the `presented` refresh token is an echo of the request, not a pair.
    """
    for body in bodies:
        text = body.decode(detect_encoding(body), errors="replace")
        pairs = {pair for found in _objects(text) if (pair := _pair(found)) and pair.refresh_token != presented}
        if pairs:
            return pairs.pop() if len(pairs) == 1 else None
    return None


def _objects(text: str) -> Iterator[object]:
    """Yield the JSON objects that begin before each mention of `refresh_token`, the nearest first.

    Parsing stops after more than twice the text's length has been parsed in total.
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
    """Return the pair in an object, with whitespace stripped from both tokens; `None` if the object has no pair."""
    if not isinstance(found, dict):
        return None
    access, refresh = (_token(found.get(name)) for name in ("access_token", "refresh_token"))
    if not access or not refresh:
        return None
    return PairFound(access_token=access, refresh_token=refresh, expires_in=found.get("expires_in"))


def _token(value: object) -> str:
    token = value.strip() if isinstance(value, str) else ""
    return token if token.isascii() and token.isprintable() else ""


# --- claims --------------------------------------------------------------------------------------

_MAX_LIFETIME = timedelta(days=3650)
UNKNOWN_LIFETIME = timedelta(minutes=15)
"""The assumed lifetime of an access token if neither the response nor the token contains a valid one."""


def read_claims(access_token: str) -> dict[str, object]:
    """Return the claims of an access token; an empty dict if the token is not a JWT."""
    parts = access_token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except ValueError:
        return {}
    return json_object(payload) or {}


def account_of(claims: dict[str, object], *, allowed: Sequence[str] = ()) -> Account:
    """Return the account in a token's claims; its `api_domain` is set only if secrets may be sent to that host."""
    api_domain = claims.get("api_domain")
    issued = claims.get("iat")
    host = api_domain.encode(errors="replace") if isinstance(api_domain, str) else b""
    return Account(
        account_id=_identifier(claims.get("account_id")),
        user_id=_identifier(claims.get("sub")),
        api_domain=parse_account_host(host, allowed=allowed),
        token_iat=issued if type(issued) is int and 0 <= issued < 2**53 else None,
    )


def token_claims(access_token: str, *, allowed: Sequence[str] = ()) -> TokenClaims:
    """Return the account, client id and expiry in the claims of an access token."""
    claims = read_claims(access_token)
    audience, expires = claims.get("aud"), claims.get("exp")
    return TokenClaims(
        account=account_of(claims, allowed=allowed),
        client_id=audience if isinstance(audience, str) else None,
        expires_at=datetime.fromtimestamp(expires, UTC) if type(expires) is int and 0 <= expires < 2**33 else None,
    )


def _identifier(value: object) -> str:
    text = str(value) if type(value) in {int, str} else ""
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) else ""


def lifetime_of(expires_in: object, claims: dict[str, object]) -> timedelta:
    """Return the lifetime of an access token.

    The lifetime is `expires_in` from the response, otherwise the time between the claims `iat` and `exp`, otherwise
    `UNKNOWN_LIFETIME`. A pair without a valid lifetime must still be stored, because it replaces a spent credential.
    """
    issued, expires = claims.get("iat"), claims.get("exp")
    seconds = expires_in
    if not _is_lifetime(seconds) and type(issued) is int and type(expires) is int:
        seconds = expires - issued
    return timedelta(seconds=seconds) if _is_lifetime(seconds) else UNKNOWN_LIFETIME


def _is_lifetime(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_LIFETIME.total_seconds()


def json_object(body: bytes) -> dict[str, object] | None:
    """Parse a JSON object; return `None` if the body is anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
