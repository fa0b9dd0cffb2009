"""Who is asking: the operator's backends by their API keys, the app's users by the app's JWTs."""

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

__all__ = ["DEFAULT_SCOPES", "MIN_KEY_LENGTH", "ApiKey", "ApiKeys", "Scope", "key_with", "read_api_keys"]
