"""The claims of an access token: unverified hints from a party that we called over TLS.

AMO publishes no key to verify it with. The claims are not documented either: what is missing or odd is left out.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeGuard

from amo_callback.hosts import check_host
from amo_callback.model import Account, TokenClaims

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_LIFE = timedelta(days=3650)
UNKNOWN_LIFE = timedelta(minutes=15)
"""The assumed lifetime of an access token, where neither the response nor the token names one."""


def read_claims(access_token: str) -> dict[str, object]:
    """Return an access token's claims; none where it is no JWT."""
    parts = access_token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except ValueError:
        return {}
    return json_object(payload) or {}


def account_of(claims: dict[str, object], *, allowed: Sequence[str] = ()) -> Account:
    """Return the account of a token; its `api_domain` only where our secrets may go there."""
    api_domain = claims.get("api_domain")
    issued = claims.get("iat")
    host = api_domain.encode(errors="replace") if isinstance(api_domain, str) else b""
    return Account(
        account_id=_identifier(claims.get("account_id")),
        user_id=_identifier(claims.get("sub")),
        api_domain=check_host(host, allowed=allowed),
        token_iat=issued if type(issued) is int and 0 <= issued < 2**53 else None,
    )


def told_by(access_token: str, *, allowed: Sequence[str] = ()) -> TokenClaims:
    """Return the claims that we use."""
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


def life_of(expires_in: object, claims: dict[str, object]) -> timedelta:
    """Return the lifetime of an access token.

    A pair has been paid for with the old one: it is kept, whatever else the answer lacks.
    """
    issued, expires = claims.get("iat"), claims.get("exp")
    seconds = expires_in
    if not _is_life(seconds) and type(issued) is int and type(expires) is int:
        seconds = expires - issued
    return timedelta(seconds=seconds) if _is_life(seconds) else UNKNOWN_LIFE


def _is_life(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= _MAX_LIFE.total_seconds()


def json_object(body: bytes) -> dict[str, object] | None:
    """Return a JSON object, or `None` for whatever else the bytes are."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
