"""Builders of valid and forged JWTs and their keys."""

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from amo_callback.identity.jwt import JwtRules

SECRET = "the-app's-jwt-secret-0123456789-0123456789"
AUDIENCE = "foryoure-api"
RULES = JwtRules(audience=AUDIENCE)
NOW = int(time.time())
"""The time at which this module was imported; verifiers use the machine's current time."""


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a distinct key for each name."""
    assert name
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """Return a distinct key for each name."""
    assert name
    return ec.generate_private_key(curve())


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    """Return a key as its issuer publishes it."""
    if isinstance(key, rsa.RSAPrivateKey):
        return {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "key_ops": ["verify"], **more}
    return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), **more}


def claims(*, without: str = "", **changes: Any) -> dict[str, Any]:
    """Return a valid token's claims with `changes` and without the claim named by `without`."""
    content = {"sub": "42", "aud": AUDIENCE, "exp": NOW + 86_400, **changes}
    return {name: value for name, value in content.items() if name != without}


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unsigned(content: dict[str, Any] | bytes, **header: Any) -> str:
    """Return a token's header and payload, without a signature."""
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"{b64(json.dumps(header).encode())}.{b64(payload)}"


def signed(
    content: dict[str, Any] | bytes | None = None, *, key: Any = SECRET, alg: str = "HS256", **header: Any
) -> str:
    """Return a token signed with any key, including a public one as an attacker would use."""
    text = unsigned(claims() if content is None else content, alg=alg, **header)
    material = key.encode() if isinstance(key, str) else key
    return f"{text}.{b64(jwt.get_algorithm_by_name(alg).sign(text.encode(), material))}"
