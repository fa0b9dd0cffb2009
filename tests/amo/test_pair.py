"""Reading the pair of an answer with bounded work, and the claims of an access token."""

import base64
import json
from datetime import UTC, datetime

import pytest

from amo_callback.amo.pair import account_of, find_pair, read_claims, token_claims
from amo_callback.model import Account

PAIR = {"access_token": "access", "refresh_token": "next", "expires_in": 86400}


def _found(body: bytes) -> bool:
    return find_pair([body], presented="spent") is not None


def test_find_pair_among_other_text_and_objects() -> None:
    """A pair is found with other text before, after and around it."""
    pair = json.dumps(PAIR).encode()
    assert _found(pair)
    assert _found(b"<p>{ a brace</p>" + pair + b"<p>{}</p>")
    assert _found(b"[" + b"{}," * 9000 + pair + b",{}" * 9000 + b"]")


def test_find_pair_in_text_with_many_objects_finds_none() -> None:
    """A text with very many objects is not parsed, because that would block the process."""
    pair = json.dumps(PAIR).encode()
    assert not _found(pair + b"[" * 20_000)
    assert not _found(b"{}" * 20_000 + pair)


def test_find_pair_in_nested_text_stops_at_work_limit() -> None:
    """The search stops after it has parsed more than twice the text's length in total."""

    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b'"' + b"x" * 100_000 + b'" "refresh_token" ' + json.dumps(PAIR).encode()

    assert _found(nested(1))
    assert not _found(nested(16))


def _token(claims: object) -> str:
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode() + ".s"


def test_account_of_reads_claims() -> None:
    """Account, user, API host and time of issue are read from AMO's claims."""
    claims = {"account_id": 7, "sub": "12", "api_domain": "api-b.amocrm.ru", "iat": 5}
    known = Account(account_id="7", user_id="12", api_domain="api-b.amocrm.ru", token_iat=5)
    assert account_of(read_claims(_token(claims))) == known


@pytest.mark.parametrize(
    "token", ["", "opaque", "a.b", "a.b.c.d", "a.!!!.c", "a.A.c", "a.AAAA.c", _token([1]), _token("x")]
)
def test_account_of_token_without_claims_is_empty(token: str) -> None:
    """A token that is no JWT is accepted, but contains no account."""
    assert account_of(read_claims(token)) == Account()


@pytest.mark.parametrize(
    "claims",
    [
        {"api_domain": "evil.com"},
        {"api_domain": "amocrm.ru@evil.com"},
        {"api_domain": 5},
        {"api_domain": "\ud800.amocrm.ru", "account_id": "\ud800", "sub": "\ud800"},
        {"account_id": True, "sub": 1.5},
        {"account_id": "../../etc", "sub": {"a": 1}},
        {"account_id": "x" * 65, "iat": True},
        {"iat": -1},
        {"iat": 10**20},
    ],
)
def test_account_of_ignores_invalid_claims(claims: object) -> None:
    """A claim of another type, or with a foreign host, is ignored."""
    assert account_of(read_claims(_token(claims))) == Account()


def test_token_claims_ignores_invalid_claims() -> None:
    """Account, client and expiry are read from the claims, and invalid ones are ignored, because they are hints."""
    result = token_claims(_token({"account_id": 7, "sub": "9", "aud": "c619", "exp": 1_900_000_000}))
    assert (result.account.account_id, result.account.user_id, result.client_id) == ("7", "9", "c619")
    assert result.expires_at == datetime(2030, 3, 17, 17, 46, 40, tzinfo=UTC)
    for odd in ({"exp": True}, {"exp": -1}, {"exp": 2**40}, {"exp": "soon"}, {"aud": ["c619"]}, {}):
        result = token_claims(_token(odd))
        assert (result.client_id, result.expires_at) == (None, None)
    assert token_claims("opaque").expires_at is None
