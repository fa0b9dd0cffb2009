"""Authorization requests by `POST {base}/authorizations` or `GET {base}/connect`, and issued states."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, BASE, HOST, LINK, Answer, Running
from tests.web.phone import WITH_USERS, Phone, allow, bearer, challenge_of, of, owners

CHALLENGE = challenge_of("v" * 43)
ISSUED = re.compile(r"ac1\.[A-Za-z0-9_-]{22}")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings."""
    async with run(**WITH_USERS) as running:
        yield running


async def _start(app: Running, body: object, user: str = "42") -> Answer:
    return await app.public(f"{BASE}/authorizations", method="POST", json=body, headers=bearer(user))


# --- start ------------------------------------------------------------------------------------


async def test_authorizations_post_returns_url_state_and_expiry(app: Running) -> None:
    """The response contains AMO's consent URL, the deep link's state and that state's expiry."""
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


async def test_authorizations_app_state_is_returned_instead_of_issued_state(app: Running) -> None:
    """AMO receives the issued state; the deep link has the app's state on success, on refusal and on the page."""
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
async def test_authorizations_invalid_body_is_400(app: Running, body: object) -> None:
    """A long or reserved state, a malformed challenge, or a challenge method other than S256 is 400."""
    answer = await _start(app, body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")


async def test_authorizations_without_valid_jwt_is_401(app: Running) -> None:
    """A missing or invalid JWT is 401 with a `WWW-Authenticate` challenge."""
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
        answer = await app.public(f"{BASE}/authorizations", method="POST", json={}, headers=headers)
        assert (answer.status, answer.json()["error"]) == (401, "unauthorized")
        error = ', error="invalid_token"' if headers.get("Authorization") == "Bearer x" else ""
        assert answer.headers["WWW-Authenticate"] == f'Bearer realm="amo-callback"{error}'


async def test_user_routes_without_jwt_settings_are_404(run: Any) -> None:
    """Without JWT settings the routes for app users are 404, and `GET {base}/connect` works."""
    async with run() as app:
        for method, path in (("POST", "authorizations"), ("GET", "status"), ("POST", "disconnect")):
            answer = await app.public(f"{BASE}/{path}", method=method, headers=bearer("42"))
            assert (answer.status, answer.json()["error"]) == (404, "not_found")
        assert (await app.public(f"{BASE}/connect")).status == 303


async def test_connect_link_redirects_to_amo_with_issued_state(app: Running) -> None:
    """`GET {base}/connect` is 303 to AMO with an issued state, and the deep link returns the link's own state."""
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
async def test_connect_link_invalid_query_returns_invalid_request(app: Running, query: str) -> None:
    """An invalid link gets the error page in a browser, and otherwise the deep link with `invalid_request`."""
    answer = await app.public(f"{BASE}/connect?{query}", headers={"Accept": "text/html"})
    assert (answer.status, "error=invalid_request" in answer.text) == (400, True)
    answer = await app.public(f"{BASE}/connect?{query}", headers={"Accept": "*/*"})
    assert (answer.status, answer.location) == (302, f"{LINK}?error=invalid_request")


async def test_connect_link_head_or_prefetch_issues_no_state(app: Running) -> None:
    """HEAD and prefetch requests issue no state."""
    assert "Location" not in (await app.public(f"{BASE}/connect", method="HEAD")).headers
    assert (await app.public(f"{BASE}/connect", headers={"Sec-Purpose": "prefetch"})).status == 204


async def test_authorization_starts_are_limited_per_address_and_per_user(run: Any) -> None:
    """Links are limited per address and app starts per user; other addresses and users are not affected."""
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
async def test_issued_state_unknown_is_invalid_state(run: Any, mode: str) -> None:
    """An unknown state in the issued form is `invalid_state` in both modes and returned unchanged; AMO is not asked."""
    async with run(APP__STATE=mode) as app:
        for state in ("ac1.AAAAAAAAAAAAAAAAAAAAAA", "ac1.", "ac1." + "x" * 2000):
            answer = await app.callback(app.query(state=state))
            assert answer.location == f"{LINK}?error=invalid_state&state={state}"
        assert app.amo.fake.ledger.entries == []


async def test_issued_state_second_code_of_account_gets_first_result(app: Running) -> None:
    """A user who goes back and allows access again returns to the app, and the second code is not exchanged."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    first = await allow(app, url, code=code)
    assert "error" not in of(first.location)
    for again in (code, None):
        assert (await allow(app, url, code=again)).location == first.location
    page, repeated = [await allow(app, url, html=True) for _ in range(2)]
    assert page.location == repeated.location
    assert len(app.amo.fake.ledger.entries) == 1


async def test_issued_state_second_code_after_temporary_failure_retries_first(app: Running) -> None:
    """If the first code's exchange failed temporarily, a second code with the state makes it be tried again."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    assert of((await allow(app, url)).location)["error"] == "amo_unavailable"
    assert "error" not in of((await allow(app, url)).location)
    assert len({entry.presented for entry in app.amo.fake.ledger.entries}) == 1


async def test_issued_state_second_code_of_another_account_is_invalid_state(app: Running) -> None:
    """A second code with the same state is `invalid_state` if it names another account, or if AMO's server sends it."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    await allow(app, url)
    another = app.amo.fake.open_account("another.amocrm.ru")
    query = f"code={app.amo.fake.allow(another)}&state={quote(of(url)['state'], safe='')}"
    for more in (f"&referer={another.host}", f"&referer={HOST}&from_exchange=1"):
        answer = await app.callback(query + more)
        assert "invalid_state" in answer.headers.get("Location", answer.text)
    assert len(app.amo.fake.ledger.entries) == 1


async def test_issued_state_concurrent_codes_only_one_is_exchanged(app: Running) -> None:
    """Of concurrent codes with one state, the code claimed first is exchanged, and the others get its result."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    answers = await asyncio.gather(*(allow(app, url) for _ in range(5)))
    [location] = {answer.location for answer in answers}
    assert "error" not in of(location)
    assert len(app.amo.fake.ledger.entries) == 1


async def test_issued_state_expires_after_30_minutes(app: Running) -> None:
    """A state is accepted shortly before 30 minutes have passed, and is `invalid_state` after that."""
    late, timely = [(await _start(app, {})).json()["data"]["authorize_url"] for _ in range(2)]
    app.clock.advance(1790)
    assert "code" in of((await allow(app, timely)).location)
    app.clock.advance(10)
    assert of((await allow(app, late)).location)["error"] == "invalid_state"


async def test_issued_state_transient_failure_keeps_state_usable(app: Running) -> None:
    """After a transient failure the code works again with its own state only, even after the state's 30 minutes."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    app.clock.advance(1700)
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    code = app.amo.code()
    assert of((await allow(app, url, code=code)).location)["error"] == "amo_unavailable"
    assert of((await app.callback(app.query(code=code, state="other"))).location)["error"] == "invalid_state"
    assert app.amo.sandbox.requests == 1
    app.clock.advance(200)
    assert of((await allow(app, url, code=code)).location)["code"] == code


async def test_code_with_issued_state_result_needs_that_state(app: Running) -> None:
    """A caller with the code and another state, or none, gets `invalid_state`, no result and no return page."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    await allow(app, url, code=code)
    for state in ("other", "", "ac1.AAAAAAAAAAAAAAAAAAAAAA"):
        for html in (True, False):
            answer = await app.callback(app.query(code=code, state=state), html=html)
            assert (answer.status, HOST in answer.text) == ((400, False) if html else (302, False))
            assert "invalid_state" in answer.text + answer.headers.get("Location", "")
    assert "invalid_state" in (await app.callback(f"code={code}&referer={HOST}")).location


async def test_code_during_exchange_other_state_is_invalid_state(app: Running) -> None:
    """A caller that sends another state during the exchange is refused."""
    url = (await _start(app, {})).json()["data"]["authorize_url"]
    code = app.amo.code()
    rightful = await app.begun(allow(app, url, code=code))
    thief = asyncio.create_task(app.callback(app.query(code=code, state="other")))
    app.amo.sandbox.go_on.set()
    assert of((await thief).location)["error"] == "invalid_state"
    assert of((await rightful).location)["code"] == code


# --- `issued` mode ------------------------------------------------------------------------------


async def test_issued_mode_app_state_or_no_state_is_invalid_state(run: Any) -> None:
    """In `issued` mode the app's own state, or none, is `invalid_state`, and AMO is not asked."""
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
async def test_issued_mode_amo_call_is_accepted_only_for_allowed_accounts(run: Any, marker: str) -> None:
    """AMO's own calls, with an empty state or none, are accepted only for allowed accounts and bind no owner."""
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


async def test_issued_mode_exchange_code_unknown_code_is_404(run: Any) -> None:
    """In `issued` mode `exchange-code` accepts only codes that the callback has received; others are 404."""
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


async def _start_for_owner(app: Running, key: str = ADMIN_KEY, **body: object) -> Answer:
    return await app.private("/authorizations", key=key, method="POST", json=body)


async def test_private_authorization_binds_named_owner_when_grant_completes(run: Any) -> None:
    """The completed grant binds the owner named by the backend, even without JWT settings; the start is logged."""
    async with run() as app:
        app.service.services.store.stores_webhooks = True
        started = (await _start_for_owner(app, owner=42, state="mine")).json()
        assert set(started) == {"authorize_url", "state", "expires_at"}
        assert of((await allow(app, started["authorize_url"])).location)["state"] == "mine"
        assert await owners(app) == ["42"]
        [connection] = (await app.private("/connections?owner=42")).json()["items"]
        assert connection["owners"] == ["42"]
        assert (await app.private("/connections/owner:42")).json()["id"] == connection["id"]
        assert (await app.private("/connections/owner:42/token")).json()["connection_id"] == connection["id"]
        assert (await app.private("/connections?owner=4")).json()["items"] == []
        assert (await app.private("/connections/owner:4")).status == 404
        events = (await app.private("/events?connection=owner:42")).json()["items"]
        assert {"owner.bound", "connection.connected"} <= {event["name"] for event in events}
        assert (await app.private("/events?connection=owner:4")).status == 404
        assert any(line["event"] == "grant.started" and line["owner"] == "42" for line in app.lines())
        [webhook] = await app.service.services.store.webhooks(limit=9)
        assert (webhook.type, webhook.data["owners"]) == ("connection.connected", ["42"])


async def test_private_authorization_with_challenge_binds_owner_on_verifier(run: Any) -> None:
    """With a challenge, the owner is bound when the verifier is presented, not when the grant completes."""
    async with run() as app:
        body = {"owner": "42", "code_challenge": CHALLENGE, "code_challenge_method": "S256"}
        started = (await _start_for_owner(app, **body)).json()
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
async def test_private_authorization_invalid_body_names_field(run: Any, body: dict[str, Any], field: str) -> None:
    """An invalid body is 400 `invalid_request` with the field's name."""
    async with run() as app:
        answer = await _start_for_owner(app, **body)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
        assert answer.json()["detail"].startswith(f"{field}:")
        assert (await _start_for_owner(app, owner=10**254)).status == 200


async def test_reconnect_url_in_issued_mode_starts_accepted_grant(run: Any) -> None:
    """`reconnect_url` is the `connect` link beside the redirect URI, so it works in `issued` mode."""
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


# --- attacks on states ----------------------------------------------------------------------------


async def test_callback_after_exchange_code_returns_app_state(app: Running) -> None:
    """A callback with an issued state that follows `exchange-code` returns the app's own state."""
    phone = Phone(app, "42")
    started = await phone.start(challenged=False, state="mine")
    code = app.amo.code()
    await phone.exchange(code, verified=False, referer=HOST)
    state = of(started["authorize_url"])["state"]
    back = await app.callback(f"code={code}&state={quote(state)}&referer={HOST}")
    assert of(back.location)["state"] == "mine"


async def test_return_page_retry_failing_before_amo_returns_app_state(app: Running) -> None:
    """If a retry fails before AMO is asked, the page's link has the app's state."""
    started = await Phone(app, "42").start(state="mine")
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    page = (await allow(app, started["authorize_url"], html=True)).location
    await app.service.services.lifecycle.freeze_switch.freeze_all(why="a test")
    answer = await app.public(f"{page}?again=1")
    assert answer.status == 503
    assert "state=mine" in answer.text
    assert "ac1." not in answer.text


async def test_access_denied_without_app_state_returns_issued_state(app: Running) -> None:
    """Without an app state, a refusal returns the issued state, which the app received at the start."""
    started = await Phone(app, "42").start()
    back = await app.callback(f"error=access_denied&state={started['state']}")
    assert of(back.location) == {"error": "access_denied", "state": started["state"]}


async def test_issued_mode_code_of_amo_call_repeated_with_state_is_invalid_state(run: Any) -> None:
    """The code of AMO's own call is `invalid_state` with any state, and `exchange-code` binds no owner to it."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194", **WITH_USERS) as app:
        code = app.amo.code()
        query = f"code={code}&referer={HOST}"
        assert (await app.callback(f"{query}&from_widget=1")).text == "connected\n"
        assert of((await app.callback(f"{query}&state=other")).location)["error"] == "invalid_state"
        await Phone(app, "42").exchange(code, verified=False)
        assert await owners(app) == []


# --- floods ---------------------------------------------------------------------------------------


async def test_connect_link_flood_does_not_delay_refresh(run: Any) -> None:
    """During a flood of links from many addresses, a refresh is stored before most of their states."""
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


async def test_connect_links_are_limited_over_all_addresses(run: Any) -> None:
    """Links may use a quarter of AMO's rate; beyond that no state is stored, and app users can still start."""
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
"""Requests to AMO within which prioritised requests are sent; far more anonymous codes are queued."""


async def _present_junk_code(app: Running, number: int, *, spread: bool) -> Answer:
    address = f"198.51.{number // 250}.{number % 250}" if spread else "198.51.100.7"
    return await app.callback(f"code=junk{number}&state=s&referer={HOST}", headers={"X-Forwarded-For": address})


@pytest.mark.parametrize("spread", [False, True], ids=["one address", "many addresses"])
async def test_junk_code_flood_delays_neither_refresh_nor_issued_state(run: Any, *, spread: bool) -> None:
    """During a flood of junk codes, a refresh and a code with an issued state are sent to AMO next.

    The code with an issued state comes from the flood's own address.
    """
    waiting = 112 if spread else 30
    async with run(AMO__REQUESTS_PER_SECOND="5", **WITH_USERS) as app:
        connection = await app.connected()
        phone = Phone(app, "42")
        url = (await phone.start())["authorize_url"]
        flood = [asyncio.create_task(_present_junk_code(app, number, spread=spread)) for number in range(FLOOD)]
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


async def test_admission_queue_full_code_is_refused_unstored(run: Any) -> None:
    """If the queue is full, a code is `amo_unavailable` and not stored; the same code works once there is space."""
    async with run(AMO__REQUESTS_PER_SECOND="1", AMO__TIMEOUT="30", REFRESH__LEASE="32") as app:
        first = await app.begun(app.callback(app.query(code="junk")))
        query = app.query(state="s")
        assert of((await app.callback(query)).location)["error"] == "amo_unavailable"
        page = await app.callback(query, html=True)
        assert (page.status, 'id="again"' in page.text) == (503, True)
        app.amo.sandbox.go_on.set()
        assert of((await first).location)["error"] == "auth_failed"
        assert "code" in of((await app.callback(query)).location)


async def test_attempt_limit_known_users_have_separate_reservations(run: Any) -> None:
    """Anonymous callers that use up an address's reservations leave those of grants started here."""
    async with run(LIMITS__FAILED_CODES="1", **WITH_USERS) as app:
        url = (await Phone(app, "42").start())["authorize_url"]
        for word in ("auth_failed", "rate_limited"):
            assert of((await app.callback(app.query(code=f"junk-{word}"))).location)["error"] == word
        assert "code" in of((await allow(app, url)).location)
