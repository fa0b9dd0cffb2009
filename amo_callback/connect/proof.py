"""Who may have what a grant has brought: code challenges, and the rules by which a user becomes an owner.

Anybody can be made to follow a link. So neither a link nor a code ties an account to a user: what does is the
user himself, with his JWT, where the grant began with him, and with the verifier (RFC 7636) that only the
instance of the app has that began it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from amo_callback.errors import NotTheirs, WrongVerifier

if TYPE_CHECKING:
    from amo_callback.grant import AuthorizationRequest

CHALLENGE = "^[A-Za-z0-9_-]{43}$"
"""A challenge of the method S256: 32 bytes, URL-safe base64."""
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def check_verifier(request: AuthorizationRequest | None, verifier: str | None) -> None:
    """Raise `WrongVerifier` where the grant began with a challenge that the verifier does not fit.

    A verifier without a challenge does not fit either: somebody may have taken the challenge away on its way
    (RFC 9700, 4.8.2).
    """
    challenge = request.challenge if request is not None else None
    if challenge is None and verifier is None:
        return
    if challenge is None or verifier is None or not _VERIFIER.fullmatch(verifier):
        raise WrongVerifier
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    if not hmac.compare_digest(digest, challenge.encode()):
        raise WrongVerifier


def is_proven(request: AuthorizationRequest | None, *, user: str, state: bytes | None) -> bool:
    """Tell whether a grant, its verifier checked, was proved to be this user's from its beginning to its end.

    Else he may have a connection that is nobody's, and no other. Raises `NotTheirs` where it is another user's.
    """
    if request is not None and request.user is not None:
        if request.user != user:
            raise NotTheirs
        if request.challenge is not None:
            return True
    named = _user_named_in(state)
    if named is not None and named != user:
        raise NotTheirs
    return False


def _user_named_in(state: bytes | None) -> str | None:
    """Return the `userId` of a state that is base64 of a JSON object, as the existing app makes it.

    Anybody can make one: it keeps a user out, and lets nobody in.
    """
    try:
        decoded = base64.b64decode(_padded(state or b""), altchars=b"-_", validate=True)
        content = json.loads(decoded)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "userId" not in content:
        return None
    return str(content["userId"])


def _padded(state: bytes) -> bytes:
    """Return base64 of either alphabet in the URL-safe one, padded.

    On its way it may have been escaped once more than it was read, or not at all: a space was a `+` then.
    """
    plain = unquote_to_bytes(state).rstrip(b"=").replace(b" ", b"-").replace(b"+", b"-").replace(b"/", b"_")
    return plain + b"=" * (-len(plain) % 4)
