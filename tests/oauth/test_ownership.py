"""Verifiers, and the rules by which a user becomes an owner."""

import base64
import hashlib
import json
from collections.abc import Callable

import pytest

from amo_callback.errors import PkceMismatch
from amo_callback.grant import AuthorizationRequest
from amo_callback.oauth.ownership import Binding, binding_of, check_verifier

VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
"""The example of RFC 7636, appendix B."""


def _request(**more: object) -> AuthorizationRequest:
    return AuthorizationRequest(**{"user": "42", "challenge": CHALLENGE, **more})  # type: ignore[arg-type]  # reason: a test's values


def test_check_verifier_of_challenge_passes() -> None:
    """The verifier of RFC 7636's example passes, and so does a missing verifier without a challenge."""
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
def test_check_verifier_wrong_missing_or_unexpected_raises(challenge: str | None, verifier: str | None) -> None:
    """A wrong verifier, a missing one, and one without a challenge raise `PkceMismatch`."""
    with pytest.raises(PkceMismatch):
        check_verifier(_request(challenge=challenge), verifier)


@pytest.mark.parametrize("size", [42, 129])
def test_check_verifier_not_of_43_to_128_characters_raises(size: int) -> None:
    """The length counts even if the hash matches: RFC 7636, 4.1."""
    verifier = "v" * size
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with pytest.raises(PkceMismatch):
        check_verifier(_request(challenge=challenge), verifier)


def _state_naming(user: object) -> bytes:
    """Return a state with a user id in the existing app's format."""
    return base64.b64encode(json.dumps({"userId": user, "r": 1}).encode())


LINK = _request(user=None, challenge=None)


@pytest.mark.parametrize(
    ("request_", "state", "binding"),
    [
        (_request(), None, Binding.OWNER),
        (_request(user="17"), None, Binding.NONE),
        (_request(asserted_by_backend=True), None, Binding.OWNER),
        (_request(user="17", asserted_by_backend=True), None, Binding.NONE),
        (_request(user=None), None, Binding.FIRST_OWNER),
        (None, _state_naming("42"), Binding.FIRST_OWNER),
        (None, _state_naming(42), Binding.FIRST_OWNER),
        (_request(challenge=None), _state_naming("42"), Binding.FIRST_OWNER),
        (LINK, _state_naming("42"), Binding.FIRST_OWNER),
        (None, _state_naming("17"), Binding.NONE),
        (_request(user="17", challenge=None), _state_naming("42"), Binding.NONE),
        (_request(challenge=None), b"ac1.issued", Binding.NONE),
        (_request(challenge=None), _state_naming("17"), Binding.NONE),
        (LINK, b"ac1.issued", Binding.NONE),
        (None, b"opaque", Binding.NONE),
        (None, None, Binding.NONE),
    ],
    ids=[
        "own grant, verified", "another user's grant, verified", "backend's grant for the user, verified",
        "backend's grant for another user, verified", "link with challenge, verified", "state names the user",
        "state names the user as a number", "own grant, state names the user", "link, state names the user",
        "state names another user", "another user's grant, state names the user", "own grant, unverified",
        "own grant, state names another user", "link", "opaque state", "no state",
    ],
)  # fmt: skip
def test_binding_of_request_and_state(
    request_: AuthorizationRequest | None, state: bytes | None, binding: Binding
) -> None:
    """Each row of the table has its binding; if app states are not accepted, only a challenge is proof."""
    assert binding_of(request_, user="42", state=state, takes_app_states=True) is binding
    challenged = request_ is not None and request_.challenge is not None
    issued_only = binding_of(request_, user="42", state=state, takes_app_states=False)
    assert issued_only is (binding if challenged else Binding.NONE)


@pytest.mark.parametrize(
    "state",
    [b"", b"opaque", b"[" * 2048, base64.b64encode(b"[" * 1500), base64.b64encode(b"\xff\xfe"), b"\xff",
     base64.b64encode(b'"userId"'), base64.b64encode(b'{"user": "42"}'), base64.b64encode(b'["42"]'),
     *map(_state_naming, (None, True, 42.0, ["42"], {"id": "42"}, "42 ", "042"))],
)  # fmt: skip
def test_binding_of_state_without_user_id_is_none(state: bytes) -> None:
    """A state that is not JSON, or has no exact id as `userId`, binds no owner; deep nesting raises nothing."""
    assert binding_of(None, user="42", state=state, takes_app_states=True) is Binding.NONE


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("change", [bytes, lambda state: state.rstrip(b"="), lambda state: state.replace(b"+", b" ")])
def test_binding_of_state_accepts_every_base64_form(
    encode: Callable[[bytes], bytes], change: Callable[[bytes], bytes]
) -> None:
    """Both alphabets are accepted, with or without padding, and with a space in place of a plus."""
    state = encode(json.dumps({"userId": "42", "r": "??>>~~~\xff"}, ensure_ascii=False).encode())
    assert binding_of(None, user="42", state=change(state), takes_app_states=True) is Binding.FIRST_OWNER
