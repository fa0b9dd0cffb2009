"""The meaning of AMO's answers, from the sample answers beside this module."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_callback import errors
from amo_callback.amo.protocol import (
    RESPONSE_LIMIT,
    TOO_LARGE,
    AmoRequest,
    AmoResponse,
    GrantType,
    Integration,
    exchange_request,
    read_token_response,
    refresh_request,
)
from amo_callback.errors import AmoCallbackError, UnknownOutcome, UnrecognizedError
from amo_callback.model import TokenResponse
from tests.fakes import START

SAMPLES = sorted((Path(__file__).parent / "answers").glob("*.json"))
INTEGRATION = Integration(client_id="c619", client_secret="the-secret", redirect_uri="https://a.example/cb?x=1")


def _read(
    body: object, *, status: int = 200, grant_type: GrantType = GrantType.REFRESH_TOKEN, **more: Any
) -> TokenResponse:
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return read_token_response(AmoResponse(status=status, body=raw, **more), grant_type=grant_type, now=START)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_token_response_sample_has_expected_meaning(path: Path) -> None:
    """Each sample answer is read with the meaning stated in its file."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    grant_type = GrantType(sample["grant_type"])
    headers = {name: sample["headers"].get(title) for name, title in (("retry_after", "Retry-After"), ("date", "Date"))}
    if sample["means"] == "TokenResponse":
        issued = _read(sample["body"], status=sample["status"], grant_type=grant_type)
        assert issued.pair.refresh_token == sample["body"]["refresh_token"]
        assert issued.pair.expires_at == START + timedelta(seconds=86400)
        assert (issued.account.account_id, issued.account.user_id) == ("31920194", "720194")
        assert (issued.account.api_domain, issued.account.token_iat) == ("api-b.amocrm.ru", 1795414171)
        return
    with pytest.raises(AmoCallbackError) as raised:
        _read(sample["body"], status=sample["status"], grant_type=grant_type, **headers)
    assert type(raised.value) is getattr(errors, sample["means"])
    assert {key: getattr(raised.value, key) for key in sample["data"]} == sample["data"]


def test_token_response_samples_cover_all_meanings() -> None:
    """The samples cover every meaning of an answer."""
    means = {json.loads(path.read_text(encoding="utf-8"))["means"] for path in SAMPLES}
    assert means == {
        "TokenResponse", "UnknownOutcome", "CodeExpired", "CodeUsed", "AuthFailed", "InvalidClient",
        "InvalidRefreshToken", "ClientMismatch",
        "UnauthorizedWithoutHint", "AccountBlocked", "VendorRateLimited", "UnrecognizedError",
    }  # fmt: skip


def test_token_requests_are_json_with_registered_redirect_uri() -> None:
    """Both grants send client, secret and the exact redirect URI to the account's host."""
    exchange = exchange_request(INTEGRATION, code=b"the-code", domain="a.amocrm.ru")
    refresh = refresh_request(INTEGRATION, refresh_token="the-token", domain="a.amocrm.ru")
    common = {"client_id": "c619", "client_secret": "the-secret", "redirect_uri": "https://a.example/cb?x=1"}
    assert json.loads(exchange.body or b"") == {**common, "grant_type": "authorization_code", "code": "the-code"}
    assert json.loads(refresh.body or b"") == {**common, "grant_type": "refresh_token", "refresh_token": "the-token"}
    assert exchange.url == refresh.url == "https://a.amocrm.ru/oauth2/access_token"
    assert exchange.method == refresh.method == "POST"
    assert exchange.headers == refresh.headers
    assert exchange.headers == {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("https://www.amocrm.ru/oauth", "https://www.amocrm.ru/oauth?client_id=c%2F1&state=s%26&mode=popup"),
        ("https://a.example/?x=1", "https://a.example/?x=1&client_id=c%2F1&state=s%26&mode=popup"),
    ],
)
def test_consent_url_adds_client_and_state(page: str, address: str) -> None:
    """The client id and the state are added to the configured page, which may have its own query."""
    integration = Integration(
        client_id="c/1", client_secret="s", redirect_uri="https://a.example/cb", authorize_url=page
    )
    assert integration.consent_url("s&") == address
    assert INTEGRATION.authorize_url == "https://www.amocrm.ru/oauth"


def test_repr_contains_no_secret() -> None:
    """Requests, answers and the integration do not show secrets in their repr."""
    carried = AmoRequest(method="GET", url="https://a.example", headers={"X-Refresh-Token": "the-token"})
    assert "the-token" not in repr(carried) + repr(AmoResponse(status=200, body=b"the-token"))
    shown = repr(INTEGRATION) + repr(exchange_request(INTEGRATION, code=b"the-code", domain="a.amocrm.ru"))
    assert "the-code" not in shown
    assert "the-secret" not in shown


def test_token_response_without_lifetime_keeps_pair() -> None:
    """A pair without a usable lifetime is kept, with its claims' lifetime or a short one."""
    for expires_in in (None, 0, -5, "soon", True, 1e40, 10**30, [1]):
        issued = _read({"access_token": "opaque", "refresh_token": "r", "expires_in": expires_in})
        assert issued.pair.expires_at == START + timedelta(minutes=15)
        assert issued.account.account_id == ""
    pair_sample = json.loads((SAMPLES[0].parent / "200-pair-for-a-code.json").read_text(encoding="utf-8"))["body"]
    assert _read({**pair_sample, "expires_in": None}).pair.lifetime == timedelta(hours=24)
    assert _read({**pair_sample, "expires_in": 60}).pair.lifetime == timedelta(minutes=1)


@pytest.mark.parametrize("status", [200, 201, 299])
def test_token_response_any_success_status_returns_pair(status: int) -> None:
    """A pair is returned for every success status."""
    assert _read({"access_token": "a", "refresh_token": "r"}, status=status).pair.refresh_token == "r"


@pytest.mark.parametrize("status", [100, 199, 300, 399])
def test_token_response_other_status_with_pair_is_unknown_outcome(status: int) -> None:
    """A pair in an answer without a success status is an unknown outcome."""
    with pytest.raises(UnknownOutcome) as raised:
        _read({"access_token": "a", "refresh_token": "r"}, status=status)
    assert raised.value.detail == f"http_{status}"


def test_token_response_api_domain_may_be_operators_host() -> None:
    """The API host in a token is checked as an account's host is, with the operator's list."""
    claims = base64.urlsafe_b64encode(b'{"api_domain": "api.test.example"}').decode()
    answer = AmoResponse(status=200, body=json.dumps({"access_token": f"h.{claims}.s", "refresh_token": "r"}).encode())
    for allowed, host in (((), None), ((".test.example",), "api.test.example")):
        issued = read_token_response(answer, grant_type=GrantType.CODE, now=START, allowed=allowed)
        assert issued.account.api_domain == host


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("b6a3.7:x_Y-9", "b6a3.7:x_Y-9"),
        ("x", "x"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("", None),
        (None, None),
        ("a b", None),
        ("a\n", None),
    ],
)
def test_token_response_request_id_is_kept_if_valid(said: str | None, known: str | None) -> None:
    """The answer and its error carry AMO's request id, unless it is unsafe to log."""
    issued = _read({"access_token": "a", "refresh_token": "r"}, request_id=said)
    assert issued.request_id == known
    for status in (401, 403, 429, 500):
        with pytest.raises(AmoCallbackError) as raised:
            _read("", status=status, request_id=said)
        assert (raised.value.status, raised.value.request_id) == (status, known)


@pytest.mark.parametrize(
    ("hint", "expired", "misread"),
    [
        ("Token has expired", True, False),
        ("token has expired.", True, False),
        ("Token has been revoked", False, False),
        ("Invalid refresh token", False, True),
        ("Cannot decrypt the refresh token", False, True),
    ],
)
def test_token_response_expired_differs_from_undecodable(hint: str, expired: bool, misread: bool) -> None:  # noqa: FBT001 -- pytest passes them
    """An expired token differs from one that AMO could not decrypt, which may mean a wrong account."""
    with pytest.raises(errors.InvalidRefreshToken) as raised:
        _read({"hint": hint}, status=400)
    assert (raised.value.expired, raised.value.undecodable) == (expired, misread)


@pytest.mark.parametrize("hint", ["Token has expired, or not", "The token has expired", "Token has expired?"])
def test_token_response_only_listed_hints_are_terminal(hint: str) -> None:
    """A hint that resembles a listed one is an unrecognized error."""
    with pytest.raises(UnrecognizedError) as raised:
        _read({"hint": hint}, status=400)
    assert (raised.value.status, raised.value.hint) == (400, hint)


@pytest.mark.parametrize("name", ["code", "`code`"])
def test_token_response_invalid_code_is_callers_error(name: str) -> None:
    """A hint about the code parameter is the caller's error for a code, otherwise a configuration error."""
    hint = f"Check the {name} parameter"
    with pytest.raises(errors.AuthFailed):
        _read({"hint": hint}, status=400, grant_type=GrantType.CODE)
    with pytest.raises(errors.InvalidClient):
        _read({"hint": hint}, status=400)


def test_token_response_client_error_keeps_hint() -> None:
    """A configuration error contains AMO's hint, whatever its ending, for the operator."""
    hint = "Check the `redirect_uri` parameter, it is another one"
    with pytest.raises(errors.InvalidClient) as raised:
        _read({"hint": hint}, status=400)
    assert raised.value.hint == hint


def test_token_response_404_with_hint_is_unrecognized() -> None:
    """Only a 404 without a hint means that the host has no account."""
    with pytest.raises(UnrecognizedError):
        _read({"hint": "Gone fishing"}, status=404, grant_type=GrantType.CODE)
    with pytest.raises(errors.AuthFailed):
        _read({}, status=404, grant_type=GrantType.CODE)


@pytest.mark.parametrize("token", [None, "", 7, ["x"], "with\nnewline", "не ascii", "\ud800"])
def test_token_response_token_unfit_for_header_is_unknown_outcome(token: object) -> None:
    """An answer whose tokens do not fit into a header is an unknown outcome."""
    with pytest.raises(UnknownOutcome):
        _read({"access_token": token, "refresh_token": "r"})


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 50_000, b"\xff\xfe", "1" * 5000, "null"])
def test_token_response_hostile_body_is_unknown_outcome(body: str | bytes) -> None:
    """Deeply nested, binary or oversized JSON is an unknown outcome, and raises no other error."""
    with pytest.raises(UnknownOutcome):
        _read(body)


def test_token_response_over_limit_is_read_up_to_limit() -> None:
    """A pair within the size limit is kept; without one, the error names the limit."""
    pair = {"access_token": "a", "refresh_token": "r"}
    assert _read(json.dumps(pair) + "<!--", broken=TOO_LARGE).pair.refresh_token == "r"
    with pytest.raises(UnknownOutcome) as raised:
        _read(json.dumps(pair)[:-1], broken=TOO_LARGE)
    assert raised.value.detail == "too_large"
    assert RESPONSE_LIMIT == 256 * 1024


@pytest.mark.parametrize(
    ("hint", "kept"),
    [
        (" some words \n", "some words"),
        ("bad token def50200" + "ab" * 40 + "\x1b[31m now", "bad token … [31m now"),
        ("x" * 23, "x" * 23),
        ("x" * 24, "…"),
        ("two " * 30, ("two " * 30).strip()),
        ("two " * 30 + "more", "two " * 30),
        ("x" * 976 + " " + "y" * 24, "… " + "y" * 23),
    ],
)
def test_token_response_unknown_hint_is_shortened(hint: str, kept: str) -> None:
    """A hint is cut to 120 characters, without control characters or long words, which may be secrets."""
    with pytest.raises(UnrecognizedError) as raised:
        _read({"hint": hint}, status=400)
    assert raised.value.hint == kept


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 1),
        ("5", 5),
        ("601", 600),
        ("999999999", 600),
        ("9" * 400, 600),
        ("", 60),
        ("-1", 60),
        ("1.5", 60),
        ("x", 60),
        ("٣", 60),
        (None, 60),
        ("Mon, 23 Nov 2026 12:02:00 GMT", 120),
        ("Mon, 23 Nov 2026 11:59:59 GMT", 1),
        ("Tue, 23 Nov 2027 12:00:00 GMT", 600),
        ("Mon, 23 Nov 2026 12:02:00 -0000", 120),
        ("Mon, 99 Nov 2026 12:02:00 GMT", 60),
        ("Fri, 31 Dec 9999 23:59:59 -2300", 60),
    ],
)
@pytest.mark.parametrize("grant_type", GrantType)
def test_retry_after_is_clamped_to_ten_minutes(value: str | None, seconds: float, grant_type: GrantType) -> None:
    """`Retry-After` in seconds or as a date gives one second to ten minutes, otherwise one minute."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, grant_type=grant_type, retry_after=value)
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize(
    ("date", "seconds"), [("Sun, 01 Nov 2026 07:00:00 GMT", 90), ("Sun, 01 Nov 2026 07:02:00 GMT", 1), ("broken", 1)]
)
def test_retry_after_date_is_compared_with_date_header(date: str, seconds: float) -> None:
    """A date is compared with the answer's `Date` header, or with this process's clock if that is invalid."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, retry_after="Sun, 01 Nov 2026 07:01:30 GMT", date=date)
    assert raised.value.retry_after == seconds


DATES = st.from_regex(r"[A-Z][a-z]{2}, [0-9]{2} Nov [0-9]{1,6} [0-9]{2}:00:00 ([+-][0-9]{1,6}|GMT)", fullmatch=True)


@given(st.text() | DATES)
def test_retry_after_any_text_gives_valid_wait(value: str) -> None:
    """Any header text gives a wait between one second and ten minutes."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, retry_after=value, date=value)
    assert 1 <= raised.value.retry_after <= 600


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_token_response_rejects_client_only_by_hint_or_problem(path: Path) -> None:
    """Only a hint about client id or redirect URI, or a 401 problem for an unknown client, rejects the client."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    if sample["means"] == "TokenResponse":
        return
    found = []
    for is_problem in (True, False):
        with pytest.raises(AmoCallbackError) as raised:
            _read(
                sample["body"],
                status=sample["status"],
                grant_type=GrantType(sample["grant_type"]),
                is_problem=is_problem,
            )
        found.append(raised.value.rejects_client)
    expected = [False, False]
    if path.stem.startswith(("400-check-client-id", "400-check-redirect-uri")):
        expected = [True, True]
    elif path.stem.startswith(("401-unknown-client", "401-kommo-unknown-client")):
        expected = [True, False]
    assert found == expected


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_token_response_error_keeps_title_and_hint(status: int) -> None:
    """An error keeps AMO's title and hint for the log, shortened and without secrets."""
    secret = "def50200" + "ab" * 40
    with pytest.raises(AmoCallbackError) as raised:
        _read({"title": f"No {secret}\n", "hint": "Some words"}, status=status, grant_type=GrantType.CODE)
    fields = raised.value.fields
    assert (fields["status"], fields["title"], fields["hint"]) == (status, "No …", "Some words")
    for body in ("<h1>Not found</h1>", {"title": ["x"], "hint": 7}, {}):
        with pytest.raises(AmoCallbackError) as raised:
            _read(body, status=status, grant_type=GrantType.CODE)
        assert "title" not in raised.value.fields
