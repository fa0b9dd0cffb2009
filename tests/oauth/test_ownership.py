"""Who may have what a grant has brought."""

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
    with pytest.raises(PkceMismatch):
        check_verifier(_request(challenge=challenge), verifier)


@pytest.mark.parametrize("size", [42, 129])
def test_a_verifier_has_43_to_128_characters(size: int) -> None:
    """Also where its hash would fit: RFC 7636, 4.1."""
    verifier = "v" * size
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with pytest.raises(PkceMismatch):
        check_verifier(_request(challenge=challenge), verifier)


def _names(user: object) -> bytes:
    """Return a state as the existing app makes it."""
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
        (None, _names("42"), Binding.FIRST_OWNER),
        (None, _names(42), Binding.FIRST_OWNER),
        (_request(challenge=None), _names("42"), Binding.FIRST_OWNER),
        (LINK, _names("42"), Binding.FIRST_OWNER),
        (None, _names("17"), Binding.NONE),
        (_request(user="17", challenge=None), _names("42"), Binding.NONE),
        (_request(challenge=None), b"ac1.issued", Binding.NONE),
        (_request(challenge=None), _names("17"), Binding.NONE),
        (LINK, b"ac1.issued", Binding.NONE),
        (None, b"opaque", Binding.NONE),
        (None, None, Binding.NONE),
    ],
    ids=[
        "his own grant, verified", "another user's, verified", "a backend's for him, verified",
        "a backend's for another, verified", "a link with his challenge, verified", "the app's state names him",
        "the same, as a number", "his own grant, whose state names him", "a link, whose state names him",
        "the app's state names another", "another's grant, whose state names him", "his own grant, nothing more",
        "his own grant, whose state names another", "a link", "an opaque state", "no state",
    ],
)  # fmt: skip
def test_who_becomes_an_owner(request_: AuthorizationRequest | None, state: bytes | None, binding: Binding) -> None:
    """The rows of the table; where states of the app's own are not taken, only a challenge proves anything."""
    assert binding_of(request_, user="42", state=state, takes_app_states=True) is binding
    challenged = request_ is not None and request_.challenge is not None
    issued_only = binding_of(request_, user="42", state=state, takes_app_states=False)
    assert issued_only is (binding if challenged else Binding.NONE)


@pytest.mark.parametrize(
    "state",
    [b"", b"opaque", b"[" * 2048, base64.b64encode(b"[" * 1500), base64.b64encode(b"\xff\xfe"), b"\xff",
     base64.b64encode(b'"userId"'), base64.b64encode(b'{"user": "42"}'), base64.b64encode(b'["42"]'),
     *map(_names, (None, True, 42.0, ["42"], {"id": "42"}, "42 ", "042"))],
)  # fmt: skip
def test_a_state_that_does_not_name_the_user_binds_him_to_nothing(state: bytes) -> None:
    """Nor does one that is no JSON, however deep, or that names him by anything but his id."""
    assert binding_of(None, user="42", state=state, takes_app_states=True) is Binding.NONE


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("change", [bytes, lambda state: state.rstrip(b"="), lambda state: state.replace(b"+", b" ")])
def test_a_state_is_read_however_it_was_encoded(
    encode: Callable[[bytes], bytes], change: Callable[[bytes], bytes]
) -> None:
    """Both alphabets of base64, padded or not, and a plus that became a space on its way."""
    state = encode(json.dumps({"userId": "42", "r": "??>>~~~\xff"}, ensure_ascii=False).encode())
    assert binding_of(None, user="42", state=change(state), takes_app_states=True) is Binding.FIRST_OWNER
