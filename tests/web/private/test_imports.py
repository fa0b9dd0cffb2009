"""`POST /connections/import`: token pairs of another system in one request."""

import io
from typing import Any

import pytest

from tests.service import ADMIN_KEY, HOST, Answer, Running

PATH = "/connections/import"


async def _import(app: Running, body: Any, key: str = ADMIN_KEY) -> Answer:
    return await app.private(PATH, key=key, method="POST", json=body)


async def _foreign_pair(app: Running) -> dict[str, Any]:
    """Return a token pair of another system that has connected the account."""
    body = app.amo.request(grant_type="authorization_code", code=app.amo.code())
    async with app.http.post(f"http://{app.amo.address}/{HOST}/oauth2/access_token", json=body) as answer:
        issued = await answer.json()
    return {
        "domain": HOST,
        "access_token": issued["access_token"],
        "refresh_token": issued["refresh_token"],
        "expires_in": issued["expires_in"],
    }


async def test_import_new_pair_is_stored_handed_out_and_refreshed(app: Running) -> None:
    """Imported pairs are refreshed from then on, and the history names their source."""
    theirs = await _foreign_pair(app)
    answer = await _import(app, {"connections": [theirs]})
    assert (answer.status, answer.json()) == (200, {"new": 1, "replaced": 0, "same": 0, "newer": 0, "left": []})
    account = f"account:{app.amo.account.id}"
    assert (await app.private(f"/connections/{account}/token")).json()["access_token"] == theirs["access_token"]
    app.clock.advance(10)
    refreshed = await app.private(f"/connections/{account}/refresh", method="POST")
    assert (refreshed.status, refreshed.json()["access_token"] != theirs["access_token"]) == (200, True)
    events = (await app.private(f"/events?connection={account}")).json()["items"]
    [imported] = [event for event in events if event["name"] == "connection.imported"]
    assert imported["details"]["source"] == "the API key admin"
    assert "refresh_token" not in str(events)


async def test_import_repeated_changes_nothing(app: Running) -> None:
    """An import whose response was lost may be sent again."""
    theirs = await _foreign_pair(app)
    for new, same in ((1, 0), (0, 1)):
        result = (await _import(app, {"connections": [theirs]})).json()
        assert (result["new"], result["same"]) == (new, same)


async def test_import_existing_connection_needs_replace(app: Running) -> None:
    """Without `replace` the whole request is refused, and the error has the entry's position, not its content."""
    await app.connected()
    app.clock.advance(1)
    theirs = await _foreign_pair(app)
    refused = await _import(app, {"connections": [theirs]})
    assert (refused.status, refused.json()["code"]) == (400, "invalid_request")
    [problem] = refused.json()["problems"]
    assert problem["place"] == "entry 1"
    assert theirs["access_token"] not in refused.text
    replaced = await _import(app, {"connections": [theirs], "replace": True})
    assert (replaced.status, replaced.json()["replaced"]) == (200, 1)


async def test_import_invalid_entry_refuses_all_entries(app: Running) -> None:
    """If an entry is invalid, nothing is changed."""
    theirs = await _foreign_pair(app)
    answer = await _import(app, {"connections": [theirs, {**theirs, "domain": "evil.com"}, {"domain": HOST}]})
    assert (answer.status, [problem["place"] for problem in answer.json()["problems"]]) == (400, ["entry 2", "entry 3"])
    assert (await app.private("/connections")).json()["items"] == []


async def test_import_replace_during_refresh_is_503(app: Running) -> None:
    """Either the refreshed or the imported pair would be lost, so the caller must try again later."""
    connection = await app.connected()
    app.clock.advance(1)
    theirs = await _foreign_pair(app)
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
async def test_import_malformed_body_names_field(app: Running, body: Any, field: str) -> None:
    """A body that is not the expected JSON is 400 with the field's name."""
    answer = await _import(app, body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{field}:")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (
            b'{"connections":[' + b",".join([b"{}"] * 1001) + b"]}",
            "connections: 1,001 connections; send at most 1,000 connections",
        ),
        (
            b'{"connections":[' + b",".join([b"{}"] * 349_001) + b"]}",
            "body: more than 20,000 values; send at most 1,000",
        ),
        (b'{"connections":[' + b"0," * 500_000 + b"0]}", "body: more than 20,000 values; send at most 1,000"),
        (b'{"connections":[{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}]}", "body: more than 20,000 values"),
        (b'{"connections":[{"a":' + b"[" * 9000 + b"]" * 9000 + b"}]}", "body: the body must be"),
        (b'{"connections":[{}],' + b",".join(b'"%d":0' % n for n in range(9000)) + b"}", "0: the body must be"),
        (b'{"connections":[{"account_id":' + b"9" * 1_000_000 + b"}]}", "body: the body must be"),
    ],
    ids=["1001", "349001", "numbers", "deep", "less deep", "fields", "digits"],
)
async def test_import_oversized_body_is_refused_before_validation(app: Running, content: bytes, detail: str) -> None:
    """Connections and values are counted first, so that no body costs more work than a valid one."""
    answer = await app.private(PATH, key=ADMIN_KEY, method="POST", data=content)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(detail)
    assert "problems" not in answer.json()


async def test_import_of_1000_connections_is_accepted(app: Running) -> None:
    """One request may hold 1,000 connections of the usual size."""
    theirs = await _foreign_pair(app)
    some = [{**theirs, "access_token": f"opaque-{n}", "refresh_token": f"r{n}", "account_id": n} for n in range(1000)]
    answer = await _import(app, {"connections": some})
    assert (answer.status, answer.json()) == (200, {"new": 1000, "replaced": 0, "same": 0, "newer": 0, "left": []})


async def test_import_body_above_1_mib_is_413(app: Running) -> None:
    """A body above 1 MiB is refused; a larger import uses the command."""
    body = io.BytesIO(b'{"connections": [' + b" " * 1024 * 1024 + b"]}")
    answer = await app.private(PATH, key=ADMIN_KEY, method="POST", data=body)
    assert (answer.status, answer.json()["code"]) == (413, "invalid_request")
