"""The private door: who gets a token, how fresh it is, and what is said where there is none."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from tests.conftest import API_KEY, HOST, READ_KEY

if TYPE_CHECKING:
    from tests.conftest import Running


async def test_a_backend_gets_a_live_token_and_where_to_use_it(app: Running) -> None:
    """The token is AMO's newest, with its times and the account's address."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/token")
    token = answer.json()
    assert app.amo.vendor.live_account(token["access_token"]) is app.amo.account
    assert {key: token[key] for key in ("connection_id", "token_type", "account_id", "domain", "base_url")} == {
        "connection_id": connection,
        "token_type": "Bearer",
        "account_id": str(app.amo.account.id),
        "domain": HOST,
        "base_url": app.amo.endpoint.replace("{domain}", HOST),
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", token["expires_at"])
    assert 86_380 <= token["expires_in"] <= 86_400
    assert "refresh_token" not in answer.text
    assert "stale" not in token
    assert answer.headers["Cache-Control"] == "no-store"
    [line] = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert (line["key"], line["connection_id"], line["stale"]) == ("backend", connection, False)


async def test_an_account_is_a_selector(app: Running) -> None:
    """`account:ID` is the account's freshest connection."""
    first = await app.connected()
    app.amo.account.user_id += 1
    app.clock.advance(10)
    second = await app.connected()
    found = (await app.private(f"/connections/account:{app.amo.account.id}/token")).json()["connection_id"]
    assert (found == second, found == first) == (True, False)


async def test_a_token_with_too_little_life_is_refreshed_first(run: Any) -> None:
    """Whoever asks for more life than is left gets a new token, and a hundred at once cause one refresh."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(701)
        answers = await asyncio.gather(*(app.private(f"/connections/{connection}/token") for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert answers[0].json()["expires_in"] >= 990
        assert len(app.amo.vendor.ledger.refreshes()) == 1


async def test_a_young_token_is_fresh_whatever_is_asked_for(run: Any) -> None:
    """AMO gives no longer life than it gives: asking for more does not refresh in a circle."""
    async with run(lives={"access": 1000}) as app:
        connection = await app.connected()
        for _ in range(3):
            assert (await app.private(f"/connections/{connection}/token?min_ttl=999999999")).status == 200
        assert app.amo.vendor.ledger.refreshes() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(Fault.UNPAID, "account_refused"), (Fault.HTTP_500, "outcome_open"), (Fault.TEAPOT, "unknown_refusal")],
)
async def test_a_token_that_lives_is_handed_out_as_stale(run: Any, fault: Fault, reason: str) -> None:
    """Where the refresh fails and the token lives, better this than nothing; AMO is not asked again at once."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(800)
        app.amo.sandbox.faults.add(fault)
        for _ in range(3):
            token = (await app.private(f"/connections/{connection}/token")).json()
            assert (token["stale"], token["reason"]) == (True, reason)
            assert app.amo.vendor.live_account(token["access_token"]) is app.amo.account
        assert app.amo.sandbox.requests == 2


@pytest.mark.parametrize(
    ("fault", "status", "code"), [(Fault.UNPAID, 502, "amo_refused"), (Fault.TEAPOT, 503, "amo_unavailable")]
)
async def test_a_dead_token_is_never_handed_out(run: Any, fault: Fault, status: int, code: str) -> None:
    """Without a live token there is a problem that says why, the same one for as long as AMO is not asked again."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(fault)
        app.clock.advance(1000)
        await app.witness.until("refresh.failed")
        for _ in range(3):
            answer = await app.private(f"/connections/{connection}/token")
            assert (answer.status, answer.json()["code"]) == (status, code)
            assert 1 <= int(answer.headers["Retry-After"]) <= 900
        assert app.amo.sandbox.requests == 2


async def test_a_paused_rate_limit_keeps_no_backend_waiting(run: Any) -> None:
    """While AMO has paused us, a live token is handed out as stale after 8 s, and the refresh goes on alone."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(Fault.TOO_MANY)
        await app.callback(app.query())
        app.clock.advance(800)
        app.amo.sandbox.faults.add(Fault.SLOW)
        asking = asyncio.create_task(app.private(f"/connections/{connection}/token"))
        await app.clock.until_sleeping(8)
        await app.amo.sandbox.until_asked(3)
        app.clock.advance(8)
        token = (await asking).json()
        assert (token["stale"], token["reason"]) == (True, "busy")
        app.amo.sandbox.go_on.set()
        await app.witness.until("refresh.succeeded")


async def test_asking_for_a_dead_connection_costs_amo_nothing(run: Any) -> None:
    """Whoever polls a connection that needs its person takes no slot at the rate limit."""
    async with run(AMO__REQUESTS_PER_SECOND="0.001") as app:
        connection = await app.connected()
        app.amo.account.disabled = True
        app.clock.advance(43_200 * 1.2)
        await app.witness.until("connection.needs_reauth")
        app.clock.advance(86_400)
        answers = [await app.private(f"/connections/{connection}/token") for _ in range(10)]
        assert {answer.status for answer in answers} == {409}


async def test_a_connection_that_needs_its_person_says_where_to_connect(run: Any) -> None:
    """409 with the reason and the address; while the old token lives it is still handed out."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.spend(grant_type="refresh_token", refresh_token=app.amo.vendor.ledger.issued[-1])
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


async def test_wrong_credentials_are_told_as_ours_to_mend(run: Any) -> None:
    """A pair of another integration is not presented: 503 `amo_credentials`."""
    async with run(lives={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
    async with run(AMO__CLIENT_ID="another", lives={"access": 1000}) as again:
        again.clock.advance(2000)
        await again.witness.until("refresh.failed")
        answer = await again.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["code"]) == (503, "amo_credentials")
        assert again.amo.vendor.ledger.entries == []


@pytest.mark.parametrize(
    "selector", ["unknown", "account:1", "owner:42", "account:", "%00", "..%2f..%2fetc", "x" * 5000]
)
async def test_an_unknown_connection_is_404(app: Running, selector: str) -> None:
    """Whatever names nothing."""
    answer = await app.private(f"/connections/{selector}/token")
    assert (answer.status, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("min_ttl", ["-1", "x", "1.5", "", "9999999999", "1&min_ttl=2", "%D9%A3"])
async def test_a_bad_min_ttl_is_400_and_names_the_field(app: Running, min_ttl: str) -> None:
    """Whole seconds, once."""
    answer = await app.private(f"/connections/unknown/token?min_ttl={min_ttl}")
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith("min_ttl: ")


@pytest.mark.parametrize("key", [None, "", "wrong", API_KEY[:-1], API_KEY + "x", f"backend:{API_KEY}", "\xff" * 40])
async def test_a_wrong_key_learns_nothing(app: Running, key: str | None) -> None:
    """The same 401 whether the connection, or even the route, exists."""
    connection = await app.connected()
    answers = [
        await app.private(path, key=key, method=method)
        for path, method in (
            (f"/connections/{connection}/token", "GET"),
            ("/connections/unknown/token", "GET"),
            ("/nowhere", "GET"),
            (f"/connections/{connection}/token", "POST"),
        )
    ]
    assert {(answer.status, answer.text) for answer in answers} == {(401, answers[0].text)}
    assert answers[0].json()["code"] == "unauthorized"
    challenge = 'Bearer realm="amo-callback"' + (', error="invalid_token"' if key else "")
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {challenge}


async def test_a_key_without_the_scope_is_403(app: Running) -> None:
    """A key that may only read takes no token."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/token", key=READ_KEY)
    assert (answer.status, answer.json()["code"], answer.json()["scope"]) == (403, "forbidden", "token")
    challenge = 'Bearer realm="amo-callback", error="insufficient_scope", scope="token"'
    assert answer.headers["WWW-Authenticate"] == challenge


async def test_basic_authentication_is_not_bearer(app: Running) -> None:
    """Only the one scheme, in whatever letters."""
    connection = await app.connected()
    path = f"/connections/{connection}/token"
    assert (await app.private(path, key=None, headers={"Authorization": f"Basic {API_KEY}"})).status == 401
    assert (await app.private(path, key=None, headers={"Authorization": f"bearer {API_KEY}"})).status == 200


async def test_private_routes_are_not_on_the_public_door(app: Running) -> None:
    """An API key means nothing there, and there is nothing there."""
    connection = await app.connected()
    for path in (f"/connections/{connection}/token", "/readyz", "/metrics", "/openapi.json"):
        answer = await app.public(path, headers={"Authorization": f"Bearer {API_KEY}"})
        assert answer.status == 404
    assert (await app.private("/api/amo-crm/callback")).status == 404


async def test_a_wrong_method_or_route_is_a_problem(app: Running) -> None:
    """404 and 405 have the same shape as every other error."""
    answer = await app.private("/nowhere")
    assert (answer.status, answer.json()["code"]) == (404, "not_found")
    answer = await app.private("/connections/x/token", method="POST")
    assert (answer.status, answer.json()["code"], answer.headers["Allow"]) == (405, "invalid_request", "GET")
