"""Authentication: the operator's backends by API keys, the app's users by the app's JWTs."""

from __future__ import annotations

from amo_callback.identity.api_keys import (
    DEFAULT_SCOPES,
    MIN_KEY_LENGTH,
    ApiKey,
    ApiKeys,
    Scope,
    key_with,
    read_api_keys,
)

MAX_USER = 255
"""Characters of a user's id."""

__all__ = ["DEFAULT_SCOPES", "MAX_USER", "MIN_KEY_LENGTH", "ApiKey", "ApiKeys", "Scope", "key_with", "read_api_keys"]
