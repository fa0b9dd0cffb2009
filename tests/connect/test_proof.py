"""Who may have what a grant has brought."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from amo_callback.connect.proof import check_verifier, is_proven
from amo_callback.errors import NotTheirs, WrongVerifier
from amo_callback.grant import AuthorizationRequest

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""Those of RFC 7636, appendix B."""


def _request(**more: object) -> AuthorizationRequest:
    return AuthorizationRequest(**{"user": "42", "challenge": CHALLENGE, **more})  # type: ignore[arg-type]  # reason: a test's values


def test_the_verifier_of_the_standard_fits_its_challenge() -> None:
    """RFC 7636, appendix B; without a challenge, no verifier is what fits."""
    check_verifier(_request(), VERIFIER)
    check_verifier(_request(challenge=None), None)
    check_verifier(None, None)


@pytest.mark.parametrize(
    ("challenge", "verifier"),
    [
        (CHALLENGE, None),
        (CHALLENGE, ""),
        (CHALLENGE, VERIFIER[:-1]),
        (CHALLENGE, VERIFIER + "A"),
        (CHALLENGE, VERIFIER.swapcase()),
        (CHALLENGE, CHALLENGE),
        (CHALLENGE, VERIFIER + "\n"),
        (CHALLENGE, "й" * 43),
        (None, VERIFIER),
    ],
)
def test_every_other_verifier_does_not_fit(challenge: str | None, verifier: str | None) -> None:
    """Another one, none where one is asked for, one where none is."""
    with pytest.raises(WrongVerifier):
        check_verifier(_request(challenge=challenge), verifier)


@pytest.mark.parametrize("size", [42, 129])
def test_a_verifier_has_43_to_128_characters(size: int) -> None:
    """Also where its hash would fit: RFC 7636, 4.1."""
    verifier = "v" * size
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with pytest.raises(WrongVerifier):
        check_verifier(_request(challenge=challenge), verifier)


def test_what_began_with_a_user_and_a_challenge_is_proven() -> None:
    """Once the verifier has been checked; without a challenge, or a user, it is not."""
    assert is_proven(_request(), user="42", state=None)
    assert not is_proven(_request(challenge=None), user="42", state=None)
    assert not is_proven(_request(user=None), user="42", state=None)
    assert not is_proven(None, user="42", state=b"opaque")


def test_what_began_with_another_user_is_not_theirs() -> None:
    """Whatever else fits."""
    with pytest.raises(NotTheirs):
        is_proven(_request(), user="17", state=None)


@pytest.mark.parametrize(
    "state",
    [b"", b"opaque", b"[" * 2048, base64.b64encode(b"[" * 1500), base64.b64encode(b"\xff\xfe"), b"\xff",
     base64.b64encode(b'"userId"'), base64.b64encode(b'{"user": "17"}'), base64.b64encode(b'{"userId": "42"}')],
)  # fmt: skip
def test_a_state_that_names_nobody_else_keeps_nobody_out(state: bytes) -> None:
    """Nor does one that is no JSON, however deep."""
    assert not is_proven(None, user="42", state=state)


def test_a_plus_that_became_a_space_is_read() -> None:
    """The app may have sent base64 unescaped: the state that names another user is still read."""
    state = base64.b64encode(json.dumps({"userId": "17", "r": "~~~>>>"}).encode())
    assert b"+" in state
    for sent in (state, state.replace(b"+", b" ")):
        with pytest.raises(NotTheirs):
            is_proven(None, user="42", state=sent)
