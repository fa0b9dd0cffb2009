"""A published key set, as text: which of its keys may tell the app's users. No I/O.

https://www.rfc-editor.org/rfc/rfc7517 (JSON Web Key).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import jwt

from amo_callback.identity.signatures import Key
from amo_callback.identity.users import json_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIN_RSA_BITS = 2048
MAX_KEYS = 100
"""Of a set: each token may have to be tried with all that have its name."""
_MAX_CONTAINERS = 20 * MAX_KEYS
"""Objects and lists of a set, however deep: they are what takes long to parse."""
_NUMBER = re.compile(r"[A-Za-z0-9_-]{1,2048}")
"""A number in base64url; one much longer than any real key's would take our time at every token."""


def read_key_set(content: bytes) -> Sequence[Key]:
    """Return the keys of a set that may be used; raises `ValueError` where there is none, or too much."""
    if content.count(b"{") + content.count(b"[") > _MAX_CONTAINERS:
        raise ValueError("has too much in it")
    listed = json_object(content).get("keys")
    if isinstance(listed, list) and len(listed) > MAX_KEYS:
        raise ValueError("has too many keys")
    keys = [key for key in map(_key, listed if isinstance(listed, list) else []) if key is not None]
    if not keys:
        raise ValueError("has no key that may be used")
    return keys


def _key(jwk: object) -> Key | None:
    """Return a public signature key of a kind that is used here, and nothing else."""
    if not isinstance(jwk, dict) or "d" in jwk:  # a private key that is published has been everybody's
        return None
    try:
        if jwk.get("kty") == "RSA":
            key = _rsa_key(jwk)
        elif jwk.get("kty") == "EC" and jwk.get("crv") == "P-256":
            key = _ec_key(jwk)
        else:
            return None
    except (jwt.PyJWTError, ValueError):
        return None
    return key if _is_meant_for(key, jwk) else None


def _rsa_key(jwk: Mapping[str, object]) -> Key:
    public = jwt.PyJWK({"kty": "RSA", **_numbers(jwk, "n", "e")}, algorithm="RS256").key
    if public.key_size < MIN_RSA_BITS:
        raise ValueError("is too short")
    return Key(algorithm="RS256", material=public, kid=_kid(jwk))


def _ec_key(jwk: Mapping[str, object]) -> Key:
    public = jwt.PyJWK({"kty": "EC", "crv": "P-256", **_numbers(jwk, "x", "y")}, algorithm="ES256").key
    return Key(algorithm="ES256", material=public, kid=_kid(jwk))


def _is_meant_for(key: Key, jwk: Mapping[str, object]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and jwk.get("alg", key.algorithm) == key.algorithm
        and isinstance(operations, list)
        and "verify" in operations
    )


def _numbers(jwk: Mapping[str, object], *names: str) -> dict[str, str]:
    """Return those numbers that are some; without one PyJWT makes no key."""
    return {name: value for name in names if isinstance(value := jwk.get(name), str) and _NUMBER.fullmatch(value)}


def _kid(jwk: Mapping[str, object]) -> str | None:
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("has a name that is no text")
    return kid
