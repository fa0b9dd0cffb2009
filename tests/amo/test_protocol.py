"""What AMO's answers mean: every row of its error table, from the sample answers beside this module."""

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
def test_each_answer_means_what_the_table_says(path: Path) -> None:
    """Each sample answer is read as the meaning written beside it."""
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


def test_the_samples_cover_the_table() -> None:
    """Nothing was lost on the way: both grant types, and every meaning there is."""
    means = {json.loads(path.read_text(encoding="utf-8"))["means"] for path in SAMPLES}
    assert means == {
        "TokenResponse", "UnknownOutcome", "CodeExpired", "CodeUsed", "AuthFailed", "InvalidClient",
        "InvalidRefreshToken", "ClientMismatch",
        "UnauthorizedWithoutHint", "AccountBlocked", "VendorRateLimited", "UnrecognizedError",
    }  # fmt: skip


def test_both_requests_are_json_with_the_registered_redirect_uri() -> None:
    """Both grants carry client, secret and redirect URI byte for byte, to the account's host."""
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
def test_a_person_is_sent_to_amos_page_with_our_name_and_the_state(page: str, address: str) -> None:
    """The configured page may have a query of its own."""
    integration = Integration(
        client_id="c/1", client_secret="s", redirect_uri="https://a.example/cb", authorize_url=page
    )
    assert integration.consent_url("s&") == address
    assert INTEGRATION.authorize_url == "https://www.amocrm.ru/oauth"


def test_no_secret_is_in_a_repr() -> None:
    """Neither a request nor an answer nor an integration shows what it carries."""
    carried = AmoRequest(method="GET", url="https://a.example", headers={"X-Refresh-Token": "the-token"})
    assert "the-token" not in repr(carried) + repr(AmoResponse(status=200, body=b"the-token"))
    shown = repr(INTEGRATION) + repr(exchange_request(INTEGRATION, code=b"the-code", domain="a.amocrm.ru"))
    assert "the-code" not in shown
    assert "the-secret" not in shown


def test_a_pair_is_kept_whatever_else_its_answer_lacks() -> None:
    """A pair has been paid for: without a usable lifetime it counts by the token's own claims, or as short."""
    for expires_in in (None, 0, -5, "soon", True, 1e40, 10**30, [1]):
        issued = _read({"access_token": "opaque", "refresh_token": "r", "expires_in": expires_in})
        assert issued.pair.expires_at == START + timedelta(minutes=15)
        assert issued.account.account_id == ""
    pair_sample = json.loads((SAMPLES[0].parent / "200-pair-for-a-code.json").read_text(encoding="utf-8"))["body"]
    assert _read({**pair_sample, "expires_in": None}).pair.lifetime == timedelta(hours=24)
    assert _read({**pair_sample, "expires_in": 60}).pair.lifetime == timedelta(minutes=1)


@pytest.mark.parametrize("status", [200, 201, 299])
def test_a_pair_comes_with_any_success(status: int) -> None:
    """Whatever kind of success it is called, a pair has been paid for."""
    assert _read({"access_token": "a", "refresh_token": "r"}, status=status).pair.refresh_token == "r"


@pytest.mark.parametrize("status", [100, 199, 300, 399])
def test_a_pair_in_what_is_no_success_is_none(status: int) -> None:
    """What such an answer is about, nobody has promised."""
    with pytest.raises(UnknownOutcome) as raised:
        _read({"access_token": "a", "refresh_token": "r"}, status=status)
    assert raised.value.detail == f"http_{status}"


def test_a_host_of_the_operators_list_may_be_an_accounts_own() -> None:
    """The same check guards what a token names as what the browser names."""
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
def test_an_answer_is_known_by_amos_name_for_it(said: str | None, known: str | None) -> None:
    """So is the error it means, with its status; what should not stand in a log is no name."""
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
def test_a_dead_token_is_told_from_one_that_was_not_understood(hint: str, expired: bool, misread: bool) -> None:  # noqa: FBT001 -- because they are columns of the table above
    """Who could not read it may be a stranger, who lives where the account has lived."""
    with pytest.raises(errors.InvalidRefreshToken) as raised:
        _read({"hint": hint}, status=400)
    assert (raised.value.expired, raised.value.undecodable) == (expired, misread)


@pytest.mark.parametrize("hint", ["Token has expired, or not", "The token has expired", "Token has expired?"])
def test_only_the_listed_words_are_final(hint: str) -> None:
    """Words that are nearly the same may mean anything."""
    with pytest.raises(UnrecognizedError) as raised:
        _read({"hint": hint}, status=400)
    assert (raised.value.status, raised.value.hint) == (400, hint)


@pytest.mark.parametrize("name", ["code", "`code`"])
def test_a_code_that_is_none_is_the_browsers_fault(name: str) -> None:
    """Any other parameter is ours to mend, and so is this one where a refresh token was presented."""
    hint = f"Check the {name} parameter"
    with pytest.raises(errors.AuthFailed):
        _read({"hint": hint}, status=400, grant_type=GrantType.CODE)
    with pytest.raises(errors.InvalidClient):
        _read({"hint": hint}, status=400)


def test_our_own_faults_are_told_in_amos_words() -> None:
    """However AMO goes on: it is the operator who has to understand them."""
    hint = "Check the `redirect_uri` parameter, it is another one"
    with pytest.raises(errors.InvalidClient) as raised:
        _read({"hint": hint}, status=400)
    assert raised.value.hint == hint


def test_a_404_with_words_is_not_taken_for_a_wrong_host() -> None:
    """Only silence tells that nobody lives there."""
    with pytest.raises(UnrecognizedError):
        _read({"hint": "Gone fishing"}, status=404, grant_type=GrantType.CODE)
    with pytest.raises(errors.AuthFailed):
        _read({}, status=404, grant_type=GrantType.CODE)


@pytest.mark.parametrize("token", [None, "", 7, ["x"], "with\nnewline", "не ascii", "\ud800"])
def test_a_token_that_no_header_could_carry_is_no_token(token: object) -> None:
    """An answer whose tokens cannot be tokens leaves open what happened."""
    with pytest.raises(UnknownOutcome):
        _read({"access_token": token, "refresh_token": "r"})


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 50_000, b"\xff\xfe", "1" * 5000, "null"])
def test_a_hostile_body_is_no_pair(body: str | bytes) -> None:
    """Deep, binary or absurd JSON is an open outcome and no crash."""
    with pytest.raises(UnknownOutcome):
        _read(body)


def test_an_answer_above_the_limit_is_read_as_far_as_it_goes() -> None:
    """A pair within the limit has been paid for; without one, more than the limit is why."""
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
def test_an_unknown_hint_is_short(hint: str, kept: str) -> None:
    """Of 1,000 characters 120 are kept, and no control character, nor a word of 24 or more: it may be a secret."""
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
def test_retry_after_is_seconds_or_a_date_of_at_most_ten_minutes(
    value: str | None, seconds: float, grant_type: GrantType
) -> None:
    """A 429 means a wait of what `Retry-After` says, from one second to ten minutes, else of a minute."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, grant_type=grant_type, retry_after=value)
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize(
    ("date", "seconds"), [("Sun, 01 Nov 2026 07:00:00 GMT", 90), ("Sun, 01 Nov 2026 07:02:00 GMT", 1), ("broken", 1)]
)
def test_a_date_in_retry_after_is_compared_with_the_answers_own_date(date: str, seconds: float) -> None:
    """An answer's `Date` header replaces our clock, which may differ from AMO's; an unreadable one does not."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, retry_after="Sun, 01 Nov 2026 07:01:30 GMT", date=date)
    assert raised.value.retry_after == seconds


DATES = st.from_regex(r"[A-Z][a-z]{2}, [0-9]{2} Nov [0-9]{1,6} [0-9]{2}:00:00 ([+-][0-9]{1,6}|GMT)", fullmatch=True)


@given(st.text() | DATES)
def test_any_retry_after_is_a_wait_of_one_second_to_ten_minutes(value: str) -> None:
    """No header text fails, and none holds requests back for longer than ten minutes."""
    with pytest.raises(errors.VendorRateLimited) as raised:
        _read("", status=429, retry_after=value, date=value)
    assert 1 <= raised.value.retry_after <= 600


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_only_words_about_the_client_reject_the_client(path: Path) -> None:
    """Of all sample answers: a hint that names id, secret or redirect URI, or problem+json 401 without a hint."""
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
def test_an_error_has_amos_words(status: int) -> None:
    """Title and hint go into the log: short, and without anything as long as a secret."""
    secret = "def50200" + "ab" * 40
    with pytest.raises(AmoCallbackError) as raised:
        _read({"title": f"No {secret}\n", "hint": "Some words"}, status=status, grant_type=GrantType.CODE)
    fields = raised.value.fields
    assert (fields["status"], fields["title"], fields["hint"]) == (status, "No …", "Some words")
    for body in ("<h1>Not found</h1>", {"title": ["x"], "hint": 7}, {}):
        with pytest.raises(AmoCallbackError) as raised:
            _read(body, status=status, grant_type=GrantType.CODE)
        assert not {"title"} & raised.value.fields.keys()
