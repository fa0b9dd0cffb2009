"""`POST /connections/import`: pairs from another system, by one request."""

import io
from typing import Any

import pytest

from tests.service import ADMIN_KEY, HOST, Answer, Running

PATH = "/connections/import"


async def _import(app: Running, body: Any, key: str = ADMIN_KEY) -> Answer:
    return await app.private(PATH, key=key, method="POST", json=body)


async def _theirs(app: Running) -> dict[str, Any]:
    """Return a pair as another system has it that has connected the account."""
    body = app.amo.request(grant_type="authorization_code", code=app.amo.code())
    async with app.http.post(f"http://{app.amo.address}/{HOST}/oauth2/access_token", json=body) as answer:
        issued = await answer.json()
    return {
        "domain": HOST,
        "access_token": issued["access_token"],
        "refresh_token": issued["refresh_token"],
        "expires_in": issued["expires_in"],
    }


async def test_another_systems_pairs_are_taken_over(app: Running) -> None:
    """They are stored, handed out, kept fresh from then on, and the history tells where they came from."""
    theirs = await _theirs(app)
    answer = await _import(app, {"connections": [theirs]})
    assert (answer.status, answer.json()) == (200, {"new": 1, "replaced": 0, "same": 0, "newer": 0, "left": []})
    account = f"account:{app.amo.account.id}"
    assert (await app.private(f"/connections/{account}/token")).json()["access_token"] == theirs["access_token"]
    app.clock.advance(10)
    refreshed = await app.private(f"/connections/{account}/refresh", method="POST")
    assert (refreshed.status, refreshed.json()["access_token"] != theirs["access_token"]) == (200, True)
    told = (await app.private(f"/events?connection={account}")).json()["items"]
    [imported] = [event for event in told if event["name"] == "connection.imported"]
    assert imported["details"]["source"] == "the API key admin"
    assert "refresh_token" not in str(told)


async def test_the_same_again_changes_nothing(app: Running) -> None:
    """An import whose answer was lost may be sent again."""
    theirs = await _theirs(app)
    for new, same in ((1, 0), (0, 1)):
        told = (await _import(app, {"connections": [theirs]})).json()
        assert (told["new"], told["same"]) == (new, same)


async def test_what_is_here_is_replaced_only_where_that_is_said(app: Running) -> None:
    """Else nothing of the whole request is taken, and each is named by its place, not by what stands there."""
    await app.connected()
    app.clock.advance(1)
    theirs = await _theirs(app)
    refused = await _import(app, {"connections": [theirs]})
    assert (refused.status, refused.json()["code"]) == (400, "invalid_request")
    [problem] = refused.json()["problems"]
    assert problem["place"] == "entry 1"
    assert theirs["access_token"] not in refused.text
    replaced = await _import(app, {"connections": [theirs], "replace": True})
    assert (replaced.status, replaced.json()["replaced"]) == (200, 1)


async def test_one_bad_one_keeps_all_out(app: Running) -> None:
    """Nothing is changed where anything is wrong."""
    theirs = await _theirs(app)
    answer = await _import(app, {"connections": [theirs, {**theirs, "domain": "evil.com"}, {"domain": HOST}]})
    assert (answer.status, [problem["place"] for problem in answer.json()["problems"]]) == (400, ["entry 2", "entry 3"])
    assert (await app.private("/connections")).json()["items"] == []


async def test_nothing_is_replaced_that_is_being_refreshed(app: Running) -> None:
    """The pair that is on its way would be lost, or this one: come again."""
    connection = await app.connected()
    app.clock.advance(1)
    theirs = await _theirs(app)
    refresh = await app.refreshing(connection)
    answer = await _import(app, {"connections": [theirs], "replace": True})
    assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
    app.amo.sandbox.go_on.set()
    assert (await refresh).status == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "connections"),
        ({"connections": []}, "connections"),
        ({"connections": "x"}, "connections"),
        ({"connections": ["x"]}, "connections"),
        ({"connections": [{}], "replace": "yes"}, "replace"),
        ({"connections": [{}], "more": 1}, "more"),
        ([], "body"),
    ],
)
async def test_a_bad_body_is_400_and_the_field_is_named(app: Running, body: Any, field: str) -> None:
    """What is no such JSON is the sender's fault."""
    answer = await _import(app, body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{field}:")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (
            b'{"connections":[' + b",".join([b"{}"] * 1001) + b"]}",
            "connections: 1,001 of them; at most 1,000 connections",
        ),
        (b'{"connections":[' + b",".join([b"{}"] * 349_001) + b"]}", "body: more than 20,000 values; at most 1,000"),
        (b'{"connections":[' + b"0," * 500_000 + b"0]}", "body: more than 20,000 values; at most 1,000"),
        (b'{"connections":[{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}]}", "body: more than 20,000 values"),
        (b'{"connections":[{"a":' + b"[" * 9000 + b"]" * 9000 + b"}]}", "body: the body is"),
        (b'{"connections":[{}],' + b",".join(b'"%d":0' % n for n in range(9000)) + b"}", "0: the body is"),
        (b'{"connections":[{"account_id":' + b"9" * 1_000_000 + b"}]}", "body: the body is"),
    ],
    ids=["1001", "349001", "numbers", "deep", "less deep", "fields", "digits"],
)
async def test_a_body_is_refused_before_what_it_holds_is_looked_at(app: Running, content: bytes, detail: str) -> None:
    """The number of connections, and of values in all, is counted first: no body costs more work than a good one."""
    answer = await app.private(PATH, key=ADMIN_KEY, method="POST", data=content)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(detail)
    assert "problems" not in answer.json()


async def test_a_thousand_come_at_once(app: Running) -> None:
    """As many as the contract says, of the usual length, are one request."""
    theirs = await _theirs(app)
    some = [{**theirs, "access_token": f"opaque-{n}", "refresh_token": f"r{n}", "account_id": n} for n in range(1000)]
    answer = await _import(app, {"connections": some})
    assert (answer.status, answer.json()) == (200, {"new": 1000, "replaced": 0, "same": 0, "newer": 0, "left": []})


async def test_a_body_is_not_endless(app: Running) -> None:
    """Above a mebibyte it is 413: whoever has more takes the command."""
    body = io.BytesIO(b'{"connections": [' + b" " * 1024 * 1024 + b"]}")
    answer = await app.private(PATH, key=ADMIN_KEY, method="POST", data=body)
    assert (answer.status, answer.json()["code"]) == (413, "invalid_request")
