"""The pair in an answer, looked for in bounded work, and the claims of an access token."""

import base64
import json
from datetime import UTC, datetime

import pytest

from amo_callback.amo.pair import account_of, find_pair, read_claims, token_claims
from amo_callback.model import Account

PAIR = {"access_token": "access", "refresh_token": "next", "expires_in": 86400}


def _found(body: bytes) -> bool:
    return find_pair([body], presented="spent") is not None


def test_a_pair_is_found_among_other_text_and_other_objects() -> None:
    """Before it, after it and around it."""
    pair = json.dumps(PAIR).encode()
    assert _found(pair)
    assert _found(b"<p>{ a brace</p>" + pair + b"<p>{}</p>")
    assert _found(b"[" + b"{}," * 9000 + pair + b",{}" * 9000 + b"]")


def test_a_text_with_very_many_objects_or_lists_is_not_looked_through() -> None:
    """To parse it takes seconds, during which nobody else is answered: it is kept, for a person."""
    pair = json.dumps(PAIR).encode()
    assert not _found(pair + b"[" * 20_000)
    assert not _found(b"{}" * 20_000 + pair)


def test_a_text_that_takes_long_to_parse_again_and_again_is_given_up() -> None:
    """What is parsed from each brace, up to the pair, is no more in all than twice the text."""

    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b'"' + b"x" * 100_000 + b'" "refresh_token" ' + json.dumps(PAIR).encode()

    assert _found(nested(1))
    assert not _found(nested(16))


def _token(claims: object) -> str:
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode() + ".s"


def test_the_account_is_read_from_the_claims() -> None:
    """Account, user, API host and time of issue are what AMO's tokens are seen to tell."""
    claims = {"account_id": 7, "sub": "12", "api_domain": "api-b.amocrm.ru", "iat": 5}
    known = Account(account_id="7", user_id="12", api_domain="api-b.amocrm.ru", token_iat=5)
    assert account_of(read_claims(_token(claims))) == known


@pytest.mark.parametrize(
    "token", ["", "opaque", "a.b", "a.b.c.d", "a.!!!.c", "a.A.c", "a.AAAA.c", _token([1]), _token("x")]
)
def test_a_token_without_claims_tells_nothing(token: str) -> None:
    """A token that is no JWT is as good as any, and tells nothing."""
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
def test_odd_claims_are_left_out(claims: object) -> None:
    """A claim that is not of its kind, or names a foreign host, is as if it were not there."""
    assert account_of(read_claims(_token(claims))) == Account()


def test_a_token_tells_whose_it_is_for_whom_and_until_when() -> None:
    """Where a claim is odd, it is left out: a hint is all that it is."""
    told = token_claims(_token({"account_id": 7, "sub": "9", "aud": "c619", "exp": 1_900_000_000}))
    assert (told.account.account_id, told.account.user_id, told.client_id) == ("7", "9", "c619")
    assert told.expires_at == datetime(2030, 3, 17, 17, 46, 40, tzinfo=UTC)
    for odd in ({"exp": True}, {"exp": -1}, {"exp": 2**40}, {"exp": "soon"}, {"aud": ["c619"]}, {}):
        told = token_claims(_token(odd))
        assert (told.client_id, told.expires_at) == (None, None)
    assert token_claims("opaque").expires_at is None
