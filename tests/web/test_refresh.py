"""`POST /connections/{id}/refresh`: a new token now, and never a stale one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from tests.conftest import READ_KEY

if TYPE_CHECKING:
    from tests.conftest import Running


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
    assert app.amo.vendor.live_account(after["access_token"]) is app.amo.account
    [*_, line] = [line for line in app.lines() if line["event"] == "token.handed_out"]
    assert (line["key"], line["connection_id"]) == ("backend", connection)
    assert after["access_token"] not in app.log.getvalue()


async def test_while_amo_blocks_our_address_a_refresh_is_unavailable_until_the_next_probe(app: Running) -> None:
    """503 `amo_unavailable` with the time of the next probe, nothing is sent, and readiness is red."""
    connection = await app.connected()
    services = app.service.services
    await services.store.begin_amo_block(connection, probe_every=timedelta(minutes=15))
    await services.custody.breaker.watch()
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


async def test_a_hundred_backends_that_got_401_cause_one_refresh(app: Running) -> None:
    """They all present the same rejected token, some of them late, and all get the same new one."""
    connection = await app.connected()
    rejected = await _token(app, connection)
    body = {"rejected_access_token": rejected}

    async def refresh() -> Any:
        return await app.private(f"/connections/{connection}/refresh", method="POST", json=body)

    answers = await asyncio.gather(*(refresh() for _ in range(100)))
    answers.append(await refresh())
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json()["access_token"] for answer in answers}) == 1
    assert len(app.amo.vendor.ledger.refreshes()) == 1


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
    assert len(app.amo.vendor.ledger.refreshes()) == 1


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
    assert len(app.amo.vendor.ledger.refreshes()) == 1


async def test_a_dead_connection_is_told_as_that(app: Running) -> None:
    """409, with the reason and where to connect again."""
    connection = await app.connected()
    app.amo.account.disabled = True
    answer = await app.private(f"/connections/{connection}/refresh", method="POST")
    assert (answer.status, answer.json()["code"], answer.json()["reason"]) == (409, "needs_reauth", "revoked")
    assert answer.json()["reconnect_url"] == "http://127.0.0.1:8080/api/amo-crm/connect"


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
    assert app.amo.vendor.ledger.refreshes() == []


@pytest.mark.parametrize("token", ["no JWT at all", "a.b.c", "e.eyJhcGlfZG9tYWluIjogIlx1ZDgwMC5hbW9jcm0ucnUifQ.s"])
async def test_a_rejected_token_that_is_none_of_ours_gets_the_stored_one(app: Running, token: str) -> None:
    """It is no longer the stored one, whatever it was: nothing is refreshed."""
    connection = await app.connected()
    body = {"rejected_access_token": token}
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", json=body)
    assert (answer.status, answer.json()["access_token"]) == (200, await _token(app, connection))
    assert app.amo.vendor.ledger.refreshes() == []


async def test_a_key_that_may_only_read_does_not_refresh(app: Running) -> None:
    """The scope is `token`; and what does not exist is 404 to who may ask."""
    connection = await app.connected()
    answer = await app.private(f"/connections/{connection}/refresh", method="POST", key=READ_KEY)
    assert (answer.status, answer.json()["code"]) == (403, "forbidden")
    for unknown in ("unknown", "account:", "account:1"):
        assert (await app.private(f"/connections/{unknown}/refresh", method="POST")).status == 404
    assert app.amo.vendor.ledger.refreshes() == []
