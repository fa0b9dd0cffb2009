"""Who becomes an owner of what a grant has brought.

Anybody can be made to follow a link, or to open one that comes back. So neither a link nor a code ties an account to a
user: a JWT and a proof that the grant began in that user's own app do. These are all ways:

| who started the grant | proof, as the app presents the code | whose JWT | owner from then on |
| --- | --- | --- | --- |
| a user, with a challenge | the verifier that fits | that user's | that user, beside others |
| | | another user's | none |
| a backend, for a user | the backend vouches for the user | none is needed | that user, once AMO has accepted |
| a backend, for a user, with a challenge | the verifier that fits | that user's, or none | that user, beside others |
| | | another user's | none |
| anybody who opened `/connect` with a challenge | the verifier that fits | any user's | that user, if it has no owner |
| the app, with its own state (mode `app`) | the state names the user | that user's | that user, if it has no owner |
| | the state names another user, or none | any user's | none |
| a user, a plain link, AMO itself: without a challenge, with an issued state or none | none | any user's | none |

A verifier that does not fit, is missing or was not asked for is `PkceMismatch`: then the result is not given, either.
Anybody who knows a user's id can make a state that names it: there the app has to compare its own state.
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
"""A challenge of the method S256: 32 bytes, URL-safe base64."""
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


def check_verifier(request: AuthorizationRequest | None, verifier: str | None) -> None:
    """Raise `PkceMismatch` where the grant began with a challenge that the verifier does not fit.

    A verifier without a challenge does not fit either: an attacker may have removed the challenge on its way
    (RFC 9700, 4.8.2).
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
    """Whether a user becomes an owner."""

    OWNER = "owner"
    """Beside its other owners."""
    FIRST_OWNER = "first owner"
    """Where it has no owner."""
    NONE = "none"


def binding_of(
    request: AuthorizationRequest | None, *, user: str, state: bytes | None, takes_app_states: bool
) -> Binding:
    """Return what a grant, its verifier checked, makes of the user whose JWT comes with it."""
    if request is not None and request.user not in {None, user}:
        return Binding.NONE
    if request is not None and request.challenge is not None:
        return Binding.FIRST_OWNER if request.user is None else Binding.OWNER
    return Binding.FIRST_OWNER if takes_app_states and _user_named_in(state) == user else Binding.NONE


def _user_named_in(state: bytes | None) -> str | None:
    """Return the `userId` of a state that is base64 of a JSON object, as the existing app makes it."""
    try:
        decoded = base64.b64decode(_padded(state or b""), altchars=b"-_", validate=True)
        content = json.loads(decoded)
    except (ValueError, RecursionError):
        return None
    user = content.get("userId") if isinstance(content, dict) else None
    return str(user) if type(user) in {str, int} else None


def _padded(state: bytes) -> bytes:
    """Return base64 of either alphabet in the URL-safe one, padded.

    On its way it may have been escaped once more than it was read, or not at all: a space was a `+` then.
    """
    plain = unquote_to_bytes(state).rstrip(b"=").replace(b" ", b"-").replace(b"+", b"-").replace(b"/", b"_")
    return plain + b"=" * (-len(plain) % 4)
