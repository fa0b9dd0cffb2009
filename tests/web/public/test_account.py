"""The owners of a connection: who becomes one, who does not, and how that ends; and AMO's hook."""

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
    """Run the service with users."""
    async with run(**WITH_USERS) as running:
        yield running


def _state(user: object) -> str:
    """Return a state as the existing app makes it."""
    return base64.b64encode(json.dumps({"random": "r?>", "userId": user}).encode()).decode()


async def _own_flow(app: Running, state: str) -> str:
    """Connect as the existing app does, with a state of its own, and return the code."""
    return of((await app.callback(app.query(state=state))).location)["code"]


def _not_to_them(answer: Answer) -> None:
    """Check that the account counts as connected, but not to whoever asked: he owns nothing, and learns nothing."""
    assert answer.status == 200
    told = {"success": True, "data": NOTHING, "message": "The account is connected, but you are not an owner."}
    assert answer.json() == told


# --- the honest way -----------------------------------------------------------------------------


async def test_who_began_and_has_the_verifier_is_the_owner(app: Running) -> None:
    """JWT, grant and verifier belong together: the user owns the connection from then on, however often he asks."""
    phone = Phone(app, "42")
    code = await phone.connect()
    assert await owners(app) == []
    for _ in range(2):
        answer = await phone.exchange(code)
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert await owners(app) == ["42"]
    account = str(app.amo.account.id)
    assert await phone.status() == {"connected": True, "hasTokens": True, "domain": HOST, "accountId": account}


async def test_a_grant_alone_binds_nobody(app: Running) -> None:
    """Until the app presents what its deep link brought, with its user's JWT, the connection is nobody's."""
    phone = Phone(app, "42")
    code = await phone.connect()
    assert (await phone.exchange(code, signed=False)).status == 200
    assert await owners(app) == []
    assert await phone.status() == NOTHING


async def test_the_existing_flow_binds_its_user(app: Running) -> None:
    """With a state of the app's own and no challenge, the user that the state names owns what was nobody's."""
    phone = Phone(app, "42")
    _not_to_them(await phone.exchange(await _own_flow(app, "opaque"), verified=False))
    for state in (_state("42"), _state(42), "opaque"):
        code = await _own_flow(app, state)
        assert (await phone.exchange(code, verified=False)).json()["data"]["connected"] is True
    assert await owners(app) == ["42"]


async def test_the_existing_app_goes_on_as_it_is(app: Running) -> None:
    """No JWT, a state of its own, whatever else in the body: the outcome is told, and nobody is bound."""
    state = _state("42")
    answer = await app.callback(app.query(state=state))
    assert of(answer.location)["state"] == state
    told = await app.public(
        f"{BASE}/exchange-code", method="POST", json={"code": of(answer.location)["code"], "state": state, "userId": 42}
    )
    assert told.json()["data"]["connected"] is True
    assert await owners(app) == []


async def test_two_users_of_one_account_who_prove_it_both_own_it(app: Running) -> None:
    """A connection has a set of owners: each has begun a grant of his own, and has its verifier."""
    for user in ("42", "17"):
        phone = Phone(app, user)
        assert (await phone.exchange(await phone.connect())).status == 200
    assert await owners(app) == ["42", "17"]


# --- grant fixation: a link sent to somebody else -------------------------------------------------


async def test_a_link_sent_to_a_stranger_ties_his_account_to_nobody(app: Running) -> None:
    """The victim allows access by the attacker's link: the code reaches the victim's phone, and binds neither."""
    attacker, victim = Phone(app, "666"), Phone(app, "42")
    url = (await attacker.start())["authorize_url"]
    code = of((await allow(app, url)).location)["code"]  # on the victim's phone
    for answer in (
        await victim.exchange(code),  # his verifier is another one
        await victim.exchange(code, verified=False),
    ):
        assert (answer.status, answer.json()["error"]) == (403, "forbidden")
    assert await owners(app) == []
    assert await attacker.status() == NOTHING


async def test_a_link_without_a_challenge_binds_no_stranger_either(app: Running) -> None:
    """The attacker's grant without a challenge: the victim's JWT is not whose grant it was, and he is told."""
    attacker, victim = Phone(app, "666"), Phone(app, "42")
    code = await attacker.connect(challenged=False)
    _not_to_them(await victim.exchange(code, verified=False))
    assert await owners(app) == []


async def test_a_plain_link_with_somebodys_challenge_proves_nothing(app: Running) -> None:
    """Nobody began it: who has the verifier may have what is nobody's, and never what is somebody's."""
    owner, attacker = Phone(app, "42"), Phone(app, "666")
    await owner.exchange(await owner.connect())

    link = await app.public(
        f"{BASE}/connect?code_challenge={challenge_of(attacker.verifier)}&code_challenge_method=S256"
    )
    code = of((await allow(app, link.location)).location)["code"]
    _not_to_them(await attacker.exchange(code))
    assert await owners(app) == ["42"]


# --- interception: the code in other hands --------------------------------------------------------


async def test_an_intercepted_code_is_worth_nothing_without_its_verifier(app: Running) -> None:
    """Another app has caught the deep link: with its own user's JWT, any verifier or none it gets 403, every time.

    Nothing is burnt by that: the rightful app is served after it.
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


async def test_the_right_verifier_with_another_users_jwt_binds_nobody(app: Running) -> None:
    """Whoever stole both code and verifier has no JWT of the user who began."""
    phone, thief = Phone(app, "42"), Phone(app, "666")
    thief.verifier = phone.verifier
    _not_to_them(await thief.exchange(await phone.connect()))
    assert await owners(app) == []


async def test_a_state_that_names_another_user_keeps_the_thief_out(app: Running) -> None:
    """In the existing flow, the user that the state names is the only one who may be bound by its code."""
    thief = Phone(app, "666")
    for user in ("42", 42, 666.0, None, True, ["666"], {"id": "666"}):
        code = await _own_flow(app, _state(user))
        _not_to_them(await thief.exchange(code, verified=False))
    assert await owners(app) == []


async def test_guessing_verifiers_comes_to_an_end(run: Any) -> None:
    """Each wrong one keeps its address's place; right ones take none."""
    async with run(LIMITS__FAILED_CODES="3", **WITH_USERS) as app:
        phone, thief = Phone(app, "42"), Phone(app, "666")
        code = await phone.connect()
        for _ in range(5):
            assert (await phone.exchange(code)).status == 200
        guesses = [(await thief.exchange(code, signed=False)).status for _ in range(5)]
        assert guesses == [403, 403, 403, 429, 429]
        assert (await phone.exchange(code)).status == 200


# --- replay and re-binding ------------------------------------------------------------------------


async def test_a_code_never_rebinds_what_is_owned(app: Running) -> None:
    """Another user with a code of the same account, by whatever flow without a challenge, does not become an owner."""
    owner, other = Phone(app, "42"), Phone(app, "666")
    await owner.exchange(await owner.connect())
    for code in (
        await _own_flow(app, "opaque"),
        await _own_flow(app, _state("666")),
        await other.connect(challenged=False),
    ):
        _not_to_them(await other.exchange(code, verified=False))
    assert await owners(app) == ["42"]
    assert await other.status() == NOTHING


async def test_of_those_who_come_at_once_one_is_bound(app: Running) -> None:
    """Codes of one account by the existing flow, each naming its own user: one has it, the others are told."""
    codes = [await _own_flow(app, _state(user)) for user in range(8)]
    phones = [Phone(app, str(user)) for user in range(8)]
    asking = [phone.exchange(code, verified=False) for phone, code in zip(phones, codes, strict=True)]
    answers = await asyncio.gather(*asking)
    [bound] = [user for user, answer in enumerate(answers) if answer.json()["data"]["connected"]]
    for user, answer in enumerate(answers):
        if user != bound:
            _not_to_them(answer)
    assert await owners(app) == [str(bound)]


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_a_return_link_sent_to_somebody_else_binds_them_to_nothing(run: Any, mode: str) -> None:
    """The attacker follows a plain link, consents with an account of his own, and sends the victim the link back.

    The victim's app opens and posts the code with the victim's JWT: whatever he does then is not done in the
    attacker's account.
    """
    async with run(APP__STATE=mode, **WITH_USERS) as app:
        link = await app.public(f"{BASE}/connect")
        back = await allow(app, link.location)
        victim = Phone(app, "42")
        _not_to_them(await victim.exchange(of(back.location)["code"], verified=False))
        assert await owners(app) == []
        assert await victim.status() == NOTHING


async def test_whoever_owns_another_account_is_told_of_that_one(app: Running) -> None:
    """The answer tells what `/status` tells him: never a word of an account that is not his."""
    phone = Phone(app, "42")
    await phone.exchange(await phone.connect())
    mine = await phone.status()
    app.amo.account = app.amo.fake.open_account("another.amocrm.ru")
    back = await app.callback(app.query(state="opaque").replace(HOST, "another.amocrm.ru"))
    answer = await phone.exchange(of(back.location)["code"], verified=False)
    assert answer.json() == {
        "success": True,
        "data": mine,
        "message": "The account is connected, but you are not an owner.",
    }


async def test_a_verifier_that_nobody_asked_for_does_not_fit(app: Running) -> None:
    """An app that sends its verifier expects its challenge to be asked for: somebody took it away on the way."""
    code = await _own_flow(app, "opaque")
    assert (await Phone(app, "42").exchange(code)).status == 403
    assert await owners(app) == []


async def test_a_replay_after_its_time_is_told_as_expired(app: Running) -> None:
    """After 20 minutes a code binds nobody any more."""
    phone = Phone(app, "42")
    code = await phone.connect()
    app.clock.advance(1200)
    assert (await phone.exchange(code)).status == 410
    assert await owners(app) == []


async def test_a_wrong_verifier_has_nothing_tried_for_it(app: Running) -> None:
    """A failed grant is tried again for who proves to be where it began, and for nobody else."""
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
async def test_a_bad_jwt_is_never_ignored(app: Running, header: str) -> None:
    """Also where none is needed, a JWT that is not the app's is 401, and AMO is not asked."""
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


async def test_the_last_owner_who_leaves_takes_the_tokens_along(app: Running) -> None:
    """One who is not the last leaves the rest as it is; with the last one the tokens are erased, and it is told."""
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
    assert "remove the integration there" in last.json()["message"]
    stored = await app.stored(connection.id)
    assert (stored.status, stored.sealed_pair) == ("disconnected", None)
    assert (await app.private(f"/connections/{connection.id}/token")).status == 404
    webhooks = await app.service.services.store.webhooks(limit=9)
    assert (webhooks[-1].type, webhooks[-1].data["owners"]) == ("connection.disconnected", ["17"])
    history = (await app.private(f"/events?connection={connection.id}")).json()["items"]
    assert [event["name"] for event in history][:2] == ["connection.disconnected", "owner.unbound"]


async def test_disconnecting_nothing_is_no_error(app: Running) -> None:
    """Who owns nothing is told that nothing is connected, as often as he asks."""
    await app.connected()
    for _ in range(2):
        answer = await _disconnect(app, "42")
        assert (answer.status, answer.json()["data"]) == (200, NOTHING)
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 1


async def test_a_replay_after_disconnecting_brings_nothing_back(app: Running) -> None:
    """The code's outcome is told with the connection's status now: not connected, and nobody's."""
    phone = Phone(app, "42")
    code = await phone.connect()
    await phone.exchange(code)
    await _disconnect(app, "42")
    answer = await phone.exchange(code)
    assert (answer.status, answer.json()["data"]) == (200, NOTHING)
    assert await phone.status() == NOTHING


async def test_a_refresh_under_way_does_not_undo_a_disconnect(app: Running) -> None:
    """AMO answers after the user has left: the pair is dropped."""
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
async def test_nothing_is_erased_while_frozen(app: Running, what: str) -> None:
    """What is frozen may live elsewhere, also where it alone is: the user is asked to come again."""
    phone = Phone(app, "42")
    await phone.exchange(await phone.connect())
    path = what.format(f"account:{app.amo.account.id}")
    assert (await app.private(path, method="POST", key=ADMIN_KEY)).status == 200
    answer = await _disconnect(app, "42")
    assert (answer.status, answer.json()["error"]) == (503, "amo_unavailable")
    assert await phone.is_connected()


async def test_connecting_again_after_a_disconnect_binds_anew(app: Running) -> None:
    """What was forgotten is nobody's: whoever connects it next owns it."""
    first, second = Phone(app, "42"), Phone(app, "17")
    await first.exchange(await first.connect())
    await _disconnect(app, "42")
    app.clock.advance(1)
    assert (await second.exchange(await _own_flow(app, _state("17")), verified=False)).status == 200
    assert await owners(app) == ["17"]
    assert await first.status() == NOTHING


async def test_status_and_disconnect_are_the_users_own(app: Running) -> None:
    """Without a JWT both are 401; other methods are 405."""
    for method, path in (("GET", "status"), ("POST", "disconnect")):
        assert (await app.public(f"{BASE}/{path}", method=method)).status == 401
        other = "POST" if method == "GET" else "GET"
        assert (await app.public(f"{BASE}/{path}", method=other, headers=bearer("42"))).status == 405


# --- codes of before a disconnect -----------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
async def test_a_code_of_before_a_disconnect_binds_no_more(app: Running, *, alone: bool) -> None:
    """Whether the connection went with its last owner and another user made it anew, or others own it yet."""
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


async def test_an_unbound_code_of_before_a_disconnect_does_not_take_what_came_after_it(app: Running) -> None:
    """A code of the existing flow that nobody has presented binds nobody once its connection was forgotten."""
    first, second = Phone(app, "42"), Phone(app, "17")
    old = await _own_flow(app, _state("42"))
    await second.exchange(await second.connect())
    await _disconnect(app, "17")
    app.clock.advance(1)
    new = await _own_flow(app, _state("17"))
    await first.exchange(old, verified=False)
    assert await owners(app) == []
    assert (await second.exchange(new, verified=False)).status == 200
    assert await owners(app) == ["17"]


async def test_a_vouched_owner_is_bound_by_the_end_of_his_grant_and_not_again(run: Any) -> None:
    """Who has left is not bound anew by whoever presents the code, without a JWT, of a grant without a challenge."""
    async with run(**WITH_USERS) as app:
        started = await app.private("/authorizations", method="POST", key=ADMIN_KEY, json={"owner": "42"})
        code = of((await allow(app, started.json()["authorize_url"])).location)["code"]
        other = Phone(app, "17")
        await other.exchange(await other.connect())
        await _disconnect(app, "42")
        assert (await other.exchange(code, verified=False, signed=False)).status == 200
        assert await owners(app) == ["17"]
