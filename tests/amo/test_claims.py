"""What an access token tells of itself, and what it is not believed."""

import base64
import json
from datetime import UTC, datetime

import pytest

from amo_callback.amo.claims import account_of, read_claims, told_by
from amo_callback.model import Account


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
    told = told_by(_token({"account_id": 7, "sub": "9", "aud": "c619", "exp": 1_900_000_000}))
    assert (told.account.account_id, told.account.user_id, told.client_id) == ("7", "9", "c619")
    assert told.expires_at == datetime(2030, 3, 17, 17, 46, 40, tzinfo=UTC)
    for odd in ({"exp": True}, {"exp": -1}, {"exp": 2**40}, {"exp": "soon"}, {"aud": ["c619"]}, {}):
        told = told_by(_token(odd))
        assert (told.client_id, told.expires_at) == (None, None)
    assert told_by("opaque").expires_at is None
