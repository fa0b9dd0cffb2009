"""Authorizations that begin here: by `POST {base}/authorizations` or `GET {base}/connect`; and issued states."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, BASE, HOST, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, bearer, challenge_of, of, owners

LINK = "foryoure://amo-crm/callback"
CHALLENGE = challenge_of("v" * 43)
ISSUED = re.compile(r"ac1\.[A-Za-z0-9_-]{22}")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users."""
    async with run(**WITH_USERS) as running:
        yield running


async def _start(app: Running, body: object, user: str = "42") -> Answer:
    return await app.public(f"{BASE}/authorizations", method="POST", json=body, headers=bearer(user))


# --- starting -----------------------------------------------------------------------------------


async def test_the_app_starts_a_grant_and_gets_its_state_back(app: Running) -> None:
    """The answer names AMO's consent page, the state that the deep link will carry, and until when that is good."""
    answer = await _start(app, {})
    data = answer.json()["data"]
    assert ISSUED.fullmatch(data["state"])
    assert of(data["authorize_url"]) == {
        "client_id": app.settings.amo.client_id,
        "state": data["state"],
        "mode": "popup",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", data["expires_at"])
    left = datetime.fromisoformat(data["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=29) < left <= timedelta(minutes=30)
    back = await allow(app, data["authorize_url"])
    assert of(back.location)["state"] == data["state"]


async def test_the_apps_own_state_comes_back_in_place_of_ours(app: Running) -> None:
    """AMO gets the issued state; the deep link carries the app's, on success, on refusal, and on the page."""
    data = (await _start(app, {"state": "мой state&x=1"})).json()["data"]
    sent = of(data["authorize_url"])["state"]
    assert data["state"] == "мой state&x=1"
    assert ISSUED.fullmatch(sent)
    refused = await app.callback(f"error=access_denied&state={sent}")
    assert refused.location == f"{LINK}?error=access_denied&state={quote('мой state&x=1', safe='')}"
    code = app.amo.code()
    back = await allow(app, data["authorize_url"], code=code)
    assert back.location == f"{LINK}?code={code}&state={quote('мой state&x=1', safe='')}"
    page = await app.public((await allow(app, data["authorize_url"], code=code, html=True)).location)
    assert f"state={quote('мой state&x=1', safe='')}" in page.text
    assert sent not in page.text


@pytest.mark.parametrize(
    "body",
    [
        {"state": "s" * 2049},
        {"state": "й" * 1025},
        {"state": "ac1.AAAAAAAAAAAAAAAAAAAAAA"},
        {"state": 7},
        {"state": ["s"]},
        {"code_challenge": CHALLENGE},
        {"code_challenge": CHALLENGE, "code_challenge_method": "plain"},
        {"code_challenge": CHALLENGE[:-1], "code_challenge_method": "S256"},
        {"code_challenge": CHALLENGE + "A", "code_challenge_method": "S256"},
        {"code_challenge": CHALLENGE[:-1] + "+", "code_challenge_method": "S256"},
        {"code_challenge_method": "S256"},
        [],
        "state",
    ],
)
async def test_a_start_that_cannot_be_is_400(app: Running, body: object) -> None:
    """A state that is too long or looks like ours, a challenge that is none, or is not S256: nothing is begun."""
    answer = await _start(app, body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")


async def test_nobody_starts_a_grant_without_a_jwt(app: Running) -> None:
    """No JWT, another's, or none at all in the header: 401, and how to ask."""
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
        answer = await app.public(f"{BASE}/authorizations", method="POST", json={}, headers=headers)
        assert (answer.status, answer.json()["error"]) == (401, "unauthorized")
        error = ', error="invalid_token"' if headers.get("Authorization") == "Bearer x" else ""
        assert answer.headers["WWW-Authenticate"] == f'Bearer realm="amo-callback"{error}'


async def test_routes_for_users_are_not_there_where_users_are_not_known(run: Any) -> None:
    """Without a configured JWT they are 404; the plain link works."""
    async with run() as app:
        for method, path in (("POST", "authorizations"), ("GET", "status"), ("POST", "disconnect")):
            answer = await app.public(f"{BASE}/{path}", method=method, headers=bearer("42"))
            assert (answer.status, answer.json()["error"]) == (404, "not_found")
        assert (await app.public(f"{BASE}/connect")).status == 303


async def test_a_plain_link_leads_to_amos_consent_page(app: Running) -> None:
    """`GET /connect` is 303 to AMO with an issued state, and gives back the state that the link named."""
    answer = await app.public(f"{BASE}/connect?state=mine&code_challenge={CHALLENGE}&code_challenge_method=S256&x=1")
    assert answer.status == 303
    assert answer.location.startswith("https://www.amocrm.ru/oauth?client_id=")
    assert ISSUED.fullmatch(of(answer.location)["state"])
    assert of((await allow(app, answer.location)).location)["state"] == "mine"


@pytest.mark.parametrize(
    "query",
    ["state=a&state=b", "state=%ff", "state=" + "s" * 2049, f"code_challenge={CHALLENGE}", "state=ac1.x",
     "code_challenge=x&code_challenge_method=S256"],
)  # fmt: skip
async def test_a_damaged_link_is_told_to_the_person(app: Running, query: str) -> None:
    """A browser gets the page, whatever else the word."""
    answer = await app.public(f"{BASE}/connect?{query}", headers={"Accept": "text/html"})
    assert (answer.status, "error=invalid_request" in answer.text) == (400, True)
    answer = await app.public(f"{BASE}/connect?{query}", headers={"Accept": "*/*"})
    assert (answer.status, answer.location) == (302, f"{LINK}?error=invalid_request")


async def test_a_look_at_a_link_starts_nothing(app: Running) -> None:
    """HEAD and prefetches issue no state."""
    assert "Location" not in (await app.public(f"{BASE}/connect", method="HEAD")).headers
    assert (await app.public(f"{BASE}/connect", headers={"Sec-Purpose": "prefetch"})).status == 204


async def test_starting_has_an_end(run: Any) -> None:
    """An address follows so many links in a window, a user starts so many grants; others are not concerned."""
    async with run(LIMITS__FAILED_CODES="2", **WITH_USERS) as app:
        assert [(await app.public(f"{BASE}/connect")).status for _ in range(3)] == [303, 303, 302]
        page = await app.public(f"{BASE}/connect", headers={"Accept": "text/html"})
        assert (page.status, "rate_limited" in page.text) == (429, True)
        assert (await app.public(f"{BASE}/connect", headers={"X-Forwarded-For": "192.0.2.7"})).status == 303
        assert [(await _start(app, {})).status for _ in range(3)] == [200, 200, 429]
        assert (await _start(app, {}, user="17")).status == 200
        app.clock.advance(60)
        assert (await app.public(f"{BASE}/connect")).status == 303
        assert (await _start(app, {})).status == 200


# --- issued states ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_a_state_that_was_never_issued_asks_nobody(run: Any, mode: str) -> None:
    """An unknown state of our form is `invalid_state` in both modes, and comes back as it came."""
    async with run(APP__STATE=mode) as app:
        for state in ("ac1.AAAAAAAAAAAAAAAAAAAAAA", "ac1.", "ac1." + "x" * 2000):
            answer = await app.callback(app.query(state=state))
            assert answer.location == f"{LINK}?error=invalid_state&state={state}"
        assert app.amo.fake.ledger.entries == []


async def test_a_state_is_good_for_one_code(app: Running) -> None:
    """Another code with the same state is `invalid_state`; the same code is told its outcome, as often as it comes."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    first = await allow(app, url, code=code)
    assert of((await allow(app, url)).location)["error"] == "invalid_state"
    assert (await allow(app, url, code=code)).location == first.location
    assert len(app.amo.fake.ledger.entries) == 1


async def test_two_codes_at_once_do_not_share_a_state(app: Running) -> None:
    """Whichever is claimed first has it, and AMO is asked once."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    answers = await asyncio.gather(*(allow(app, url) for _ in range(5)))
    words = sorted(of(answer.location).get("error", "") for answer in answers)
    assert words == [""] + ["invalid_state"] * 4
    assert len(app.amo.fake.ledger.entries) == 1


async def test_a_state_is_good_for_half_an_hour(app: Running) -> None:
    """After that it is `invalid_state`; just before, it works."""
    late, timely = [(await _start(app, {})).json()["data"]["authorize_url"] for _ in range(2)]
    app.clock.advance(1790)
    assert "code" in of((await allow(app, timely)).location)
    app.clock.advance(10)
    assert of((await allow(app, late)).location)["error"] == "invalid_state"


async def test_a_passing_failure_does_not_use_up_the_state(app: Running) -> None:
    """The same code works once AMO is well, also after half an hour, with its own state alone."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    app.clock.advance(1700)
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    code = app.amo.code()
    assert of((await allow(app, url, code=code)).location)["error"] == "amo_unavailable"
    assert of((await app.callback(app.query(code=code, state="other"))).location)["error"] == "invalid_state"
    assert app.amo.sandbox.requests == 1
    app.clock.advance(200)
    assert of((await allow(app, url, code=code)).location)["code"] == code


async def test_a_code_with_an_issued_state_is_told_to_its_browser_alone(app: Running) -> None:
    """Who has the code, and another state, or none, learns nothing of its outcome, nor where its page is."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    await allow(app, url, code=code)
    for state in ("other", "", "ac1.AAAAAAAAAAAAAAAAAAAAAA"):
        for html in (True, False):
            answer = await app.callback(app.query(code=code, state=state), html=html)
            assert (answer.status, HOST in answer.text) == ((400, False) if html else (302, False))
            assert "invalid_state" in answer.text + answer.headers.get("Location", "")
    assert "invalid_state" in (await app.callback(f"code={code}&referer={HOST}")).location


async def test_a_foreign_state_waits_for_nothing(app: Running) -> None:
    """While a code is being exchanged, a caller with another state is refused as well."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    rightful = await app.begun(allow(app, url, code=code))
    thief = asyncio.create_task(app.callback(app.query(code=code, state="other")))
    app.amo.sandbox.go_on.set()
    assert of((await thief).location)["error"] == "invalid_state"
    assert of((await rightful).location)["code"] == code


# --- only issued states -------------------------------------------------------------------------


async def test_where_states_are_issued_no_other_is_taken(run: Any) -> None:
    """In `issued`, a state of the app's own, or none, is `invalid_state`, and AMO is not asked."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194") as app:
        for query in (app.query(state="mine"), f"code={app.amo.code()}&referer={HOST}"):
            assert of((await app.callback(query)).location)["error"] == "invalid_state"
        answer = await app.callback(app.query(state="mine") + "&from_widget=1", html=True)
        assert answer.status == 400
        assert app.amo.fake.ledger.entries == []
        link = await app.public(f"{BASE}/connect")
        assert "code" in of((await allow(app, link.location)).location)


@pytest.mark.parametrize(
    "marker",
    ["from_widget=1", "from_exchange=1", "from_widget=1&state=false", "from_widget=1&state=", "from_exchange=1&state="],
)
async def test_where_states_are_issued_amo_itself_comes_without_one(run: Any, marker: str) -> None:
    """AMO's own calls have no state, or an empty one: they are taken for listed accounts, and bind nobody."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194") as app:
        answer = await app.callback(f"code={app.amo.code()}&referer={HOST}&{marker}")
        assert (answer.status, answer.text) == (200, "connected\n")
        assert await owners(app) == []
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="7") as app:
        answer = await app.callback(f"code={app.amo.code()}&referer={HOST}&{marker}")
        assert (answer.status, answer.text) == (400, "account_not_allowed\n")
    async with run(APP__STATE="issued") as app:
        answer = await app.callback(f"code={app.amo.code()}&referer={HOST}&{marker}")
        assert (answer.status, answer.text) == (400, "invalid_state\n")
        assert app.amo.fake.ledger.entries == []


async def test_where_states_are_issued_the_app_cannot_bring_a_code_of_its_own(run: Any) -> None:
    """`exchange-code` knows the codes that the callback has seen, and 404 is all that others get."""
    async with run(APP__STATE="issued", AMO__DEFAULT_DOMAIN=HOST, **WITH_USERS) as app:
        phone = Phone(app, "42")
        answer = await phone.exchange(app.amo.code(), referer=HOST)
        assert (answer.status, answer.json()["error"]) == (404, "not_found")
        assert app.amo.fake.ledger.entries == []
        url = (await phone.start())["authorize_url"]
        code = app.amo.code()
        await allow(app, url, code=code)
        assert (await phone.exchange(code)).status == 200


# --- the private API ---------------------------------------------------------------------------


async def _vouch(app: Running, key: str = ADMIN_KEY, **body: object) -> Answer:
    return await app.private("/authorizations", key=key, method="POST", json=body)


async def test_a_backend_starts_a_grant_and_vouches_for_its_owner(run: Any) -> None:
    """The grant's end alone binds the owner that the backend has named, users' JWTs or not; it is told in the log."""
    async with run() as app:
        app.service.services.store.stores_webhooks = True
        started = (await _vouch(app, owner=42, state="mine")).json()
        assert set(started) == {"authorize_url", "state", "expires_at"}
        assert of((await allow(app, started["authorize_url"])).location)["state"] == "mine"
        assert await owners(app) == ["42"]
        [connection] = (await app.private("/connections?owner=42")).json()["items"]
        assert connection["owners"] == ["42"]
        assert (await app.private("/connections/owner:42")).json()["id"] == connection["id"]
        assert (await app.private("/connections/owner:42/token")).json()["connection_id"] == connection["id"]
        assert (await app.private("/connections?owner=4")).json()["items"] == []
        assert (await app.private("/connections/owner:4")).status == 404
        told = (await app.private("/events?connection=owner:42")).json()["items"]
        assert {"owner.bound", "connection.connected"} <= {event["name"] for event in told}
        assert (await app.private("/events?connection=owner:4")).json()["items"] == []
        assert any(line["event"] == "grant.started" and line["owner"] == "42" for line in app.lines())
        [webhook] = await app.service.services.store.webhooks(limit=9)
        assert (webhook.type, webhook.data["owners"]) == ("connection.connected", ["42"])


async def test_a_backend_may_ask_for_the_verifier_too(run: Any) -> None:
    """With a challenge the owner is bound by whoever has the verifier, and not by the grant's end."""
    async with run() as app:
        body = {"owner": "42", "code_challenge": CHALLENGE, "code_challenge_method": "S256"}
        started = (await _vouch(app, **body)).json()
        code = of((await allow(app, started["authorize_url"])).location)["code"]
        assert await owners(app) == []
        for letter, status in (("w", 403), ("v", 200)):
            body = {"code": code, "code_verifier": letter * 43}
            assert (await app.public(f"{BASE}/exchange-code", method="POST", json=body)).status == status
        assert await owners(app) == ["42"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "owner"),
        ({"owner": ""}, "owner"),
        ({"owner": "x" * 256}, "owner"),
        ({"owner": 10**255}, "owner"),
        ({"owner": "a\nb"}, "owner"),
        ({"owner": True}, "owner"),
        ({"owner": None}, "owner"),
        ({"owner": "42", "state": "s" * 2049}, "state"),
        ({"owner": "42", "code_challenge": "x", "code_challenge_method": "S256"}, "code_challenge"),
    ],
)
async def test_a_backends_bad_start_names_the_field(run: Any, body: dict[str, Any], field: str) -> None:
    """400 `invalid_request`, as everywhere on the private API."""
    async with run() as app:
        answer = await _vouch(app, **body)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
        assert answer.json()["detail"].startswith(f"{field}:")
        assert (await _vouch(app, owner=10**254)).status == 200


async def test_whoever_must_connect_again_is_led_through_a_grant_of_ours(run: Any) -> None:
    """`reconnect_url` is the plain link beside the redirect URI, so it works where only issued states are taken."""
    async with run(lifetimes={"access": 30}, APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194") as app:
        await allow(app, (await app.public(f"{BASE}/connect")).location)
        app.amo.account.disabled = True
        app.clock.advance(31)
        await app.witness.until("connection.needs_reauth")
        problem = (await app.private(f"/connections/account:{app.amo.account.id}/token")).json()
        path = urlsplit(problem["reconnect_url"]).path
        app.amo.account.disabled = False
        await allow(app, (await app.public(path)).location)
        assert (await app.private(f"/connections/account:{app.amo.account.id}")).json()["status"] == "active"


# --- states, attacked -----------------------------------------------------------------------------


async def test_a_code_that_the_app_brought_first_hands_back_the_apps_own_state(app: Running) -> None:
    """The callback comes after `exchange-code`, with an issued state: the app does not see that one."""
    phone = Phone(app, "42")
    started = await phone.start(challenged=False, state="mine")
    code = app.amo.code()
    await phone.exchange(code, verified=False, referer=HOST)
    state = of(started["authorize_url"])["state"]
    back = await app.callback(f"code={code}&state={quote(state)}&referer={HOST}")
    assert of(back.location)["state"] == "mine"


async def test_trying_again_in_vain_hands_back_the_apps_own_state(app: Running) -> None:
    """Where the page's second try ends before AMO is asked, its link carries the app's state, as every other does."""
    started = await Phone(app, "42").start(state="mine")
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    page = (await allow(app, started["authorize_url"], html=True)).location
    await app.service.services.lifecycle.freeze_switch.freeze_all(why="a test")
    answer = await app.public(f"{page}?again=1")
    assert answer.status == 503
    assert "state=mine" in answer.text
    assert "ac1." not in answer.text


async def test_a_refusal_hands_back_the_issued_state_where_the_app_gave_none(app: Running) -> None:
    """Then the issued one is what the app was told that it would get."""
    started = await Phone(app, "42").start()
    back = await app.callback(f"error=access_denied&state={started['state']}")
    assert of(back.location) == {"error": "access_denied", "state": started["state"]}


async def test_where_states_are_issued_amos_own_call_is_told_to_it_alone_and_binds_nobody(run: Any) -> None:
    """Who brings its code with a state learns nothing, and the app of whoever follows such a link is not bound."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194", **WITH_USERS) as app:
        code = app.amo.code()
        query = f"code={code}&referer={HOST}"
        assert (await app.callback(f"{query}&from_widget=1")).text == "connected\n"
        assert of((await app.callback(f"{query}&state=other")).location)["error"] == "invalid_state"
        await Phone(app, "42").exchange(code, verified=False)
        assert await owners(app) == []


# --- floods ---------------------------------------------------------------------------------------


async def test_a_flood_of_links_does_not_stand_before_a_refresh(run: Any) -> None:
    """While hundreds follow links from as many addresses, a refresh is written down before most of their states."""
    async with run(**WITH_USERS) as app:
        connection = await app.connected()
        refresh = await app.refreshing(connection)
        flood = [
            asyncio.create_task(
                app.public(f"{BASE}/connect", headers={"X-Forwarded-For": f"198.51.{n // 250}.{n % 250}"})
            )
            for n in range(600)
        ]
        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        before = sum(task.done() and task.result().status == 303 for task in flood)
        app.amo.sandbox.go_on.set()
        assert (await refresh).status == 200
        written = sum(task.done() and task.result().status == 303 for task in flood) - before
        await asyncio.gather(*flood)
        assert written < 100


async def test_links_have_an_end_over_all_addresses(run: Any) -> None:
    """A quarter of what AMO takes: beyond, nothing is written, and who is known still starts."""
    async with run(AMO__REQUESTS_PER_SECOND="0.2", **WITH_USERS) as app:
        addresses = [{"X-Forwarded-For": f"192.0.2.{number}"} for number in range(5)]
        answers = [await app.public(f"{BASE}/connect", headers=address) for address in addresses]
        words = [of(answer.location).get("error") for answer in answers]
        assert words == [None] * 3 + ["amo_unavailable"] * 2
        await Phone(app, "42").start()
        app.clock.advance(60)
        assert (await app.public(f"{BASE}/connect")).status == 303


FLOOD = 300
SOON = 10
"""Requests to AMO within which whoever goes first has had his turn: of strangers many more are waiting."""


async def _junk(app: Running, number: int, *, spread: bool) -> Answer:
    address = f"198.51.{number // 250}.{number % 250}" if spread else "198.51.100.7"
    return await app.callback(f"code=junk{number}&state=s&referer={HOST}", headers={"X-Forwarded-For": address})


@pytest.mark.parametrize("spread", [False, True], ids=["one address", "many addresses"])
async def test_a_flood_of_junk_stops_neither_refreshing_nor_who_is_expected(run: Any, *, spread: bool) -> None:
    """While hundreds of junk codes wait, a refresh and a person with an issued state have the next turns at AMO.

    The person comes from the flood's own address, too.
    """
    waiting = 112 if spread else 30
    async with run(AMO__REQUESTS_PER_SECOND="5", **WITH_USERS) as app:
        connection = await app.connected()
        phone = Phone(app, "42")
        url = (await phone.start())["authorize_url"]
        flood = [asyncio.create_task(_junk(app, number, spread=spread)) for number in range(FLOOD)]
        while sum(task.done() for task in flood) < FLOOD - waiting:
            await asyncio.wait([task for task in flood if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        ledger = app.amo.fake.ledger
        before = len(ledger.entries)
        code = app.amo.code()
        query = f"code={code}&state={of(url)['state']}&referer={HOST}"
        refreshed, back = await asyncio.gather(
            app.private(f"/connections/{connection}/refresh", method="POST"),
            app.callback(query, headers={"X-Forwarded-For": "198.51.100.7"}),
        )
        presented = [entry.presented for entry in ledger.entries[before:]]
        [refresh] = ledger.refreshes()
        assert max(presented.index(code), presented.index(refresh.presented)) < SOON
        assert (refreshed.status, of(back.location).get("code")) == (200, code)
        for task in flood:
            task.cancel()
        ended = await asyncio.gather(*flood, return_exceptions=True)
        words = {of(answer.location)["error"] for answer in ended if not isinstance(answer, BaseException)}
        assert ("amo_unavailable" if spread else "rate_limited") in words


async def test_a_stranger_is_told_when_too_many_wait(run: Any) -> None:
    """Nothing is written for who would only grow old in the queue; the same code works once there is room."""
    async with run(AMO__REQUESTS_PER_SECOND="1", AMO__TIMEOUT="30", REFRESH__LEASE="32") as app:
        first = await app.begun(app.callback(app.query(code="junk")))
        query = app.query(state="s")
        assert of((await app.callback(query)).location)["error"] == "amo_unavailable"
        page = await app.callback(query, html=True)
        assert (page.status, 'id="again"' in page.text) == (503, True)
        app.amo.sandbox.go_on.set()
        assert of((await first).location)["error"] == "auth_failed"
        assert "code" in of((await app.callback(query)).location)


async def test_known_people_have_places_of_their_own(run: Any) -> None:
    """Strangers who use up an address's places leave those of whoever began a grant here."""
    async with run(LIMITS__FAILED_CODES="1", **WITH_USERS) as app:
        url = (await Phone(app, "42").start())["authorize_url"]
        for word in ("auth_failed", "rate_limited"):
            assert of((await app.callback(app.query(code=f"junk-{word}"))).location)["error"] == word
        assert "code" in of((await allow(app, url)).location)
