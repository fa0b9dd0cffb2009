"""`POST /oauth/token`, the token endpoint for standard OAuth clients."""

import asyncio
import base64
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from multidict import CIMultiDict

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, API_KEY, HOST, READ_KEY, Answer, Running

_FIELDS = b"".join(b"&field%d=1" % number for number in range(30))
OTHER_KEY = "other-key-with-the-characters-+/%2B="
"""A key that changes if it is form-encoded."""


def _basic(secret: str, client_id: str = "any client") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


async def _request(
    app: Running, name: str, *, secret: str | None = API_KEY, headers: dict[str, str] | None = None, **more: str
) -> Answer:
    """Request a token as a client that sends a form."""
    form = {"grant_type": "refresh_token", "refresh_token": name, **more}
    if secret is not None:
        form["client_secret"] = secret
    return await _send(app, urlencode(form).encode(), headers=headers)


async def _send(app: Running, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return await app.private("/oauth/token", key=None, method="POST", data=body, headers={**form, **(headers or {})})


def _refused(answer: Answer) -> tuple[int, str]:
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.status, answer.json()["error"]


async def test_token_response_is_the_hand_out_with_the_name_as_refresh_token(app: Running) -> None:
    """The response has the access token, what is left of its lifetime, the account's address, and the same name."""
    await app.connected()
    name = f"account:{app.amo.account.id}"
    answer = await _request(app, name, client_id="ignored", scope="crm", redirect_uri="https://client.example/")
    token = answer.json()
    assert app.amo.fake.live_account(token.pop("access_token")) is app.amo.account
    assert 86_000 <= token.pop("expires_in") <= 86_400
    base_url = app.amo.endpoint.replace("{domain}", HOST)
    assert token == {"token_type": "Bearer", "refresh_token": name, "base_url": base_url, "domain": HOST}
    assert answer.headers["Cache-Control"] == "no-store"
    [line] = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert line["key"] == "backend"
    assert app.amo.fake.ledger.refreshes() == []


async def test_token_shorter_than_five_minutes_is_refreshed_first(run: Any) -> None:
    """A client that comes because its token has expired gets a token with at least five minutes left."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        first = (await _request(app, connection)).json()
        app.clock.advance(701)
        second = (await _request(app, connection)).json()
        assert second["access_token"] != first["access_token"]
        assert second["expires_in"] >= 990
        assert len(app.amo.fake.ledger.refreshes()) == 1


@pytest.mark.parametrize("form", ["form", "json"])
@pytest.mark.parametrize("way", ["body", "basic", "encoded basic"])
async def test_client_authenticates_by_basic_or_body_in_either_format(run: Any, way: str, form: str) -> None:
    """The API key is the secret in the body or of HTTP Basic, form-encoded or not."""
    async with run(API__KEYS=f"odd:token:{OTHER_KEY}") as app:
        await app.connected()
        given = {"grant_type": "refresh_token", "refresh_token": f"account:{app.amo.account.id}"}
        headers = {}
        if way == "body":
            given |= {"client_id": "x", "client_secret": OTHER_KEY}
        else:
            headers = _basic(quote(OTHER_KEY, safe="") if way == "encoded basic" else OTHER_KEY)
        body = json.dumps(given) if form == "json" else urlencode(given)
        assert (await _send(app, body.encode(), headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _basic("wrong"),
        _basic(""),
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": "Basic !"},
        {"Authorization": _basic(API_KEY)["Authorization"].replace("Basic ", "Basic !")},
        {"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
        {"Authorization": "Basic " + base64.b64encode(API_KEY.encode()).decode()},
        {"Authorization": "Digest " + base64.b64encode(f"x:{API_KEY}".encode()).decode()},
    ],
)
async def test_client_without_valid_key_is_invalid_client(app: Running, headers: dict[str, str]) -> None:
    """A missing or wrong key is 401 `invalid_client` with a Basic challenge, and it is counted like any wrong key."""
    await app.connected()
    answer = await _request(app, f"account:{app.amo.account.id}", secret=None, headers=headers)
    assert _refused(answer) == (401, "invalid_client")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="amo-callback"'
    assert "amo_callback_api_keys_refused_total 1.0" in (await app.private("/metrics", key=None)).text
    [line] = [line for line in app.lines() if line["event"] == "http.request" and line["route"] == "/oauth/token"]
    assert (line["status"], line["error"]) == (401, "unauthorized")
    assert API_KEY not in app.log.getvalue()


async def test_client_with_two_authorization_headers_is_invalid_client(app: Running) -> None:
    """A doubled header is refused, because a proxy and the service could read different ones."""
    await app.connected()
    doubled = CIMultiDict([*_basic(API_KEY).items(), *_basic("other").items()])
    doubled.add("Content-Type", "application/x-www-form-urlencoded")
    body = urlencode({"grant_type": "refresh_token", "refresh_token": f"account:{app.amo.account.id}"})
    async with app.http.post(f"http://{app.service.private}/oauth/token", data=body, headers=doubled) as answer:
        assert (answer.status, (await answer.json())["error"]) == (401, "invalid_client")


async def test_key_without_the_right_is_unauthorized_client(run: Any) -> None:
    """A key without the scope, and a limited key at any other connection or none, are `unauthorized_client`."""
    limited = "limited-key-" + "x" * 30
    async with run(API__KEYS=f"reader:read:{READ_KEY}\nlimited:token:account=1:{limited}\nb:{API_KEY}") as app:
        await app.connected()
        name = f"account:{app.amo.account.id}"
        for key, connection in ((READ_KEY, name), (limited, name), (limited, "nope"), (limited, "account:1")):
            assert _refused(await _request(app, connection, secret=key)) == (400, "unauthorized_client")
        answer = await _request(app, name, secret=limited)
        assert answer.json() == (await _request(app, "nope", secret=limited)).json()


@pytest.mark.parametrize("name", ["nope", "account:1", "owner:1", "account:"])
async def test_unknown_connection_is_invalid_grant_with_connect_url(app: Running, name: str) -> None:
    """An unknown connection is `invalid_grant`, and the description has the URL at which the user connects."""
    answer = await _request(app, name)
    assert _refused(answer) == (400, "invalid_grant")
    assert app.settings.amo.connect_url in answer.json()["error_description"]


async def test_connection_without_valid_token_is_invalid_grant(app: Running) -> None:
    """A revoked and a disconnected connection are `invalid_grant` with the URL."""
    connection = await app.connected()
    app.amo.account.disabled = True
    assert (await app.private(f"/connections/{connection}/refresh", method="POST")).status == 409
    answer = await _request(app, connection)
    assert _refused(answer) == (400, "invalid_grant")
    assert app.settings.amo.connect_url in answer.json()["error_description"]
    await app.private(f"/connections/{connection}", method="DELETE", key=ADMIN_KEY)
    assert _refused(await _request(app, connection)) == (400, "invalid_grant")


@pytest.mark.parametrize("fault", [Fault.UNPAID, Fault.TEAPOT])
async def test_failure_of_amo_is_temporarily_unavailable(run: Any, fault: Fault) -> None:
    """Without a valid token, a refusal of AMO that may pass is 503 with `Retry-After`."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(fault)
        app.clock.advance(1000)
        await app.witness.until("refresh.failed")
        answer = await _request(app, connection)
        assert _refused(answer) == (503, "temporarily_unavailable")
        assert 1 <= int(answer.headers["Retry-After"]) <= 900


async def test_frozen_connection_is_temporarily_unavailable(run: Any) -> None:
    """A frozen connection without a valid token is 503 with `Retry-After`."""
    async with run(lifetimes={"access": 1000}) as app:
        connection = await app.connected()
        await app.private("/freeze", method="POST", key=ADMIN_KEY)
        app.clock.advance(1000)
        answer = await _request(app, connection)
        assert _refused(answer) == (503, "temporarily_unavailable")
        assert int(answer.headers["Retry-After"]) == app.settings.refresh.retry_cap


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "invalid_request"),
        (b"grant_type=refresh_token&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&client_secret={key}&refresh_token=", "invalid_request"),
        (b"refresh_token=account:1&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&refresh_token=a&refresh_token=b&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&refresh_token=%ff&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&refresh_token=\xff&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&refresh_token=" + b"a" * 513 + b"&client_secret={key}", "invalid_request"),
        (b"grant_type=refresh_token&refresh_token=a&client_secret={key}" + _FIELDS, "invalid_request"),
        (b'{"grant_type": "refresh_token", "refresh_token": 1, "client_secret": "{key}"}', "invalid_request"),
        (b'{"grant_type": "refresh_token"', "invalid_request"),
        (b"[]", "invalid_request"),
        (b"grant_type=client_credentials&refresh_token=a&client_secret={key}", "unsupported_grant_type"),
        (b"grant_type=authorization_code&refresh_token=a&client_secret={key}", "unsupported_grant_type"),
    ],
)
async def test_malformed_request_is_refused_in_the_same_format(app: Running, body: bytes, error: str) -> None:
    """A missing, doubled, oversized or wrong parameter is 400 in the format of RFC 6749."""
    answer = await _send(app, body.replace(b"{key}", API_KEY.encode()))
    assert _refused(answer) == (400, error)
    assert API_KEY not in answer.text


async def test_two_ways_of_authentication_are_refused(app: Running) -> None:
    """A client that authenticates both by Basic and in the body is refused (RFC 6749, 2.3)."""
    assert _refused(await _request(app, "x", headers=_basic(API_KEY))) == (400, "invalid_request")


async def test_description_has_only_allowed_characters(app: Running) -> None:
    """A description that would quote a client's text has only the characters that RFC 6749 allows."""
    answer = await _send(app, 'grant_type=refresh_token&"\\ґ=1&"\\ґ=2'.encode())
    description = answer.json()["error_description"]
    assert description.startswith("''': required")


async def test_rejected_token_is_introspected_and_refreshed_once(app: Running) -> None:
    """A client that was handed the token before, and comes again, gets a new one only if AMO rejects the token.

    A connection is introspected at most once a minute, also if it was refreshed in the meantime.
    """
    connection = await app.connected()
    first = (await _request(app, connection)).json()["access_token"]
    app.clock.advance(11)
    assert (await _request(app, connection)).json()["access_token"] == first
    assert app.amo.sandbox.introspections == 1
    app.amo.fake.forget(first)
    app.clock.advance(30)
    assert (await _request(app, connection)).json()["access_token"] == first
    assert app.amo.sandbox.introspections == 1
    app.clock.advance(31)
    second = (await _request(app, connection)).json()["access_token"]
    assert app.amo.fake.live_account(second) is app.amo.account
    assert app.amo.sandbox.introspections == 2
    assert len(app.amo.fake.ledger.refreshes()) == 1
    for seconds, introspections in ((6, 2), (6, 2), (47, 2), (2, 3)):
        app.clock.advance(seconds)
        assert (await _request(app, connection)).json()["access_token"] == second
        assert app.amo.sandbox.introspections == introspections


async def test_concurrent_clients_share_introspection_and_refresh(app: Running) -> None:
    """Many clients that come with the same rejected token cause one refresh.

    A client that comes before the refresh and one that comes during it do not share the introspection.
    """
    connection = await app.connected()
    first = (await _request(app, connection)).json()["access_token"]
    app.amo.fake.forget(first)
    app.clock.advance(11)
    answers = await asyncio.gather(*(_request(app, connection) for _ in range(50)))
    assert len({answer.json()["access_token"] for answer in answers} - {first}) == 1
    assert first not in {answer.json()["access_token"] for answer in answers}
    assert len(app.amo.fake.ledger.refreshes()) == 1
    assert app.amo.sandbox.introspections in {1, 2}


async def test_client_that_comes_often_is_noticed(app: Running) -> None:
    """The time counts from the first hand-out of a token to the key, not from the last."""
    connection = await app.connected()
    for introspections in (0, 0, 1):
        await _request(app, connection)
        assert app.amo.sandbox.introspections == introspections
        app.clock.advance(6)


async def test_first_hand_out_to_a_key_is_not_introspected(app: Running) -> None:
    """A token that another key was handed long ago is new to this key, and so is the next token."""
    connection = await app.connected()
    for _ in range(3):
        await _request(app, connection)
    app.clock.advance(11)
    await _request(app, connection, secret=ADMIN_KEY)
    assert app.amo.sandbox.introspections == 0
    await app.private(f"/connections/{connection}/refresh", method="POST")
    await _request(app, connection)
    await _request(app, f"account:{app.amo.account.id}")
    assert app.amo.sandbox.introspections == 0


async def test_silent_amo_does_not_take_the_token_away(app: Running) -> None:
    """If AMO does not answer the introspection, the client gets the stored token again, and nothing is refreshed."""
    connection = await app.connected()
    first = (await _request(app, connection)).json()["access_token"]
    app.clock.advance(11)
    app.amo.sandbox.introspection_faults.persistent = Fault.HTTP_500
    assert (await _request(app, connection)).json()["access_token"] == first
    assert app.amo.fake.ledger.refreshes() == []
