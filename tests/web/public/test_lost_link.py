"""`POST {base}/exchange-code` with a state and its verifier: the app claims a connection whose deep link was lost."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, BASE, HOST, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, bearer, challenge_of, of, owners

PATH = f"{BASE}/exchange-code"


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings."""
    async with run(**WITH_USERS) as running:
        yield running


async def _claim(phone: Phone, state: str, **more: Any) -> Answer:
    """Ask for the result of an authorization request, at most once a second."""
    phone.app.clock.advance(1)
    body = {"state": state, "code_verifier": phone.verifier, **more}
    headers = bearer(phone.user) if phone.user else {}
    return await phone.app.public(PATH, method="POST", json=body, headers=headers)


def _error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]


@pytest.mark.parametrize("own", ["", "the app's own state", "й?&="])
async def test_lost_link_is_claimed_by_state_and_verifier(app: Running, own: str) -> None:
    """While AMO has not redirected, the answer is `pending`; then the user gets the result and owns the connection."""
    phone = Phone(app, "42")
    started = await (phone.start(state=own) if own else phone.start())
    assert not own or started["state"] == own
    for _ in range(2):
        answer = await _claim(phone, started["state"])
        assert (*_error(answer), answer.headers["Retry-After"]) == (404, "pending", "2")
    await allow(app, started["authorize_url"])
    for _ in range(2):
        answer = await _claim(phone, started["state"])
        assert (answer.status, answer.json()["data"]["connected"]) == (200, True)
    assert await owners(app) == ["42"]
    assert await phone.is_connected()
    assert len(app.amo.fake.ledger.entries) == 1


async def test_lost_link_of_backend_request_is_claimed_by_its_owner(app: Running) -> None:
    """The owner for whom a backend started the request claims it with their own JWT."""
    phone = Phone(app, "42")
    body = {"owner": 42, "code_challenge": challenge_of(phone.verifier), "code_challenge_method": "S256"}
    started = (await app.private("/authorizations", method="POST", json=body, key=ADMIN_KEY)).json()
    await allow(app, started["authorize_url"])
    assert (await _claim(phone, started["state"])).status == 200
    assert await owners(app) == ["42"]


async def test_lost_link_without_jwt_is_401(app: Running) -> None:
    """A state is a name, not a proof of identity: without the user's JWT, the answer is 401."""
    phone = Phone(app, "42")
    started = await phone.start()
    phone.user = ""
    assert _error(await _claim(phone, started["state"])) == (401, "unauthorized")


async def test_lost_link_of_another_user_or_without_challenge_is_not_found(app: Running) -> None:
    """Another user's state, an unknown one, and one without a challenge are the same 404."""
    phone, thief = Phone(app, "42"), Phone(app, "666")
    started, plain = await phone.start(), await phone.start(challenged=False)
    thief.verifier = phone.verifier
    await allow(app, started["authorize_url"])
    link = await app.public(f"{BASE}/connect?code_challenge={challenge_of(phone.verifier)}&code_challenge_method=S256")
    for one, state in (
        (thief, started["state"]),
        (phone, plain["state"]),
        (phone, "ac1.unknown"),
        (phone, ""),
        (phone, of(link.location)["state"]),
    ):
        assert _error(await _claim(one, state)) == (404, "not_found")
    assert await owners(app) == []


@pytest.mark.parametrize("returned", [False, True])
async def test_lost_link_wrong_verifier_is_403_and_limited(run: Any, *, returned: bool) -> None:
    """A wrong verifier is 403, before and after AMO's redirect, and counts as a failed code; a right one does not."""
    async with run(**WITH_USERS, LIMITS__FAILED_CODES=3) as app:
        phone = Phone(app, "42")
        started = await phone.start()
        if returned:
            await allow(app, started["authorize_url"])
        for _ in range(3):
            assert _error(await _claim(phone, started["state"], code_verifier="w" * 43)) == (403, "forbidden")
        assert _error(await _claim(phone, started["state"])) == (429, "rate_limited")
        app.clock.advance(60)
        for _ in range(4):
            answer = await _claim(phone, started["state"])
            assert answer.status == 200 if returned else _error(answer) == (404, "pending")
    assert phone.verifier not in app.log.getvalue()


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("error=access_denied", "access_denied"),
        ("error=server_error", "auth_failed"),
        ("code=abc&referer=evil.example", "account_not_allowed"),
    ],
)
async def test_lost_link_of_refused_redirect_has_its_error_for_a_day(app: Running, query: str, error: str) -> None:
    """The error of AMO's redirect is the answer for a day, although the verifier is erased after 30 minutes."""
    phone = Phone(app, "42")
    started = await phone.start()
    await app.callback(f"{query}&state={quote(of(started['authorize_url'])['state'])}")
    for later in (0, 31 * 60, 23 * 3600):
        app.clock.advance(later)
        assert _error(await _claim(phone, started["state"])) == (400, error)
        await app.service.services.store.prune(now=app.clock.now(), keep=86_400)
    app.clock.advance(3600)
    await app.service.services.store.prune(now=app.clock.now(), keep=86_400)
    assert _error(await _claim(phone, started["state"])) == (404, "not_found")


async def test_refused_redirect_leaves_state_valid(app: Running) -> None:
    """A user who goes back after a refusal and allows access is connected, and the error is no longer the answer."""
    phone = Phone(app, "42")
    started = await phone.start()
    await app.callback(f"error=access_denied&state={of(started['authorize_url'])['state']}")
    assert "code" in of((await allow(app, started["authorize_url"])).location)
    await app.callback(f"error=access_denied&state={of(started['authorize_url'])['state']}")
    assert (await _claim(phone, started["state"])).json()["data"]["connected"] is True


async def test_lost_link_of_refused_code_has_its_error(app: Running) -> None:
    """A code that AMO refused is answered with its error for as long as the grant is stored."""
    phone = Phone(app, "42")
    started = await phone.start()
    await allow(app, started["authorize_url"], code="junk")
    for later in (0, 21 * 60):
        app.clock.advance(later)
        assert _error(await _claim(phone, started["state"])) == (400, "auth_failed")


async def test_lost_link_of_failed_exchange_is_retried(app: Running) -> None:
    """After a temporary failure of the exchange, claiming the link exchanges the same code again."""
    phone = Phone(app, "42")
    started = await phone.start()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    await allow(app, started["authorize_url"])
    assert (await _claim(phone, started["state"])).json()["data"]["domain"] == HOST
    assert await owners(app) == ["42"]


async def test_lost_link_without_result_in_time_is_410(app: Running) -> None:
    """An authorization request without a result expires after 30 minutes, and a result 20 minutes after its code."""
    phone = Phone(app, "42")
    unused, used = await phone.start(), await phone.start()
    await allow(app, used["authorize_url"])
    app.clock.advance(20 * 60)
    assert _error(await _claim(phone, used["state"])) == (410, "code_expired")
    app.clock.advance(10 * 60)
    assert _error(await _claim(phone, unused["state"])) == (410, "code_expired")


async def test_lost_link_is_asked_at_most_once_a_second(app: Running) -> None:
    """A second question within a second is 429, whatever its state; another user is not affected."""
    phone, other = Phone(app, "42"), Phone(app, "17")
    started = await phone.start()
    body = {"state": started["state"], "code_verifier": phone.verifier}
    assert _error(await _claim(phone, started["state"])) == (404, "pending")
    for state in (started["state"], "ac1.unknown"):
        answer = await app.public(PATH, method="POST", json={**body, "state": state}, headers=bearer("42"))
        assert (*_error(answer), answer.headers["Retry-After"]) == (429, "rate_limited", "1")
    answer = await app.public(PATH, method="POST", json=body, headers=bearer("17"))
    assert (*_error(answer), other.user) == (404, "not_found", "17")
    assert _error(await _claim(phone, started["state"])) == (404, "pending")


@pytest.mark.parametrize("own", ["constant", "ac2"])
async def test_lost_link_with_repeated_state_is_the_latest_request(app: Running, own: str) -> None:
    """If an app repeats its own state, the state means the user's latest authorization request."""
    phone = Phone(app, "42")
    earlier, later = await phone.start(state=own), await phone.start(state=own)
    await allow(app, earlier["authorize_url"])
    assert _error(await _claim(phone, own)) == (404, "pending")
    await allow(app, later["authorize_url"])
    assert (await _claim(phone, own)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"state": "x"},
        {"code_verifier": "v" * 43},
        {"state": "x" * 2049, "code_verifier": "v" * 43},
        {"state": 7, "code_verifier": "v" * 43},
        {"code": None, "state": None, "code_verifier": "v" * 43},
        {"code": "", "state": "x", "code_verifier": "v" * 43},
        {"state": "x", "code_verifier": "v" * 1025},
    ],
)
async def test_exchange_code_without_code_or_state_and_verifier_is_400(app: Running, body: dict[str, Any]) -> None:
    """The body contains a code, or a state with a verifier."""
    answer = await app.public(PATH, method="POST", json=body, headers=bearer("42"))
    assert _error(answer) == (400, "invalid_request")
