"""Grants that begin here, attacked: what a code, a ticket, a link or a file must not be good for."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.cipher import Cipher
from tests.conftest import ADMIN_KEY, BASE, HOST
from tests.web.phone import WITH_USERS, Phone, allow, bearer, of, owners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import Answer, Running


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users."""
    async with run(**WITH_USERS) as running:
        yield running


async def _started(phone: Phone, **more: Any) -> str:
    """Connect by a grant that this phone has started, and return the code that the deep link brings."""
    return of((await allow(phone.app, (await phone.start(**more))["authorize_url"])).location)["code"]


async def _disconnect(app: Running, user: str) -> None:
    assert (await app.public(f"{BASE}/disconnect", method="POST", headers=bearer(user))).status == 200


async def _present(app: Running, code: str, **more: str) -> Answer:
    return await app.public(f"{BASE}/exchange-code", method="POST", json={"code": code, **more})


# --- codes of before a disconnect ----------------------------------------------------------------


async def test_a_code_of_before_a_disconnect_does_not_bind_what_came_after_it(app: Running) -> None:
    """What somebody else has connected since is not the first one's, whatever he could prove of the old grant."""
    first, second = Phone(app, "42"), Phone(app, "17")
    old = await _started(first)
    await first.exchange(old)
    await _disconnect(app, "42")
    app.clock.advance(1)
    await second.exchange(await _started(second))
    assert await owners(app) == ["17"]
    await first.exchange(old)
    assert await owners(app) == ["17"]


async def _own_flow(app: Running, user: str) -> str:
    """Connect as the existing app does, with a state that names its user, and return the code."""
    state = base64.b64encode(json.dumps({"userId": user}).encode()).decode()
    return of((await app.callback(app.query(state=state))).location)["code"]


async def test_an_unbound_code_of_before_a_disconnect_does_not_take_what_came_after_it(app: Running) -> None:
    """A code of the existing flow that nobody has presented binds nobody once its connection was forgotten."""
    first, second = Phone(app, "42"), Phone(app, "17")
    old = await _own_flow(app, "42")
    await second.exchange(await _started(second))
    await _disconnect(app, "17")
    app.clock.advance(1)
    new = await _own_flow(app, "17")
    await first.exchange(old, verified=False)
    assert await owners(app) == []
    assert (await second.exchange(new, verified=False)).status == 200
    assert await owners(app) == ["17"]


async def test_who_has_left_does_not_come_back_by_a_replay(app: Running) -> None:
    """Others own the connection yet: the code by which he came binds him no more."""
    leaver, other = Phone(app, "42"), Phone(app, "17")
    code = await _started(leaver)
    await leaver.exchange(code)
    await other.exchange(await _started(other))
    await _disconnect(app, "42")
    await leaver.exchange(code)
    assert await owners(app) == ["17"]


# --- tickets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["app", "issued"])
async def test_a_stolen_ticket_cannot_be_burnt(run: Any, mode: str) -> None:
    """A thief who sends it to the callback as if it were a code leaves it good for whoever has the verifier."""
    async with run(APP__HAND_BACK="ticket", APP__STATE=mode, **WITH_USERS) as app:
        phone = Phone(app, "42")
        ticket = await _started(phone)
        link = (await app.public(f"{BASE}/connect")).location
        await allow(app, link, code=ticket)
        assert (await phone.exchange(ticket)).status == 200
        assert await owners(app) == ["42"]


def _take_tickets_away(path: Path, cipher: Cipher) -> None:
    """Leave the grants as a version before wrote them."""
    with closing(sqlite3.connect(path)) as database, database:
        for code_hash, sealed in database.execute("SELECT code_hash, sealed FROM grants").fetchall():
            content = cipher.open(sealed, bound_to=f"grant:{code_hash}").replace(b'"ticket": "', b'"before": "')
            old = cipher.seal(content, bound_to=f"grant:{code_hash}")
            database.execute("UPDATE grants SET sealed = ?, ticket_hash = NULL", [old])


async def test_a_grant_of_before_tickets_hands_back_something(run: Any, encryption_key: str) -> None:
    """Connected by a version that made no tickets, its page still leads to the app with what the app can present."""
    async with run(APP__HAND_BACK="ticket") as app:
        answer = await app.callback(app.query(state="s"), html=True)
        await asyncio.to_thread(_take_tickets_away, app.folder / "amo-callback.db", Cipher([encryption_key]))
        page = await app.public(answer.location)
        assert "?code=&amp;" not in page.text


async def test_a_ticket_ends_before_the_code_that_it_stands_for(run: Any) -> None:
    """Ten minutes after it was connected its ticket is over, while AMO's code is known for as long again."""
    async with run(APP__HAND_BACK="ticket") as app:
        code = app.amo.code()
        ticket = of((await app.callback(app.query(code=code))).location)["code"]
        app.clock.advance(598)
        assert (await _present(app, ticket)).status == 200
        app.clock.advance(2)
        answer = await _present(app, ticket)
        assert (answer.status, answer.json()["error"]) == (410, "code_expired")
        assert (await _present(app, code)).status == 200


async def test_a_ticket_whose_grant_is_over_is_no_code(run: Any) -> None:
    """Connected late, its code's 20 minutes end before its own ten: AMO is not asked about it then, nor later."""
    async with run(APP__HAND_BACK="ticket") as app:
        code = app.amo.code()
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        await app.callback(app.query(code=code))
        app.clock.advance(1190)
        ticket = of((await app.callback(app.query(code=code))).location)["code"]
        asked = app.amo.sandbox.requests
        app.clock.advance(20)
        await app.service.services.store.prune(now=app.clock.now(), keep=86400)
        answer = await _present(app, ticket, referer=HOST)
        assert (answer.status, answer.json()["error"]) == (410, "code_expired")
        assert app.amo.sandbox.requests == asked


# --- floods ---------------------------------------------------------------------------------------


async def test_a_flood_of_links_does_not_stand_before_a_refresh(run: Any) -> None:
    """While hundreds follow links from as many addresses, a refresh is written down before most of their states."""
    async with run(**WITH_USERS) as app:
        connection = await app.connected()
        app.amo.sandbox.asked.clear()
        app.amo.sandbox.faults.add(Fault.SLOW)
        refresh = asyncio.create_task(app.private(f"/connections/{connection}/refresh", method="POST"))
        await app.amo.sandbox.asked.wait()
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


# --- frozen ---------------------------------------------------------------------------------------


async def test_a_connection_that_is_frozen_by_itself_is_not_erased(app: Running) -> None:
    """What is frozen may live elsewhere, also where it alone is: the user is asked to come again."""
    phone = Phone(app, "42")
    await phone.exchange(await _started(phone))
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    await app.private(f"/connections/{connection.id}/freeze", method="POST", key=ADMIN_KEY)
    answer = await app.public(f"{BASE}/disconnect", method="POST", headers=bearer("42"))
    assert answer.status == 503
    assert await phone.is_connected()


# --- states ---------------------------------------------------------------------------------------


async def test_a_code_that_the_app_brought_first_hands_back_the_apps_own_state(app: Running) -> None:
    """The callback comes after `exchange-code`, with an issued state: the app does not see that one."""
    phone = Phone(app, "42")
    started = await phone.start(challenged=False, state="mine")
    code = app.amo.code()
    await phone.exchange(code, verified=False, referer=HOST)
    state = of(started["authorize_url"])["state"]
    back = await app.callback(f"code={code}&state={quote(state)}&referer={HOST}")
    assert of(back.location)["state"] == "mine"


async def test_where_states_are_issued_a_code_without_one_binds_nobody(run: Any) -> None:
    """A link to the callback that claims to come from inside AMO does not tie its account to whoever follows it."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194", **WITH_USERS) as app:
        victim = Phone(app, "42")
        code = app.amo.code()
        await app.callback(f"code={code}&referer={HOST}&from_widget=1", html=True)
        await victim.exchange(code, verified=False)
        assert await owners(app) == []


async def test_trying_again_in_vain_hands_back_the_apps_own_state(app: Running) -> None:
    """Where the page's second try ends before AMO is asked, its link carries the app's state, as every other does."""
    started = await Phone(app, "42").start(state="mine")
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    page = (await allow(app, started["authorize_url"], html=True)).location
    await app.service.services.custody.freezer.freeze_all(why="a test")
    answer = await app.public(f"{page}?again=1")
    assert answer.status == 503
    assert "state=mine" in answer.text
    assert "ac1." not in answer.text


async def test_a_refusal_hands_back_the_issued_state_where_the_app_gave_none(app: Running) -> None:
    """Then the issued one is what the app was told that it would get."""
    started = await Phone(app, "42").start()
    back = await app.callback(f"error=access_denied&state={started['state']}")
    assert of(back.location) == {"error": "access_denied", "state": started["state"]}


@pytest.mark.parametrize("marker", ["from_widget=1&state=", "from_exchange=1&state="])
async def test_an_empty_state_is_none_where_states_are_issued(run: Any, marker: str) -> None:
    """AMO's own call may name a state and leave it empty."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194") as app:
        answer = await app.callback(f"code={app.amo.code()}&referer={HOST}&{marker}")
        assert (answer.status, answer.text) == (200, "connected\n")


async def test_where_states_are_issued_amos_own_call_is_told_to_it_alone(run: Any) -> None:
    """Who brings its code with a state learns nothing: it came without one."""
    async with run(APP__STATE="issued", AMO__ALLOWED_ACCOUNTS="31920194") as app:
        query = f"code={app.amo.code()}&referer={HOST}"
        assert (await app.callback(f"{query}&from_widget=1")).text == "connected\n"
        assert of((await app.callback(f"{query}&state=other")).location)["error"] == "invalid_state"


# --- the private door -----------------------------------------------------------------------------


async def test_an_owner_given_as_a_number_is_no_longer_than_one_given_as_text(run: Any) -> None:
    """Else no export that names him could be imported."""
    async with run() as app:
        for owner in (10**254, 10**255):
            answer = await app.private("/authorizations", method="POST", key=ADMIN_KEY, json={"owner": owner})
            assert answer.status == (200 if owner < 10**255 else 400)


async def test_a_vouched_owner_is_bound_by_the_end_of_his_grant_and_not_again(run: Any) -> None:
    """Who has left is not bound anew by whoever presents the code, without a JWT, of a grant without a challenge."""
    async with run(**WITH_USERS) as app:
        started = await app.private("/authorizations", method="POST", key=ADMIN_KEY, json={"owner": "42"})
        code = of((await allow(app, started.json()["authorize_url"])).location)["code"]
        other = Phone(app, "17")
        await other.exchange(await _started(other))
        await _disconnect(app, "42")
        assert (await _present(app, code)).status == 200
        assert await owners(app) == ["17"]
