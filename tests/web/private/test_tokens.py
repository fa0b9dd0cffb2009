"""Access-token hand-outs and forced refreshes."""

import asyncio
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, API_KEY, HOST, READ_KEY, Running


async def test_token_response_has_valid_token_times_and_base_url(app: Running) -> None:
    """The response has AMO's newest access token, its times and the account's address."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/token")
    token = answer.json()
    assert app.amo.fake.live_account(token["access_token"]) is app.amo.account
    assert {key: token[key] for key in ("connection_id", "token_type", "account_id", "domain", "base_url")} == {
        "connection_id": connection,
        "token_type": "Bearer",
        "account_id": str(app.amo.account.id),
        "domain": HOST,
        "base_url": app.amo.endpoint.replace("{domain}", HOST),
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", token["expires_at"])
    assert 86_000 <= token["expires_in"] <= 86_400
    assert "refresh_token" not in answer.text
    assert "stale" not in token
    assert answer.headers["Cache-Control"] == "no-store"
    [line] = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert (line["key"], line["connection_id"], line["stale"]) == ("backend", connection, False)


async def test_token_account_selector_names_connection_connected_last(app: Running) -> None:
    """`account:ID` selects the account's connection that was connected last."""
    first = await app.connected()
    app.amo.account.user_id += 1
    app.clock.advance(10)
    second = await app.connected()
    found = (await app.private(f"/connections/account:{app.amo.account.id}/token")).json()["connection_id"]
    assert (found == second, found == first) == (True, False)


async def test_token_below_min_ttl_is_refreshed_once_for_all_callers(run: Any) -> None:
    """A token with less than `min_ttl` left is refreshed first, and once for a hundred concurrent callers."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(701)
        answers = await asyncio.gather(*(app.private(f"/connections/{connection}/token") for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert answers[0].json()["expires_in"] >= 990
        assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_token_young_pair_is_fresh_for_any_min_ttl(run: Any) -> None:
    """AMO's lifetime is limited, so a larger `min_ttl` does not cause a refresh on every request."""
    async with run(lifetimes={"access": 1000}) as app:
        connection = await app.connected()
        for _ in range(3):
            assert (await app.private(f"/connections/{connection}/token?min_ttl=999999999")).status == 200
        assert app.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(Fault.UNPAID, "account_refused"), (Fault.HTTP_500, "outcome_open"), (Fault.TEAPOT, "unknown_refusal")],
)
async def test_token_refresh_failed_valid_token_is_stale(run: Any, fault: Fault, reason: str) -> None:
    """If the refresh fails and the token is valid, it is handed out as stale, and AMO is not asked each time."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(800)
        app.amo.sandbox.faults.add(fault)
        for _ in range(3):
            token = (await app.private(f"/connections/{connection}/token")).json()
            assert (token["stale"], token["reason"]) == (True, reason)
            assert app.amo.fake.live_account(token["access_token"]) is app.amo.account
        assert app.amo.sandbox.requests == 2


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(Fault.UNPAID, 502, "amo_refused"), (Fault.TEAPOT, 503, "amo_unavailable")]
)
async def test_token_expired_is_never_handed_out(run: Any, fault: Fault, status: int, code: str) -> None:
    """Without a valid token the response is a problem with the reason, the same until AMO is asked again."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(fault)
        app.clock.advance(1000)
        await app.witness.until("refresh.failed")
        for _ in range(3):
            answer = await app.private(f"/connections/{connection}/token")
            assert (answer.status, answer.json()["code"]) == (status, code)
            assert 1 <= int(answer.headers["Retry-After"]) <= 900
        assert app.amo.sandbox.requests == 2


async def test_token_rate_limit_paused_valid_token_is_stale_after_8_seconds(run: Any) -> None:
    """While AMO's 429 pauses requests, a valid token is handed out after 8 s, and the refresh continues."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(Fault.TOO_MANY)
        await app.callback(app.query())
        app.clock.advance(800)
        token = (await app.late(app.private(f"/connections/{connection}/token"))).json()
        assert (token["stale"], token["reason"]) == (True, "busy")
        app.amo.sandbox.go_on.set()
        await app.witness.until("refresh.succeeded")


async def test_token_in_needs_reauth_uses_no_rate_limit_slot(run: Any) -> None:
    """Repeated requests for a connection that its user must reconnect use no slot of the rate limit."""
    async with run(AMO__REQUESTS_PER_SECOND="0.001") as app:
        connection = await app.connected()
        app.amo.account.disabled = True
        app.clock.advance(43_200 * 1.2)
        await app.witness.until("connection.needs_reauth")
        app.clock.advance(86_400)
        answers = [await app.private(f"/connections/{connection}/token") for _ in range(10)]
        assert {answer.status for answer in answers} == {409}


async def test_token_in_needs_reauth_is_409_with_reconnect_url(run: Any) -> None:
    """The 409 has reason and address; until the old token expires, it is handed out as stale."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.spend(grant_type="refresh_token", refresh_token=app.amo.fake.ledger.issued[-1])
        app.clock.advance(900)
        token = (await app.private(f"/connections/{connection}/token")).json()
        assert (token["stale"], token["reason"]) == (True, "needs_reauth: revoked")
        app.clock.advance(100)
        for _ in range(2):
            answer = await app.private(f"/connections/{connection}/token")
            assert answer.headers["Content-Type"].startswith("application/problem+json")
            problem = answer.json()
            assert (answer.status, problem["code"], problem["reason"]) == (409, "needs_reauth", "revoked")
            assert problem["reconnect_url"] == "http://127.0.0.1:8080/api/amo-crm/connect"


async def test_token_pair_of_other_client_id_is_503_amo_credentials(run: Any) -> None:
    """A pair of another integration is not presented to AMO."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
    async with run(AMO__CLIENT_ID="another", lifetimes={"access": 1000}) as again:
        again.clock.advance(2000)
        await again.witness.until("refresh.failed")
        answer = await again.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["code"]) == (503, "amo_credentials")
        assert again.amo.fake.ledger.entries == []


async def test_token_unknown_connection_is_404_and_invalid_min_ttl_400(app: Running) -> None:
    """A selector without a connection is 404; `min_ttl` must be one whole number, and the error names it."""
    for selector in ("unknown", "account:1", "owner:42", "account:", "%00", "..%2f..%2fetc", "x" * 5000):
        answer = await app.private(f"/connections/{selector}/token")
        assert (selector, answer.status, answer.json()["code"]) == (selector, 404, "not_found")
    for value in ("-1", "x", "1.5", "", "9999999999", "1&min_ttl=2", "%D9%A3"):
        answer = await app.private(f"/connections/unknown/token?min_ttl={value}")
        assert (value, answer.status, answer.json()["code"]) == (value, 400, "invalid_request")
        assert answer.json()["detail"].startswith("min_ttl: ")


async def test_token_basic_scheme_is_401(app: Running) -> None:
    """Only the Bearer scheme is accepted, in any letter case."""
    connection = await app.connected()
    path = f"/connections/{connection}/token"
    assert (await app.private(path, key=None, headers={"Authorization": f"Basic {API_KEY}"})).status == 401
    assert (await app.private(path, key=None, headers={"Authorization": f"bearer {API_KEY}"})).status == 200


# --- GET /connections/{id}/authorization ----------------------------------------------------------


async def test_authorization_has_token_of_hand_out_in_headers(app: Running) -> None:
    """The 204 has the values of `/token` as headers, and is counted and logged in the same way, without the token."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()
    answer = await app.private(f"/connections/account:{app.amo.account.id}/authorization")
    assert (answer.status, answer.text, answer.headers["Cache-Control"]) == (204, "", "no-store")
    assert {name: value for name, value in answer.headers.items() if name.startswith("X-Amo-")} == {
        "X-Amo-Authorization": f"Bearer {token['access_token']}",
        "X-Amo-Domain": HOST,
        "X-Amo-Base-Url": token["base_url"],
    }
    first, second = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert (second["key"], second["connection_id"], second["stale"]) == ("backend", connection, False)
    assert first.keys() == second.keys()
    assert 'hand_outs_total{outcome="fresh"} 2.0' in (await app.private("/metrics", key=None)).text
    assert token["access_token"] not in app.log.getvalue()


async def test_authorization_below_min_ttl_has_refreshed_token(run: Any) -> None:
    """`min_ttl` has the same meaning as for `/token`."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        before = await app.private(f"/connections/{connection}/authorization")
        app.clock.advance(800)
        same = await app.private(f"/connections/{connection}/authorization?min_ttl=100")
        after = await app.private(f"/connections/{connection}/authorization")
        tokens = [answer.headers["X-Amo-Authorization"] for answer in (before, same, after)]
        assert (tokens[0] == tokens[1], tokens[1] == tokens[2]) == (True, False)
        assert app.amo.fake.live_account(tokens[2].removeprefix("Bearer ")) is app.amo.account


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        ("authorization", None, 401, "unauthorized"),
        ("authorization", "wrong" * 8, 401, "unauthorized"),
        ("authorization", READ_KEY, 403, "forbidden"),
        ("authorization?min_ttl=x", API_KEY, 400, "invalid_request"),
        ("authorization?token=x", API_KEY, 400, "invalid_request"),
        ("authorization", API_KEY, 404, "not_found"),
        ("authorization/x", API_KEY, 404, "not_found"),
    ],
)
async def test_authorization_refused_has_code_in_header(
    app: Running, path: str, key: str | None, status: int, code: str
) -> None:
    """A failure has the status and code that `/token` has, the code also in `X-Amo-Error`, and no other such header."""
    answer = await app.private(f"/connections/unknown/{path}", key=key)
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert {name: value for name, value in answer.headers.items() if name.startswith("X-Amo-")} == {"X-Amo-Error": code}
    assert ("WWW-Authenticate" in answer.headers) is (status in {401, 403})


async def test_authorization_frozen_or_in_needs_reauth_has_no_token(run: Any) -> None:
    """Without a valid token, a frozen connection is 503 with `Retry-After`, and one in `needs_reauth` is 409."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.spend(grant_type="refresh_token", refresh_token=app.amo.fake.ledger.issued[-1])
        await app.private("/freeze", method="POST", key=ADMIN_KEY)
        app.clock.advance(1000)
        frozen = await app.private(f"/connections/{connection}/authorization")
        assert (frozen.status, frozen.headers["X-Amo-Error"]) == (503, "frozen")
        assert int(frozen.headers["Retry-After"]) == app.settings.refresh.retry_cap
        await app.private("/thaw", method="POST", key=ADMIN_KEY)
        await app.witness.until("connection.needs_reauth")
        reauth = await app.private(f"/connections/{connection}/authorization")
        assert (reauth.status, reauth.headers["X-Amo-Error"]) == (409, "needs_reauth")
        assert [answer.headers.get("X-Amo-Authorization") for answer in (frozen, reauth)] == [None, None]


@pytest.mark.parametrize("token", ["line\r\nX-Amo-Base-Url: https://example.com", "tok\u00e9n", "nul\0", "tab\t"])
async def test_authorization_token_that_is_no_header_value_is_unreadable(app: Running, token: str) -> None:
    """A stored access token that is not a valid header value is not sent, and the failure is counted."""
    connection = await app.connected()
    cipher = app.service.services.core.cipher
    pair = cipher.decrypt_pair(await app.stored(connection))
    assert pair is not None
    sealed = cipher.seal_pair(replace(pair, access_token=token), connection_id=connection)
    _write(app, "UPDATE connections SET sealed_pair = ?", sealed)
    app.clock.advance(2)
    assert (await app.private(f"/connections/{connection}/token")).json()["access_token"] == token
    answer = await app.private(f"/connections/{connection}/authorization")
    problem = answer.json()
    assert (answer.status, problem["code"], problem["reason"]) == (409, "needs_reauth", "unreadable")
    assert {"X-Amo-Authorization", "X-Amo-Base-Url"} & set(answer.headers) == set()
    assert 'hand_outs_total{outcome="needs_reauth"} 1.0' in (await app.private("/metrics", key=None)).text


# --- POST /connections/{id}/refresh ---------------------------------------------------------------


async def _token(app: Running, connection: str) -> str:
    return str((await app.private(f"/connections/{connection}/token")).json()["access_token"])


async def test_refresh_returns_new_token_in_shape_of_hand_out(app: Running) -> None:
    """The old token's remaining lifetime does not matter; the log has the key's name, not the token."""
    connection = await app.connected()
    before = (await app.private(f"/connections/{connection}/token")).json()
    answer = await app.private(f"/connections/{connection}/refresh", method="POST")
    after = answer.json()
    assert (answer.status, answer.headers["Cache-Control"], after.keys()) == (200, "no-store", before.keys())
    assert after["access_token"] != before["access_token"]
    assert app.amo.fake.live_account(after["access_token"]) is app.amo.account
    [*_, line] = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert (line["key"], line["connection_id"]) == ("backend", connection)
    assert after["access_token"] not in app.log.getvalue()


async def test_refresh_while_amo_blocked_is_503_until_next_probe(app: Running) -> None:
    """While AMO blocks this server's address, nothing is sent, and readiness fails."""
    connection = await app.connected()
    services = app.service.services
    await services.store.begin_amo_block(connection, probe_every=timedelta(minutes=15))
    await services.lifecycle.breaker.watch()
    sent = app.amo.sandbox.requests
    answer = await app.private(f"/connections/{connection}/refresh", method="POST")
    assert (answer.status, answer.json()["code"]) == (503, "amo_unavailable")
    assert answer.json()["detail"].startswith("AMO blocks this server's IP address")
    assert 880 < int(answer.headers["Retry-After"]) <= 900
    assert app.amo.sandbox.requests == sent
    ready = await app.private("/readyz", key=None)
    assert (ready.status, ready.json()["checks"]["amo_blocked"]["ok"]) == (503, False)
    metrics = await app.private("/metrics", key=None)
    assert "amo_callback_amo_blocked 1.0" in metrics.text


async def test_refresh_rejected_token_selects_its_own_connection(app: Running) -> None:
    """Of an account's connections, the one with the rejected token is refreshed, and found later by its claims."""
    first = await app.connected()
    rejected = await _token(app, first)
    app.amo.account.user_id += 1
    await app.callback(app.query())
    await app.witness.until("connection.connected", times=2)
    path = f"/connections/account:{app.amo.account.id}/refresh"
    for _ in range(2):
        answer = await app.private(path, method="POST", json={"rejected_access_token": rejected})
        assert answer.json()["connection_id"] == first
    assert len(app.amo.fake.ledger.refreshes()) == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.UNPAID, 502, "amo_refused"),
        (Fault.HTTP_500, 503, "amo_unavailable"),
        (Fault.NOT_LINKED, 503, "amo_credentials"),
    ],
)
async def test_refresh_failed_hands_out_no_token(app: Running, fault: Fault, status: int, code: str) -> None:
    """A caller of `refresh` has no use for the old token, even if it is valid; `Retry-After` is set."""
    connection = await app.connected()
    app.amo.sandbox.faults.add(fault)
    for _ in range(2):
        answer = await app.private(f"/connections/{connection}/refresh", method="POST")
        assert (answer.status, answer.json()["code"]) == (status, code)
        assert "access_token" not in answer.text
        assert int(answer.headers["Retry-After"]) >= 1
    assert len(app.amo.fake.ledger.refreshes()) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b'{"rejected_access_token": 7}', "rejected_access_token"),
        (b'{"rejected_access_token": ""}', "rejected_access_token"),
        (b'{"rejected_access_token": "' + b"x" * 20_000 + b'"}', "rejected_access_token"),
        (b'{"token": "x"}', "token"),
    ],
)
async def test_refresh_malformed_body_names_field(app: Running, body: bytes, field: str) -> None:
    """The error has the field's name and none of the body's content, and AMO is not asked."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", data=body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert "xxx" not in answer.text
    assert app.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize("token", ["no JWT at all", "a.b.c", "e.eyJhcGlfZG9tYWluIjogIlx1ZDgwMC5hbW9jcm0ucnUifQ.s"])
async def test_refresh_unknown_rejected_token_returns_stored_token(app: Running, token: str) -> None:
    """A rejected token that is not the stored one causes no refresh."""
    connection = await app.connected()
    body = {"rejected_access_token": token}
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", json=body)
    assert (answer.status, answer.json()["access_token"]) == (200, await _token(app, connection))
    assert app.amo.fake.ledger.refreshes() == []


# --- stored hosts that are not allowed ------------------------------------------------------------


STORED_HOST = "reforyou.crm.example.com"
SETTING = {"AMO__ALLOWED_DOMAINS": ".crm.example.com"}


def _write(app: Running, statement: str, *values: object) -> None:
    """Write to the database without an encryption key."""
    with closing(sqlite3.connect(app.folder / "amo-callback.db")) as database, database:
        database.execute(statement, values)


async def test_token_host_not_allowed_is_503_until_setting_allows_it(run: Any) -> None:
    """The 503 names host and setting, and readiness fails; with the setting, the next start hands out the token."""
    async with run() as app:
        connection = await app.connected()
        _write(app, "UPDATE connections SET domain = ?", STORED_HOST)
        app.clock.advance(2)
        sent = app.amo.sandbox.requests
        paths = {"token": "GET", "refresh": "POST", "token?min_ttl=99999": "GET", "authorization": "GET"}
        for path, method in paths.items():
            answer = await app.private(f"/connections/{connection}/{path}", method=method)
            assert (answer.status, answer.json()["code"]) == (503, "host_not_allowed")
            assert int(answer.headers["Retry-After"]) == app.settings.refresh.retry_cap
            assert STORED_HOST in answer.json()["detail"]
            assert "amo.allowed_domains" in answer.json()["detail"]
        assert app.amo.sandbox.requests == sent
        shown = (await app.private(f"/connections/{connection}", key=ADMIN_KEY)).json()
        assert (shown["status"], shown["last_error"]) == ("active", "host_not_allowed")
        await app.service.services.lifecycle.stats_poller.poll()
        ready = await app.private("/readyz", key=None)
        check = ready.json()["checks"]["hosts"]
        assert (ready.status, check["ok"]) == (503, False)
        assert check["detail"].startswith(
            "1 active connections have hosts that are neither AMO's nor in amo.allowed_domains"
        )
        assert 'outcome="host_not_allowed"} 4.0' in (await app.private("/metrics", key=None)).text
    async with run(**SETTING) as app:
        answer = await app.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["domain"]) == (200, STORED_HOST)
        assert answer.json()["base_url"] == app.amo.endpoint.replace("{domain}", STORED_HOST)
        assert (await app.private("/readyz", key=None)).json()["checks"]["hosts"]["ok"]


async def test_token_malformed_stored_host_is_not_repeated(app: Running) -> None:
    """The stored host may be anything, even a token, so neither response nor detail repeats it."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()["access_token"]
    _write(app, "UPDATE connections SET domain = ?", token)
    app.clock.advance(2)
    for path in ("token", "authorization"):
        answer = await app.private(f"/connections/{connection}/{path}")
        assert (answer.status, answer.headers["X-Amo-Error"]) == (503, "host_not_allowed")
        assert token not in f"{answer.text}{answer.headers}"


async def test_token_of_rows_with_swapped_accounts_is_unreadable(run: Any) -> None:
    """If two rows have each other's account, both are `unreadable` and neither selector hands out a token."""
    async with run() as app:
        await app.connected()
        other = app.amo.fake.open_account("gingersnaps.amocrm.ru")
        code = app.amo.fake.allow(other)
        assert (await app.callback(f"code={code}&state=s&referer={other.host}&platform=1")).status == 302
        await app.witness.until("connection.connected", times=2)
        names = [str(account.id) for account in (app.amo.account, other)]
        for name in names:
            assert (await app.private(f"/connections/account:{name}/token")).status == 200
        _write(app, "UPDATE connections SET account_id = CASE account_id WHEN ? THEN ? ELSE ? END", *names, names[0])
        app.clock.advance(2)
        for name in names:
            answer = await app.private(f"/connections/account:{name}/token")
            problem = answer.json()
            assert (answer.status, problem["code"], problem["reason"]) == (409, "needs_reauth", "unreadable")
        assert app.amo.fake.ledger.refreshes() == []
