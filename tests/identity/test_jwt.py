"""JWTs of the app's users: which are rejected, and the user of a valid one."""

import json
import time
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from amo_callback.config.settings import App
from amo_callback.errors import JwksUnavailable, Unauthorized
from amo_callback.identity.jwks import MAX_KEYS, JwksVerifier, read_jwks
from amo_callback.identity.jwt import Hs256Verifier, JwtRules, Key, verify_with_any
from amo_callback.web.composition import open_jwt_verifier
from tests.fakes import FakeClock, RecordingObserver
from tests.identity.jwts import AUDIENCE, NOW, RULES, SECRET, b64, claims, ec_key, jwk, rsa_key, signed, unsigned

PEM = rsa_key("issuer").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def _user(token: str, *, rules: JwtRules = RULES) -> str:
    return await Hs256Verifier(SECRET, rules=rules).verify(token)


async def _refused(token: str, **options: Any) -> str:
    """Return the reason; the error shows neither the token nor the library's message."""
    with pytest.raises(Unauthorized) as raised:
        await _user(token, **options)
    error = raised.value
    assert str(error) == Unauthorized.__doc__
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error.detail


# --- forged --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (unsigned(claims(), alg="none") + ".", "form"),
        (unsigned(claims(), alg="none") + ".AAAA", "signature"),
        (unsigned(claims(), alg="None") + "." + signed().rpartition(".")[2], "signature"),
        (signed(alg="HS384"), "signature"),
        (signed(alg="HS512"), "signature"),
        (signed(alg="RS256", key=rsa_key("issuer")), "signature"),
        (signed(key="another-secret-of-32-bytes-or-more!!"), "signature"),
        (signed(key=b""), "signature"),
        (unsigned(claims()) + "." + signed().rpartition(".")[2], "signature"),
        (unsigned(claims(), alg=["HS256"]) + "." + signed().rpartition(".")[2], "signature"),
        (unsigned(claims(sub="1"), alg="HS256") + "." + signed().rpartition(".")[2], "signature"),
        (signed() + "A", "signature"),
    ],
    ids=count(),  # tokens differ between processes, so they are no test ids
)
async def test_hs256_other_algorithm_or_signature_is_rejected(token: str, why: str) -> None:
    """A token is rejected unless it is signed with HS256 and the secret, whatever its `alg` states."""
    assert await _refused(token) == why


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
        {"b64": True},
        {"zip": "DEF"},
        {"enc": "A128GCM"},
        {"kid": 1},
        {"kid": ["a"]},
    ],
)
async def test_hs256_header_that_changes_meaning_is_rejected(header: dict[str, Any]) -> None:
    """A token is rejected if its header has a parameter that changes its meaning and is not supported."""
    assert await _refused(signed(**header)) == "form"


@pytest.mark.parametrize(
    "token",
    [
        "",
        " ",
        ".",
        "..",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "null",
        "\udcff",
        "ключ.ключ.ключ",
        signed() + "\n",
        " " + signed(),
        "Bearer " + signed(),
        signed() + "=",
        signed() + ".",
        f"{b64(b'[]')}.{b64(b'{}')}.AAAA",
        f"{b64(b'[' * 5000)}.{b64(b'{}')}.AAAA",
        f"{b64(b'{')}.{b64(b'{}')}.AAAA",
        f"{b64(chr(0x7B).encode('utf-16'))}.{b64(b'{}')}.AAAA",
        signed(b"[]"),
        signed(b"42"),
        signed(b"\xff"),
        signed(b"[" * 4000),
        signed(signed().encode(), cty="JWT"),
        signed(b'{"sub":"42","exp":' + b"9" * 5000 + b"}"),
    ],
)
async def test_hs256_malformed_token_is_rejected(token: str) -> None:
    """Tokens that are malformed, encrypted, nested or without a JSON object are rejected."""
    assert await _refused(token) == "form"


async def test_hs256_token_above_8_kib_is_rejected() -> None:
    """The same token is accepted if it is one byte shorter."""
    tokens = (signed(claims(x="x" * n), kid=kid) for n in range(5900, 6100) for kid in ("", "k", "kk"))
    by_length = {len(token): token for token in tokens}
    assert await _user(by_length[8192]) == "42"
    assert await _refused(by_length[8193]) == "form"


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (claims(exp=NOW - 60), "expired"),
        (claims(without="exp"), "expired"),
        (claims(exp=None), "expired"),
        (claims(exp=True), "expired"),
        (claims(exp=-1), "expired"),
        (claims(exp=str(NOW + 86_400)), "time"),
        (claims(exp=(NOW + 86_400) * 1000), "time"),
        (claims(exp=10**4000), "time"),
        (claims(exp=253_402_300_800), "time"),
        (claims(exp=[NOW + 86_400]), "form"),
        (claims(nbf=NOW + 86_400), "time"),
        (claims(nbf=None), "form"),
        (claims(iat=NOW + 86_400), "time"),
        (claims(iat="soon"), "time"),
    ],
)
async def test_hs256_token_outside_its_time_is_rejected(payload: dict[str, Any], why: str) -> None:
    """A token is rejected if it has expired, is not valid yet, is from the future, or has malformed times."""
    assert await _refused(signed(payload)) == why


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1E+999", "NaN", "Infinity"])
async def test_hs256_infinite_or_undefined_time_is_rejected(number: str) -> None:
    """JSON can contain a number that becomes infinity: such a token would be valid forever."""
    payload = json.dumps(claims(exp=0)).replace('"exp": 0', f'"exp": {number}')
    assert await _refused(signed(payload.encode())) == "form"


@pytest.mark.parametrize(
    "times", [{"exp": -50}, {"exp": -49.5}, {"nbf": 50, "iat": 50.0}, {"iat": -(10**9), "nbf": -(10**9)}]
)
async def test_hs256_clock_difference_up_to_a_minute_is_accepted(times: dict[str, float]) -> None:
    """The issuer's clock may differ from this machine's."""
    assert await _user(signed({**claims(), **{name: time.time() + offset for name, offset in times.items()}})) == "42"


# --- audience, issuer and user --------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        claims(aud="another"),
        claims(aud=AUDIENCE + "x"),
        claims(aud=AUDIENCE.upper()),
        claims(aud=["another"]),
        claims(aud=[]),
        claims(aud=[[AUDIENCE]]),
        claims(aud={AUDIENCE: 1}),
        claims(aud=None),
        claims(without="aud"),
    ],
)
async def test_hs256_token_for_other_audience_is_rejected(payload: dict[str, Any]) -> None:
    """A token that the issuer made for another service is not accepted."""
    assert await _refused(signed(payload)) == "audience"


@pytest.mark.parametrize("payload", [claims(aud=["another", AUDIENCE]), claims(exp=253_402_300_799)])
async def test_hs256_audience_list_and_expiry_in_year_9999_are_accepted(payload: dict[str, Any]) -> None:
    """`aud` may be a list, and `exp` the last second of 9999: later numbers are milliseconds."""
    assert await _user(signed(payload)) == "42"


async def test_hs256_issuer_other_than_configured_is_rejected() -> None:
    """Without a configured issuer, `iss` is not checked."""
    rules = JwtRules(audience=AUDIENCE, issuer="https://id.example")
    assert await _user(signed(claims(iss="https://id.example")), rules=rules) == "42"
    assert await _user(signed(claims(iss="https://other.example"))) == "42"
    for payload in (claims(iss="https://id.example/"), claims(iss=["https://id.example"]), claims()):
        assert await _refused(signed(payload), rules=rules) == "issuer"


@pytest.mark.parametrize(
    "sub",
    [
        None, "", "x" * 256, "a\nb", "a\x00b", "\ud800", "a\u200bb", True, False, 1.0, ["42"], {"id": "42"},
        10**255,
    ],
)  # fmt: skip
async def test_hs256_user_without_text_or_whole_number_is_rejected(sub: object) -> None:
    """A user id is printable text or a whole number."""
    assert await _refused(signed(claims(sub=sub))) == "user"
    assert await _refused(signed(claims(without="sub"))) == "user"


@pytest.mark.parametrize(
    ("sub", "user"), [("x" * 255, "x" * 255), ("Иван 7", "Иван 7"), (42, "42"), (0, "0"), (-7, "-7")]
)
async def test_hs256_user_is_returned_as_text(sub: object, user: str) -> None:
    """A user id that is text or a whole number is returned as text."""
    assert await _user(signed(claims(sub=sub))) == user


async def test_hs256_user_claim_replaces_sub() -> None:
    """With another user claim, `sub` is ignored."""
    name = "https://id.example/user"
    rules = JwtRules(audience=AUDIENCE, user_claim=name)
    assert await _user(signed({**claims(), name: 7}), rules=rules) == "7"
    assert await _refused(signed(claims()), rules=rules) == "user"


# --- keys ----------------------------------------------------------------------------------------


def test_hs256_short_secret_or_public_key_raises() -> None:
    """Anyone could sign tokens with a public key, and a short secret can be guessed."""
    for secret in ("", "x" * 31, PEM.decode(), json.dumps(jwk(rsa_key("issuer"))), "ssh-rsa " + "A" * 300):
        with pytest.raises(ValueError, match=r"must have at least 32 bytes|must be a shared secret") as raised:
            Hs256Verifier(secret, rules=RULES)
        assert not secret or secret not in str(raised.value)
    Hs256Verifier("ё" * 16, rules=RULES)


def _set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def _long_number(size: int) -> str:
    """Return the issuer's modulus with zeros before it."""
    return b64(rsa_key("issuer").public_key().public_numbers().n.to_bytes(size))


@pytest.mark.parametrize(
    ("key", "alg", "more"),
    [
        (rsa_key("issuer"), "RS256", {}),
        (rsa_key("long", 3072), "RS256", {}),
        (rsa_key("issuer"), "RS256", {"n": _long_number(1536)}),
        (ec_key("issuer"), "ES256", {}),
    ],
    ids=["2048 bits, the least", "more bits", "a number of 2048 characters, the most", "P-256"],
)
def test_verify_with_any_key_found_by_kid_verifies(key: Any, alg: str, more: dict[str, str]) -> None:
    """The key of RS256 or ES256 is found by its `kid`."""
    keys = read_jwks(_set(jwk(key, kid="a", **more), jwk(ec_key("another"), kid="b")))
    assert verify_with_any(keys, signed(key=key, alg=alg, kid="a"), rules=RULES) == "42"


@pytest.mark.parametrize(
    "bad",
    [
        {"kty": "oct", "k": b64(SECRET.encode()), "kid": "a"},
        jwk(rsa_key("weak", 2047), kid="a"),
        jwk(rsa_key("issuer"), kid="a", use="enc"),
        jwk(rsa_key("issuer"), kid="a", use=None),
        jwk(rsa_key("issuer"), kid="a", alg="RS384"),
        jwk(rsa_key("issuer"), kid="a", alg="PS256"),
        jwk(rsa_key("issuer"), kid="a", alg="HS256"),
        jwk(rsa_key("issuer"), kid="a", alg="ES256"),
        jwk(rsa_key("issuer"), kid="a", key_ops=["encrypt"]),
        jwk(rsa_key("issuer"), kid="a", key_ops="verify"),
        jwk(rsa_key("issuer"), kid="a", d=b64(b"private")),
        jwk(rsa_key("issuer"), kid=7),
        jwk(rsa_key("issuer"), kid="a", n=7),
        jwk(rsa_key("issuer"), kid="a", n=b64(b"\xff" * 2000)),
        jwk(rsa_key("issuer"), kid="a", e="not base64url!"),
        jwk(rsa_key("issuer"), kid="a", e=b64(b"\x02")),
        jwk(rsa_key("issuer"), kid="a", n=_long_number(1537)),
        {"kty": "RSA", "kid": "a"},
        {"kty": "EC", "crv": "P-256", "kid": "a"},
        jwk(ec_key("issuer"), kid="a", alg="RS256"),
        jwk(ec_key("issuer"), kid="a", x=b64(b"x" * 32)),
        jwk(ec_key("issuer"), kid="a", kty="OKP"),
        jwk(ec_key("issuer"), kid="a", crv="P-384"),
        jwk(ec_key("issuer", ec.SECP384R1), kid="a"),
        jwk(ec_key("issuer", ec.SECP256K1), kid="a"),
        {"kty": "OKP", "crv": "Ed25519", "x": b64(b"x" * 32), "kid": "a"},
        {"kid": "a"},
        "a",
        None,
    ],
)
def test_read_jwks_skips_unusable_keys(bad: object) -> None:
    """Symmetric, short, private and broken keys, and keys for another curve or use, are skipped."""
    good = jwk(ec_key("good"), kid="good", use="sig", alg="ES256")
    assert [(key.kid, key.algorithm) for key in read_jwks(_set(bad, good))] == [("good", "ES256")]
    with pytest.raises(ValueError, match="has no usable key"):
        read_jwks(_set(bad))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"keys": [jwk(ec_key("issuer"))] * (MAX_KEYS + 1)}).encode(),
        b'{"keys":[' + b",".join([b"[" * 400 + b"]" * 400] * 6) + b"]}",
        b'{"keys":[' + b"{}," * 2000 + json.dumps(jwk(ec_key("issuer"))).encode() + b"]}",
    ],
    ids=["keys", "lists", "objects"],
)
def test_read_jwks_oversized_set_raises(content: bytes) -> None:
    """A set with too many keys or values is refused, because reading or trying them would block other requests."""
    with pytest.raises(ValueError, match="contains too m"):
        read_jwks(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "has no usable key"),
        (b"{}", "has no usable key"),
        (b'{"keys":{}}', "has no usable key"),
        (b"<html>", "Expecting value"),
        (b"\xff", "can't decode"),
        (b'{"keys":[]}', "has no usable key"),
        (b'{"keys":' + b"[" * 1900, "is nested too deeply"),
    ],
)
def test_read_jwks_invalid_content_raises(content: bytes, why: str) -> None:
    """HTML, JSON without usable keys and deeply nested JSON are refused."""
    with pytest.raises(ValueError, match=why):
        read_jwks(content)


KEYS = read_jwks(_set(jwk(rsa_key("issuer"), kid="rsa"), jwk(ec_key("issuer"), kid="ec")))


@pytest.mark.parametrize(
    "token",
    [
        signed(key=PEM, kid="rsa"),
        signed(key=PEM.strip(), kid="rsa"),
        signed(key=json.dumps(jwk(rsa_key("issuer"), kid="rsa")), kid="rsa"),
        signed(key=rsa_key("issuer"), alg="RS384", kid="rsa"),
        signed(key=rsa_key("issuer"), alg="PS256", kid="rsa"),
        signed(key=ec_key("issuer"), alg="ES256", kid="rsa"),
        signed(key=rsa_key("issuer"), alg="RS256", kid="ec"),
        signed(key=rsa_key("attacker"), alg="RS256", kid="rsa"),
        signed(key=rsa_key("attacker"), alg="RS256", kid="rsa", jwk=jwk(rsa_key("attacker"), kid="rsa")),
        unsigned(claims(), alg="none", kid="rsa") + ".AAAA",
        unsigned(claims(), alg="ES256", kid="ec") + "." + b64(bytes(64)),
    ],
    ids=count(),
)
def test_verify_with_any_uses_algorithm_of_key(token: str) -> None:
    """A public key is no secret of HS256, and a `kid` of another key finds a key that did not sign."""
    with pytest.raises(Unauthorized) as raised:
        verify_with_any(KEYS, token, rules=RULES)
    assert raised.value.detail == "signature"


def test_verify_with_any_token_without_kid_uses_only_key() -> None:
    """With several keys and no `kid` none is tried; two keys with the same `kid` are both tried."""
    token = signed(key=rsa_key("issuer"), alg="RS256")
    assert verify_with_any(KEYS[:1], token, rules=RULES) == "42"
    assert verify_with_any(KEYS, token, rules=RULES) is None
    assert verify_with_any([], token, rules=RULES) is None
    twins = read_jwks(_set(jwk(ec_key("issuer"), kid="a"), jwk(rsa_key("issuer"), kid="a")))
    assert verify_with_any(twins, signed(key=rsa_key("issuer"), alg="RS256", kid="a"), rules=RULES) == "42"


def test_jwt_keys_repr_shows_no_secret() -> None:
    """A repr may be logged by accident."""
    assert SECRET not in repr(Key(algorithm="HS256", material=SECRET.encode()))
    assert SECRET not in repr(App(jwt_secret=SecretStr(SECRET), jwt_audience=AUDIENCE))


# --- configuration -------------------------------------------------------------------------------


async def test_open_jwt_verifier_follows_settings() -> None:
    """The settings select a secret, a key set or no verifier."""
    clock, witness = FakeClock(), RecordingObserver()
    async with open_jwt_verifier(App(), clock=clock, observer=witness) as users:
        assert users is None
    app = App(jwt_secret=SecretStr(SECRET), jwt_audience=AUDIENCE, jwt_issuer="me", jwt_user_claim="id")
    async with open_jwt_verifier(app, clock=clock, observer=witness) as users:
        assert users is not None
        assert await users.verify(signed(claims(iss="me", id=7))) == "7"
        with pytest.raises(Unauthorized):
            await users.verify(signed(claims(id=7)))
    app = App(jwks_url="http://127.0.0.1:1/keys", jwt_audience=AUDIENCE)
    async with open_jwt_verifier(app, clock=clock, observer=witness) as users:
        assert isinstance(users, JwksVerifier)
        with pytest.raises(JwksUnavailable):
            await users.verify(signed(key=rsa_key("issuer"), alg="RS256"))
