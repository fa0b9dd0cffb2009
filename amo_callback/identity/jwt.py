"""Verification of the app's JWTs according to JWT Best Current Practices (https://www.rfc-editor.org/rfc/rfc8725)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import jwt
from jwt.algorithms import HMACAlgorithm

from amo_callback.errors import Unauthorized
from amo_callback.identity import MAX_USER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jwt.algorithms import AllowedPublicKeys

MAX_TOKEN = 8 * 1024
"""The maximum size of a token in bytes."""
LEEWAY = 60.0
"""The tolerated clock skew between issuer and service, in seconds."""
MIN_SECRET = 32
"""The minimum size of an HS256 secret in bytes (https://www.rfc-editor.org/rfc/rfc7518#section-3.2)."""
_LAST_SECOND = 253402300799
"""The last second of the year 9999, as a Unix time; a later `exp` is taken as milliseconds."""
_COMPACT = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){2}")
_UNSUPPORTED_HEADERS = frozenset({"b64", "crit", "enc", "zip"})
"""Unsupported header parameters, which change the meaning of a token."""
_FAILED_CHECKS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidAlgorithmError, "signature"),
    (jwt.InvalidKeyError, "signature"),
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "time"),
    (jwt.InvalidIssuedAtError, "time"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.InvalidIssuerError, "issuer"),
)


class JwtVerifier(Protocol):
    async def verify(self, token: str) -> str:
        """Verify a token and return its user id; raises `Unauthorized` and `JwksUnavailable`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JwtRules:
    """The claims that a token must contain."""

    audience: str
    issuer: str | None = None
    user_claim: str = "sub"


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key and its algorithm; the token does not determine the algorithm."""

    algorithm: Literal["HS256", "RS256", "ES256"]
    material: AllowedPublicKeys | bytes = field(repr=False)
    kid: str | None = None


class Hs256Verifier:
    """A verifier of HS256 tokens that uses a secret shared with the app's backend."""

    def __init__(self, secret: str, *, rules: JwtRules) -> None:
        self._key = Key(algorithm="HS256", material=read_secret(secret))
        self._rules = rules

    async def verify(self, token: str) -> str:
        read_key_id(token)
        return verify_with(self._key, token, rules=self._rules)


def read_secret(text: str) -> bytes:
    """Return the bytes of a shared secret; raises `ValueError` if `text` is too short or is another kind of key."""
    secret = text.encode()
    if len(secret) < MIN_SECRET:
        raise ValueError(f"must have at least {MIN_SECRET} bytes")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ValueError(
            "must be a shared secret, not a PEM, SSH or JWK key; for public keys, set app.jwks_url"
        ) from None


def read_key_id(token: str) -> str | None:
    """Return the unverified `kid` of a token, or `None`; raises `Unauthorized` if the token is not a supported JWT."""
    if len(token) > MAX_TOKEN or not _COMPACT.fullmatch(token):
        raise Unauthorized("form")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise Unauthorized("form") from None
    if header.keys() & _UNSUPPORTED_HEADERS:
        raise Unauthorized("form")
    kid = header.get("kid")
    return None if kid is None else str(kid)


def verify_with(key: Key, token: str, *, rules: JwtRules) -> str:
    """Verify a token with a key, and return its user id.

    Raises `Unauthorized` if the key did not sign the token, or if a claim is missing or wrong.
    """
    required = ["exp", "aud", *(["iss"] if rules.issuer is not None else [])]
    try:
        claims = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=LEEWAY,
            options={"require": required, "verify_sub": False, "verify_jti": False},
        )
    except jwt.MissingRequiredClaimError as error:
        raise Unauthorized({"exp": "expired", "aud": "audience"}.get(error.claim, "issuer")) from None
    except (jwt.PyJWTError, ValueError) as error:
        raise Unauthorized(next((word for kind, word in _FAILED_CHECKS if isinstance(error, kind)), "form")) from None
    if not isinstance(claims["exp"], int | float) or claims["exp"] > _LAST_SECOND:
        raise Unauthorized("time")
    return _user_id(claims, rules.user_claim)


def verify_with_any(keys: Sequence[Key], token: str, *, rules: JwtRules) -> str | None:
    """Verify a token with the keys that have its `kid`, and return its user id.

    A token without a `kid` is verified only if there is exactly one key. Returns `None` if another key may have signed
    the token: if no key has the `kid`, or if the signature of a token without a `kid` cannot be verified. Raises
    `Unauthorized` if none of the keys with the `kid` signed the token, or if a claim is missing or wrong.
    """
    kid = read_key_id(token)
    named = [key for key in keys if key.kid == kid] if kid is not None else keys if len(keys) == 1 else []
    failure: Unauthorized | None = None
    for key in named:
        try:
            return verify_with(key, token, rules=rules)
        except Unauthorized as error:
            if error.detail != "signature":
                raise
            failure = error
    if failure is not None and kid is not None:
        raise failure
    return None


def _user_id(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_USER or not text.isprintable():
        raise Unauthorized("user")
    return text
