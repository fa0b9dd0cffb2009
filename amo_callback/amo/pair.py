"""Extraction of the token pair from AMO's response, and the claims of its access token.

Losing the pair would lose the connection, so the whole response is searched for it. Claims are unverified hints that
AMO sent over TLS. AMO publishes no key and documents no claims, so missing or malformed claims are ignored.
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
"""Responses with more mentions of a refresh token are not searched."""
_BRACES = 16
"""The maximum number of opening braces that are tried before each mention."""
_CONTAINERS = 20_000
"""The maximum number of objects and lists in a response; larger responses are not searched."""
_DECODER = JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFound:
    """A token pair found in a response."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: object = field(compare=False, repr=False)
    """As received, unchecked."""


def find_pair(bodies: Sequence[bytes], *, presented: str) -> PairFound | None:
    """Return the pair in the first body with any, if it has only one; otherwise `None`.

    An object that contains the `presented` refresh token is an echo of the request, not a pair.
    """
    for body in bodies:
        text = body.decode(detect_encoding(body), errors="replace")
        pairs = {pair for found in _objects(text) if (pair := _pair(found)) and pair.refresh_token != presented}
        if pairs:
            return pairs.pop() if len(pairs) == 1 else None
    return None


def _objects(text: str) -> Iterator[object]:
    """Yield the objects around each mention of a refresh token, the innermost first.

    At most twice the text's length is parsed in total.
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
    """Return the pair in an object, with whitespace stripped from its tokens."""
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
"""The assumed lifetime of an access token if neither the response nor the token contains one."""


def read_claims(access_token: str) -> dict[str, object]:
    """Return the claims of an access token; empty if it is not a JWT."""
    parts = access_token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except ValueError:
        return {}
    return json_object(payload) or {}


def account_of(claims: dict[str, object], *, allowed: Sequence[str] = ()) -> Account:
    """Return the account in a token's claims; it has an `api_domain` only if secrets may be sent there."""
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
    """Return the relevant claims."""
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

    A pair is kept even if the response lacks everything else, because it replaces a spent one.
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
