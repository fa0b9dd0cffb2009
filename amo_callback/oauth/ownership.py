"""The rules by which an app user becomes an owner of a connection.

Anyone can be tricked into following a link or opening a deep link. Therefore, neither a link nor a code makes a user an
owner. Ownership requires the user's JWT and a proof that the flow began in that user's own app, unless a backend
asserts the user:

| flow started by | proof when the app presents the code | JWT | new owner |
| --- | --- | --- | --- |
| a user, with a challenge | the matching verifier | that user's | that user, as another owner |
| | | another user's | none |
| a backend, for a user | the backend asserts the user | not needed | that user, when AMO has accepted the code |
| a backend, for a user, with a challenge | the matching verifier | that user's or none | that user, as another owner |
| | | another user's | none |
| anyone who opened `/connect` with a challenge | the matching verifier | any user's | that user, if there is no owner |
| the app, with its own state (mode `app`) | the state names the user | that user's | that user, if there is no owner |
| | the state names another user, or none | any user's | none |
| a user, a plain link or AMO, without a challenge; the state is issued or missing | none | any user's | none |

A wrong, missing or unexpected verifier raises `PkceMismatch`, and no result is returned. Anyone who knows a user's id
can make a state that names that user. The app must therefore compare the returned state with its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from amo_callback.errors import PkceMismatch

if TYPE_CHECKING:
    from amo_callback.grant import AuthorizationRequest

CHALLENGE = "^[A-Za-z0-9_-]{43}$"
"""An S256 challenge: 32 bytes in URL-safe base64."""
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def check_verifier(request: AuthorizationRequest | None, verifier: str | None) -> None:
    """Raise `PkceMismatch` unless the verifier matches the challenge of the request, or both are missing.

    A verifier without a challenge does not match, because an attacker may have removed the challenge (RFC 9700, 4.8.2).
    """
    challenge = request.challenge if request is not None else None
    if challenge is None and verifier is None:
        return
    if challenge is None or verifier is None or not _VERIFIER.fullmatch(verifier):
        raise PkceMismatch
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    if not hmac.compare_digest(digest, challenge.encode()):
        raise PkceMismatch


class Binding(Enum):
    """Whether a user becomes an owner of a connection."""

    OWNER = "owner"
    """The user becomes an owner in addition to any other owners."""
    FIRST_OWNER = "first owner"
    """The user becomes an owner only if there is no owner yet."""
    NONE = "none"


def binding_of(
    request: AuthorizationRequest | None, *, user: str, state: bytes | None, takes_app_states: bool
) -> Binding:
    """Return whether the user of a JWT becomes an owner through a grant; the caller must have checked the verifier."""
    if request is not None and request.user not in {None, user}:
        return Binding.NONE
    if request is not None and request.challenge is not None:
        return Binding.FIRST_OWNER if request.user is None else Binding.OWNER
    return Binding.FIRST_OWNER if takes_app_states and _user_named_in(state) == user else Binding.NONE


def _user_named_in(state: bytes | None) -> str | None:
    """Return the `userId` in a state that is a base64-encoded JSON object, as the existing app makes it."""
    try:
        decoded = base64.b64decode(_padded(state or b""), altchars=b"-_", validate=True)
        content = json.loads(decoded)
    except (ValueError, RecursionError):
        return None
    user = content.get("userId") if isinstance(content, dict) else None
    return str(user) if type(user) in {str, int} else None


def _padded(state: bytes) -> bytes:
    """Convert base64 of either alphabet to padded URL-safe base64.

    The state may have been percent-encoded once too often or not at all; in the latter case, a `+` arrives as a space.
    """
    plain = unquote_to_bytes(state).rstrip(b"=").replace(b" ", b"-").replace(b"+", b"-").replace(b"/", b"_")
    return plain + b"=" * (-len(plain) % 4)
