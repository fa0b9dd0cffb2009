"""Who has signed a JWT: what is left to PyJWT, which is loaded only where there are JWTs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import jwt
from jwt.algorithms import HMACAlgorithm

from amo_callback.errors import Unauthorized
from amo_callback.identity.users import claims_in, read_token, user_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jwt.algorithms import AllowedPublicKeys

    from amo_callback.clock import Clock
    from amo_callback.identity.users import Token, UserRules

MIN_SECRET = 32
"""Bytes of an HS256 secret, as many as its hash has: https://www.rfc-editor.org/rfc/rfc7518#section-3.2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key that verifies, with the one algorithm that it is used with: no token has a say in that."""

    algorithm: Literal["HS256", "RS256", "ES256"]
    material: AllowedPublicKeys | bytes = field(repr=False)
    kid: str | None = None


class SharedSecret:
    """Verify what the app's backend signs with a secret that we have, too (HS256)."""

    def __init__(self, secret: str, *, rules: UserRules, clock: Clock) -> None:
        self._key = Key(algorithm="HS256", material=read_secret(secret))
        self._rules = rules
        self._clock = clock

    async def user_of(self, token: str) -> str:
        """Return the id of the user whose JWT this is; raises `Unauthorized`."""
        claims = claims_signed_by(self._key, read_token(token))
        if claims is None:
            raise Unauthorized("signature")
        return user_in(claims, rules=self._rules, now=self._clock.now())


def read_secret(text: str) -> bytes:
    """Return the secret's bytes; raises `ValueError` for one that is short, or that everybody has."""
    secret = text.encode()
    if len(secret) < MIN_SECRET:
        raise ValueError(f"must have {MIN_SECRET} bytes or more")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ValueError("is a key of another kind (PEM, SSH, JWK): HS256 takes a secret of two parties") from None


def claims_signed_by(key: Key, token: Token) -> dict[str, object] | None:
    """Return the claims where this key signed them; raises `Unauthorized` where it signed something else."""
    try:
        jwt.PyJWS().decode_complete(token.text, key.material, algorithms=[key.algorithm])
    except (jwt.PyJWTError, ValueError):
        return None
    return claims_in(token)


def claims_signed_by_one(keys: Sequence[Key], token: Token) -> dict[str, object] | None:
    """Return the claims where the key that the token means signed them; `None` where that is not among these.

    Raises `Unauthorized` where it is, and did not.
    """
    if token.kid is None:
        return claims_signed_by(keys[0], token) if len(keys) == 1 else None
    meant = [key for key in keys if key.kid == token.kid]
    for key in meant:
        if (claims := claims_signed_by(key, token)) is not None:
            return claims
    if meant:
        raise Unauthorized("signature")
    return None
