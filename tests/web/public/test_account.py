"""The owners of a connection: binding, attacks on the binding, and disconnects."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, BASE, HOST, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, bearer, challenge_of, jwt_of, of, owners

NOTHING = {"connected": False, "hasTokens": False, "domain": None, "accountId": None}


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings."""
    async with run(**WITH_USERS) as running:
        yield running


def _state(user: object) -> str:
    """Return a state with a user id in the existing app's format."""
    return base64.b64encode(json.dumps({"random": "r?>", "userId": user}).encode()).decode()


async def _connect_with_app_state(app: Running, state: str) -> str:
    """Connect as the existing app does, with its own state, and return the code."""
    return of((await app.callback(app.query(state=state))).location)["code"]


def _assert_not_owner(answer: Answer) -> None:
    """Check that the account is connected, and that the caller owns nothing and learns nothing."""
    assert answer.status == 200
    expected = {
        "success": True,
        "data": NOTHING,
        "message": "The account is connected, but not to you.",
    }
    assert answer.json() == expected


# --- regular flows ------------------------------------------------------------------------------


async def test_owner_is_bound_by_jwt_grant_and_verifier(app: Running) -> None:
    """The user who started the grant and has its verifier owns the connection, and may present the code repeatedly."""
    phone = Phone(app, "42")
    code = await phone.connect()
    assert await owners(app) == []
    for _ in range(2):
        answer = await phone.exchange(code)
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert await owners(app) == ["42"]
    account = str(app.amo.account.id)
    assert await phone.status() == {"connected": True, "hasTokens": True, "domain": HOST, "accountId": account}


async def test_owner_is_not_bound_without_code_presented_with_jwt(app: Running) -> None:
    """Until the app presents its code with its user's JWT, the connection has no owner."""
    phone = Phone(app, "42")
    code = await phone.connect()
    assert (await phone.exchange(code, signed=False)).status == 200
    assert await owners(app) == []
    assert await phone.status() == NOTHING


async def test_owner_existing_flow_binds_user_named_in_state(app: Running) -> None:
    """With an app state and no challenge, the user named in the state owns a connection without owners."""
    phone = Phone(app, "42")
    _assert_not_owner(await phone.exchange(await _connect_with_app_state(app, "opaque"), verified=False))
    for state in (_state("42"), _state(42), "opaque"):
        code = await _connect_with_app_state(app, state)
        assert (await phone.exchange(code, verified=False)).json()["data"]["connected"] is True
    assert await owners(app) == ["42"]


async def test_existing_app_without_jwt_gets_result_and_binds_no_owner(app: Running) -> None:
    """Without a JWT, with its own state and extra fields, the existing app gets the result."""
    state = _state("42")
    answer = await app.callback(app.query(state=state))
    assert of(answer.location)["state"] == state
    exchanged = await app.public(
        f"{BASE}/exchange-code", method="POST", json={"code": of(answer.location)["code"], "state": state, "userId": 42}
    )
    assert exchanged.json()["data"]["connected"] is True
    assert await owners(app) == []


async def test_owner_second_user_with_own_grant_is_bound_too(app: Running) -> None:
    """A connection has a set of owners, each with their own grant and its verifier."""
    for user in ("42", "17"):
        phone = Phone(app, user)
        assert (await phone.exchange(await phone.connect())).status == 200
    assert await owners(app) == ["42", "17"]


# --- grant fixation: a link sent to another user --------------------------------------------------


async def test_fixation_link_with_challenge_binds_no_owner(app: Running) -> None:
    """A victim allows access by the attacker's link: the code on the victim's phone binds neither user."""
    attacker, victim = Phone(app, "666"), Phone(app, "42")
    url = (await attacker.start())["authorize_url"]
    code = of((await allow(app, url)).location)["code"]  # on the victim's phone
    for answer in (
        await victim.exchange(code),  # the victim has another verifier
        await victim.exchange(code, verified=False),
    ):
        assert (answer.status, answer.json()["error"]) == (403, "forbidden")
    assert await owners(app) == []
    assert await attacker.status() == NOTHING


async def test_fixation_link_without_challenge_binds_no_owner(app: Running) -> None:
    """The victim's JWT does not name the user of the attacker's grant, so no owner is bound."""
    attacker, victim = Phone(app, "666"), Phone(app, "42")
    code = await attacker.connect(challenged=False)
    _assert_not_owner(await victim.exchange(code, verified=False))
    assert await owners(app) == []


async def test_fixation_plain_link_with_challenge_joins_no_owned_connection(app: Running) -> None:
    """A plain link has no user: its verifier may bind a connection without owners, never an owned one."""
    owner, attacker = Phone(app, "42"), Phone(app, "666")
    await owner.exchange(await owner.connect())

    link = await app.public(
        f"{BASE}/connect?code_challenge={challenge_of(attacker.verifier)}&code_challenge_method=S256"
    )
    code = of((await allow(app, link.location)).location)["code"]
    _assert_not_owner(await attacker.exchange(code))
    assert await owners(app) == ["42"]


# --- interception: the code in another app --------------------------------------------------------


async def test_interception_code_without_verifier_is_403(app: Running) -> None:
    """Another app with the code gets 403, with or without its user's JWT, and with its own verifier or none.

    These requests do not spend the code: the app that started the grant can exchange it afterwards.
    """
    phone, thief = Phone(app, "42"), Phone(app, "666")
    code = await phone.connect()
    for verified in (True, False):
        for signed in (True, False):
            answer = await thief.exchange(code, verified=verified, signed=signed)
            assert (answer.status, answer.json()["error"]) == (403, "forbidden")
            assert HOST not in answer.text
    assert await thief.status() == NOTHING
    assert (await phone.exchange(code)).status == 200
    assert await owners(app) == ["42"]


async def test_interception_code_and_verifier_with_other_jwt_binds_no_owner(app: Running) -> None:
    """An attacker with code and verifier, but without the JWT of the grant's user, becomes no owner."""
    phone, thief = Phone(app, "42"), Phone(app, "666")
    thief.verifier = phone.verifier
    _assert_not_owner(await thief.exchange(await phone.connect()))
    assert await owners(app) == []


async def test_interception_state_of_another_user_binds_no_owner(app: Running) -> None:
    """In the existing flow only the user named in the state may be bound by its code."""
    thief = Phone(app, "666")
    for user in ("42", 42, 666.0, None, True, ["666"], {"id": "666"}):
        code = await _connect_with_app_state(app, _state(user))
        _assert_not_owner(await thief.exchange(code, verified=False))
    assert await owners(app) == []


async def test_interception_verifier_guesses_are_rate_limited(run: Any) -> None:
    """Each wrong verifier keeps a reservation of its address; a right one keeps none."""
    async with run(LIMITS__FAILED_CODES="3", **WITH_USERS) as app:
        phone, thief = Phone(app, "42"), Phone(app, "666")
        code = await phone.connect()
        for _ in range(5):
            assert (await phone.exchange(code)).status == 200
        guesses = [(await thief.exchange(code, signed=False)).status for _ in range(5)]
        assert guesses == [403, 403, 403, 429, 429]
        assert (await phone.exchange(code)).status == 200


# --- replay and re-binding ------------------------------------------------------------------------


async def test_binding_without_challenge_joins_no_owned_connection(app: Running) -> None:
    """Another user with a code of the same account, in any flow without a challenge, becomes no owner."""
    owner, other = Phone(app, "42"), Phone(app, "666")
    await owner.exchange(await owner.connect())
    for code in (
        await _connect_with_app_state(app, "opaque"),
        await _connect_with_app_state(app, _state("666")),
        await other.connect(challenged=False),
    ):
        _assert_not_owner(await other.exchange(code, verified=False))
    assert await owners(app) == ["42"]
    assert await other.status() == NOTHING


async def test_binding_concurrent_codes_bind_one_owner(app: Running) -> None:
    """Of concurrent codes of the existing flow, each naming its own user, one binds an owner."""
    codes = [await _connect_with_app_state(app, _state(user)) for user in range(8)]
    phones = [Phone(app, str(user)) for user in range(8)]
    asking = [phone.exchange(code, verified=False) for phone, code in zip(phones, codes, strict=True)]
    answers = await asyncio.gather(*asking)
    [bound] = [user for user, answer in enumerate(answers) if answer.json()["data"]["connected"]]
    for user, answer in enumerate(answers):
        if user != bound:
            _assert_not_owner(answer)
    assert await owners(app) == [str(bound)]


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_binding_return_link_of_another_user_binds_no_owner(run: Any, mode: str) -> None:
    """An attacker follows a plain link, consents with their own account, and sends the victim the return link.

    The victim's app presents the code with the victim's JWT; the victim must not act in the attacker's account
    afterwards.
    """
    async with run(APP__STATE=mode, **WITH_USERS) as app:
        link = await app.public(f"{BASE}/connect")
        back = await allow(app, link.location)
        victim = Phone(app, "42")
        _assert_not_owner(await victim.exchange(of(back.location)["code"], verified=False))
        assert await owners(app) == []
        assert await victim.status() == NOTHING


async def test_exchange_code_not_owner_gets_own_status(app: Running) -> None:
    """The response has the data of the caller's `status`, and nothing about another user's account."""
    phone = Phone(app, "42")
    await phone.exchange(await phone.connect())
    mine = await phone.status()
    app.amo.account = app.amo.fake.open_account("another.amocrm.ru")
    back = await app.callback(app.query(state="opaque").replace(HOST, "another.amocrm.ru"))
    answer = await phone.exchange(of(back.location)["code"], verified=False)
    assert answer.json() == {
        "success": True,
        "data": mine,
        "message": "The account is connected, but not to you.",
    }


async def test_exchange_code_verifier_without_challenge_is_403(app: Running) -> None:
    """An app with a verifier expects its challenge to apply; an attacker may have removed the challenge."""
    code = await _connect_with_app_state(app, "opaque")
    assert (await Phone(app, "42").exchange(code)).status == 403
    assert await owners(app) == []


async def test_exchange_code_after_20_minutes_is_410(app: Running) -> None:
    """After 20 minutes a code binds no owner."""
    phone = Phone(app, "42")
    code = await phone.connect()
    app.clock.advance(1200)
    assert (await phone.exchange(code)).status == 410
    assert await owners(app) == []


async def test_exchange_code_wrong_verifier_retries_no_failed_grant(app: Running) -> None:
    """A failed grant is retried only for the app with the grant's verifier."""
    phone, thief = Phone(app, "42"), Phone(app, "666")
    url = (await phone.start())["authorize_url"]
    code = app.amo.code()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    await allow(app, url, code=code)
    assert (await thief.exchange(code)).status == 403
    assert app.amo.sandbox.requests == 1
    assert (await phone.exchange(code)).status == 200


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x.y.z", "Basic NDI6", "bearer " + jwt_of("42") + "x", jwt_of("42")],
    ids=["no token", "junk", "another scheme", "a forged signature", "no scheme"],
)
async def test_exchange_code_invalid_jwt_is_401(app: Running, header: str) -> None:
    """An invalid JWT is 401 even if no JWT is required, and AMO is not asked."""
    answer = await app.public(
        f"{BASE}/exchange-code",
        method="POST",
        json={"code": app.amo.code(), "referer": HOST},
        headers={"Authorization": header},
    )
    assert (answer.status, answer.json()["error"]) == (401, "unauthorized")
    assert app.amo.fake.ledger.entries == []


# --- status and disconnect ------------------------------------------------------------------------


async def _disconnect(app: Running, user: str) -> Answer:
    return await app.public(f"{BASE}/disconnect", method="POST", headers=bearer(user))


async def test_disconnect_by_last_owner_erases_tokens(app: Running) -> None:
    """An earlier owner's disconnect changes nothing else; the last one erases the tokens and queues a webhook."""
    app.service.services.store.stores_webhooks = True
    phones = [Phone(app, user) for user in ("42", "17")]
    for phone in phones:
        await phone.exchange(await phone.connect())
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    first = await _disconnect(app, "42")
    assert (first.status, first.json()["data"]) == (200, NOTHING)
    assert await phones[0].status() == NOTHING
    assert await phones[1].is_connected()
    last = await _disconnect(app, "17")
    assert "remove the integration in the account" in last.json()["message"]
    stored = await app.stored(connection.id)
    assert (stored.status, stored.sealed_pair) == ("disconnected", None)
    assert (await app.private(f"/connections/{connection.id}/token")).status == 404
    webhooks = await app.service.services.store.webhooks(limit=9)
    assert (webhooks[-1].type, webhooks[-1].data["owners"]) == ("connection.disconnected", ["17"])
    history = (await app.private(f"/events?connection={connection.id}")).json()["items"]
    assert [event["name"] for event in history][:2] == ["connection.disconnected", "owner.unbound"]


async def test_disconnect_without_connection_is_200(app: Running) -> None:
    """A user who owns nothing gets 200 and an empty status every time."""
    await app.connected()
    for _ in range(2):
        answer = await _disconnect(app, "42")
        assert (answer.status, answer.json()["data"]) == (200, NOTHING)
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 1


async def test_exchange_code_after_disconnect_is_not_connected(app: Running) -> None:
    """A replayed code returns the connection's current status: not connected, and without owners."""
    phone = Phone(app, "42")
    code = await phone.connect()
    await phone.exchange(code)
    await _disconnect(app, "42")
    answer = await phone.exchange(code)
    assert (answer.status, answer.json()["data"]) == (200, NOTHING)
    assert await phone.status() == NOTHING


async def test_disconnect_during_refresh_discards_new_pair(app: Running) -> None:
    """A pair that AMO returns after the user's disconnect is discarded."""
    phone = Phone(app, "42")
    await phone.exchange(await phone.connect())
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    app.clock.advance(10)
    refresh = await app.refreshing(connection.id)
    assert (await _disconnect(app, "42")).status == 200
    app.amo.sandbox.go_on.set()
    assert (await refresh).status == 404
    stored = await app.stored(connection.id)
    assert (stored.status, stored.sealed_pair) == ("disconnected", None)


@pytest.mark.parametrize("what", ["/freeze", "/connections/{}/freeze"])
async def test_disconnect_while_frozen_is_503(app: Running, what: str) -> None:
    """A frozen service or connection may be in use on another host, so the user must try again later."""
    phone = Phone(app, "42")
    await phone.exchange(await phone.connect())
    path = what.format(f"account:{app.amo.account.id}")
    assert (await app.private(path, method="POST", key=ADMIN_KEY)).status == 200
    answer = await _disconnect(app, "42")
    assert (answer.status, answer.json()["error"]) == (503, "amo_unavailable")
    assert await phone.is_connected()


async def test_connect_after_disconnect_binds_new_owner(app: Running) -> None:
    """A disconnected connection has no owner: the next user who connects owns it."""
    first, second = Phone(app, "42"), Phone(app, "17")
    await first.exchange(await first.connect())
    await _disconnect(app, "42")
    app.clock.advance(1)
    assert (await second.exchange(await _connect_with_app_state(app, _state("17")), verified=False)).status == 200
    assert await owners(app) == ["17"]
    assert await first.status() == NOTHING


async def test_status_and_disconnect_without_jwt_are_401(app: Running) -> None:
    """Without a JWT both routes are 401; other methods are 405."""
    for method, path in (("GET", "status"), ("POST", "disconnect")):
        assert (await app.public(f"{BASE}/{path}", method=method)).status == 401
        other = "POST" if method == "GET" else "GET"
        assert (await app.public(f"{BASE}/{path}", method=other, headers=bearer("42"))).status == 405


# --- codes from before a disconnect ---------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
async def test_code_from_before_disconnect_binds_no_owner(app: Running, *, alone: bool) -> None:
    """The code binds no owner, whether another user reconnected the connection or still owns it."""
    first, second = Phone(app, "42"), Phone(app, "17")
    old = await first.connect()
    await first.exchange(old)
    if not alone:
        await second.exchange(await second.connect())
    await _disconnect(app, "42")
    app.clock.advance(1)
    if alone:
        await second.exchange(await second.connect())
    assert await owners(app) == ["17"]
    await first.exchange(old)
    assert await owners(app) == ["17"]


async def test_unpresented_code_from_before_disconnect_binds_no_owner(app: Running) -> None:
    """A code of the existing flow that was not presented binds no owner after its connection's disconnect."""
    first, second = Phone(app, "42"), Phone(app, "17")
    old = await _connect_with_app_state(app, _state("42"))
    await second.exchange(await second.connect())
    await _disconnect(app, "17")
    app.clock.advance(1)
    new = await _connect_with_app_state(app, _state("17"))
    await first.exchange(old, verified=False)
    assert await owners(app) == []
    assert (await second.exchange(new, verified=False)).status == 200
    assert await owners(app) == ["17"]


async def test_owner_named_by_backend_is_bound_once(run: Any) -> None:
    """After a disconnect the owner is not bound again by the grant's code without a JWT and challenge."""
    async with run(**WITH_USERS) as app:
        started = await app.private("/authorizations", method="POST", key=ADMIN_KEY, json={"owner": "42"})
        code = of((await allow(app, started.json()["authorize_url"])).location)["code"]
        other = Phone(app, "17")
        await other.exchange(await other.connect())
        await _disconnect(app, "42")
        assert (await other.exchange(code, verified=False, signed=False)).status == 200
        assert await owners(app) == ["17"]
