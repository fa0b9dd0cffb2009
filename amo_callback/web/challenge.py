"""What `WWW-Authenticate` says to a caller whose bearer token is missing or refused (RFC 6750, section 3)."""

from __future__ import annotations

_REALM = 'Bearer realm="amo-callback"'

MISSING = _REALM
"""No bearer token was presented: no error is named."""
INVALID = f'{_REALM}, error="invalid_token"'


def insufficient(scope: str) -> str:
    """Return the header for a token that is known and lacks this scope."""
    return f'{_REALM}, error="insufficient_scope", scope="{scope}"'
