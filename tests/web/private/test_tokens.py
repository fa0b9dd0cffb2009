"""Hand-outs and refreshes: who gets a token, how fresh it is, and the answer where there is none."""

import asyncio
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, API_KEY, HOST, Running


async def test_a_backend_gets_a_live_token_and_where_to_use_it(app: Running) -> None:
    """The token is AMO's newest, with its times and the account's address."""
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
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.clock.advance(701)
        answers = await asyncio.gather(*(app.private(f"/connections/{connection}/token") for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert answers[0].json()["expires_in"] >= 990
        assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_a_young_token_is_fresh_whatever_is_asked_for(run: Any) -> None:
    """AMO gives no longer life than it gives: asking for more does not refresh in a circle."""
    async with run(lifetimes={"access": 1000}) as app:
        connection = await app.connected()
        for _ in range(3):
            assert (await app.private(f"/connections/{connection}/token?min_ttl=999999999")).status == 200
        assert app.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(Fault.UNPAID, "account_refused"), (Fault.HTTP_500, "outcome_open"), (Fault.TEAPOT, "unknown_refusal")],
)
async def test_a_token_that_lives_is_handed_out_as_stale(run: Any, fault: Fault, reason: str) -> None:
    """Where the refresh fails and the token lives, better this than nothing; AMO is not asked again at once."""
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
async def test_a_dead_token_is_never_handed_out(run: Any, fault: Fault, status: int, code: str) -> None:
    """Without a live token there is a problem that says why, the same one for as long as AMO is not asked again."""
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


async def test_a_paused_rate_limit_keeps_no_backend_waiting(run: Any) -> None:
    """While AMO has paused us, a live token is handed out as stale after 8 s, and the refresh goes on alone."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
        app.amo.sandbox.faults.add(Fault.TOO_MANY)
        await app.callback(app.query())
        app.clock.advance(800)
        token = (await app.late(app.private(f"/connections/{connection}/token"))).json()
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


async def test_wrong_credentials_are_told_as_ours_to_mend(run: Any) -> None:
    """A pair of another integration is not presented: 503 `amo_credentials`."""
    async with run(lifetimes={"access": 1000}, REFRESH__AT="0.99", REFRESH__JITTER="0") as app:
        connection = await app.connected()
    async with run(AMO__CLIENT_ID="another", lifetimes={"access": 1000}) as again:
        again.clock.advance(2000)
        await again.witness.until("refresh.failed")
        answer = await again.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["code"]) == (503, "amo_credentials")
        assert again.amo.fake.ledger.entries == []


async def test_an_unknown_connection_is_404_and_a_bad_min_ttl_400(app: Running) -> None:
    """Whatever names nothing; `min_ttl` is whole seconds, once, and named in the answer."""
    for selector in ("unknown", "account:1", "owner:42", "account:", "%00", "..%2f..%2fetc", "x" * 5000):
        answer = await app.private(f"/connections/{selector}/token")
        assert (selector, answer.status, answer.json()["code"]) == (selector, 404, "not_found")
    for value in ("-1", "x", "1.5", "", "9999999999", "1&min_ttl=2", "%D9%A3"):
        answer = await app.private(f"/connections/unknown/token?min_ttl={value}")
        assert (value, answer.status, answer.json()["code"]) == (value, 400, "invalid_request")
        assert answer.json()["detail"].startswith("min_ttl: ")


async def test_basic_authentication_is_not_bearer(app: Running) -> None:
    """Only the one scheme, in whatever letters."""
    connection = await app.connected()
    path = f"/connections/{connection}/token"
    assert (await app.private(path, key=None, headers={"Authorization": f"Basic {API_KEY}"})).status == 401
    assert (await app.private(path, key=None, headers={"Authorization": f"bearer {API_KEY}"})).status == 200


# --- POST /connections/{id}/refresh ---------------------------------------------------------------


async def _token(app: Running, connection: str) -> str:
    return str((await app.private(f"/connections/{connection}/token")).json()["access_token"])


async def test_a_refresh_brings_a_new_token_in_the_shape_of_a_hand_out(app: Running) -> None:
    """Whatever life the old one had left; who asked is in the log, the token is not."""
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


async def test_while_amo_blocks_our_address_a_refresh_is_unavailable_until_the_next_probe(app: Running) -> None:
    """503 `amo_unavailable` with the time of the next probe, nothing is sent, and readiness is red."""
    connection = await app.connected()
    services = app.service.services
    await services.store.begin_amo_block(connection, probe_every=timedelta(minutes=15))
    await services.lifecycle.breaker.watch()
    sent = app.amo.sandbox.requests
    answer = await app.private(f"/connections/{connection}/refresh", method="POST")
    assert (answer.status, answer.json()["code"]) == (503, "amo_unavailable")
    assert answer.json()["detail"].startswith("AMO blocks the address of this server")
    assert 880 < int(answer.headers["Retry-After"]) <= 900
    assert app.amo.sandbox.requests == sent
    ready = await app.private("/readyz", key=None)
    assert (ready.status, ready.json()["checks"]["amo_blocked"]["ok"]) == (503, False)
    metrics = await app.private("/metrics", key=None)
    assert "amo_callback_amo_blocked 1.0" in metrics.text


async def test_a_rejected_token_selects_its_own_connection(app: Running) -> None:
    """Of an account's two connections the one is refreshed whose token was rejected; later, by what the token tells."""
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
async def test_a_refresh_that_fails_hands_nothing_out(app: Running, fault: Fault, status: int, code: str) -> None:
    """Though the old token lives: whoever asks for a new one has no use for it. When to come again is told."""
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
async def test_a_bad_body_is_refused_by_its_fields_name(app: Running, body: bytes, field: str) -> None:
    """And nothing of it is told back, nor AMO asked."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", data=body)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert "xxx" not in answer.text
    assert app.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize("token", ["no JWT at all", "a.b.c", "e.eyJhcGlfZG9tYWluIjogIlx1ZDgwMC5hbW9jcm0ucnUifQ.s"])
async def test_a_rejected_token_that_is_none_of_ours_gets_the_stored_one(app: Running, token: str) -> None:
    """It is no longer the stored one, whatever it was: nothing is refreshed."""
    connection = await app.connected()
    body = {"rejected_access_token": token}
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", json=body)
    assert (answer.status, answer.json()["access_token"]) == (200, await _token(app, connection))
    assert app.amo.fake.ledger.refreshes() == []


# --- stored hosts that are not allowed ------------------------------------------------------------


OURS = "reforyou.crm.example.com"
SETTING = {"AMO__ALLOWED_DOMAINS": ".crm.example.com"}


def _write(app: Running, statement: str, *values: object) -> None:
    """Write the database as somebody does who has no encryption key."""
    with closing(sqlite3.connect(app.folder / "amo-callback.db")) as database, database:
        database.execute(statement, values)


async def test_a_token_is_kept_back_until_the_setting_allows_the_host(run: Any) -> None:
    """503 that names host and setting, and red readiness; the setting heals it at the next start."""
    async with run() as app:
        connection = await app.connected()
        _write(app, "UPDATE connections SET domain = ?", OURS)
        app.clock.advance(2)
        sent = app.amo.sandbox.requests
        for path, method in (("token", "GET"), ("refresh", "POST"), ("token?min_ttl=99999", "GET")):
            answer = await app.private(f"/connections/{connection}/{path}", method=method)
            assert (answer.status, answer.json()["code"]) == (503, "host_not_allowed")
            assert int(answer.headers["Retry-After"]) == app.settings.refresh.retry_cap
            assert OURS in answer.json()["detail"]
            assert "amo.allowed_domains" in answer.json()["detail"]
        assert app.amo.sandbox.requests == sent
        shown = (await app.private(f"/connections/{connection}", key=ADMIN_KEY)).json()
        assert (shown["status"], shown["last_error"]) == ("active", "host_not_allowed")
        await app.service.services.lifecycle.stats_poller.poll()
        ready = await app.private("/readyz", key=None)
        check = ready.json()["checks"]["hosts"]
        assert (ready.status, check["ok"]) == (503, False)
        assert "amo.allowed_domains: 1. " in check["detail"]
        assert 'outcome="host_not_allowed"} 3.0' in (await app.private("/metrics", key=None)).text
    async with run(**SETTING) as app:
        answer = await app.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["domain"]) == (200, OURS)
        assert answer.json()["base_url"] == app.amo.endpoint.replace("{domain}", OURS)
        assert (await app.private("/readyz", key=None)).json()["checks"]["hosts"]["ok"]


async def test_the_stored_host_is_not_repeated_where_it_is_none(app: Running) -> None:
    """What was written there may be anything, a token too: no answer and no detail repeats it."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()["access_token"]
    _write(app, "UPDATE connections SET domain = ?", token)
    app.clock.advance(2)
    answer = await app.private(f"/connections/{connection}/token")
    assert (answer.status, answer.json()["code"]) == (503, "host_not_allowed")
    assert token not in answer.text


async def test_a_backend_gets_no_other_accounts_token_from_swapped_rows(run: Any) -> None:
    """Two rows whose accounts were exchanged: both are `unreadable`, and neither name hands out a token."""
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
            told = answer.json()
            assert (answer.status, told["code"], told["reason"]) == (409, "needs_reauth", "unreadable")
        assert app.amo.fake.ledger.refreshes() == []
