"""`GET {base}/return/{handle}`: it goes by itself where that is safe, and what has failed can be tried again."""

import asyncio
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.pages import Kind
from tests.service import BASE, HOST, Answer, Running
from tests.web.agents import AGENTS, CHROME, DESKTOP, INSTAGRAM, SAFARI
from tests.web.markup import Markup

LINK = "foryoure://amo-crm/callback"


async def _look(app: Running, address: str, agent: str = SAFARI, **headers: str) -> tuple[Answer, Markup]:
    answer = await app.public(address, headers={"User-Agent": agent, **headers})
    return answer, Markup.read(answer.text)


async def _returned(app: Running, **query: str) -> str:
    """Return the return address of a callback."""
    answer = await app.callback(app.query(**query), html=True)
    assert answer.status == 303
    return answer.location


# --- by itself, or not -----------------------------------------------------------------------------


async def test_the_page_goes_by_itself_only_in_a_phones_browser(app: Running) -> None:
    """A success tries once by itself in iOS and Android browsers; inside other apps, on desktops and unknown, never."""
    address = await _returned(app)
    for name, (kind, agent) in AGENTS.items():
        _, markup = await _look(app, address, agent)
        assert ("data-auto" in markup.id("open")) == (kind in {Kind.IOS, Kind.ANDROID}), name
        assert markup.id("open")["href"].startswith(f"{LINK}?code=")


@pytest.mark.parametrize("query", ["", "?n=0", "?x=1", "?n=1", "?n=", "?n=0&n=2", "?n=%ff", "?x=1&n=1"])
async def test_a_second_visit_does_not_go_by_itself(app: Running, query: str) -> None:
    """The page marks its address once it has tried, and then only its button leads on, with the help open."""
    _, markup = await _look(app, await _returned(app) + query)
    first = query in {"", "?n=0", "?x=1"}
    assert ("data-auto" in markup.id("open"), "open" in markup.id("help")) == (first, not first)


@pytest.mark.parametrize("agent", [SAFARI, CHROME, INSTAGRAM, DESKTOP])
async def test_no_error_goes_by_itself(app: Running, agent: str) -> None:
    """An error is read before anyone is moved: at the callback's own address, and at a return address."""
    refused = await app.callback("error=access_denied&state=s", html=True, headers={"User-Agent": agent})
    _, junk = await _look(app, await _returned(app, code="junk", state="s"), agent)
    for markup, word in ((Markup.read(refused.text), "access_denied"), (junk, "auth_failed")):
        assert markup.id("open") == {"id": "open", "class": "button", "href": f"{LINK}?error={word}&state=s"}
        assert markup.find("again") is None


async def test_a_replay_with_another_state_goes_by_itself_from_the_callbacks_address(app: Running) -> None:
    """Its own state is in the link, and a mark in that address counts there, too."""
    query = app.query(state="mine")
    await app.callback(query, html=True)
    other = query.replace("state=mine", "state=other")
    first = Markup.read((await app.callback(other, html=True, headers={"User-Agent": SAFARI})).text)
    second = Markup.read((await app.callback(f"{other}&n=1", html=True, headers={"User-Agent": SAFARI})).text)
    assert ("data-auto" in first.id("open"), "data-auto" in second.id("open")) == (True, False)
    assert first.id("open")["href"] == second.id("open")["href"]
    assert first.id("open")["href"].endswith("&state=other")


async def test_the_page_speaks_the_visitors_language(app: Running) -> None:
    """Ukrainian, Russian or English as the browser asks, on errors and on what is gone, too; junk is English."""
    address = await _returned(app)
    for accepted, language, title in (
        ("uk-UA,uk;q=0.9,en;q=0.8", "uk", "amoCRM підключено"),
        ("ru", "ru", "amoCRM подключена"),
        ("de", "en", "amoCRM is connected"),
        ("й;q=!,\U0001f600-*," * 200, "en", "amoCRM is connected"),
    ):
        answer, markup = await _look(app, address, **{"Accept-Language": accepted})
        assert (markup.named("html"), markup.said("h1")) == ([{"lang": language}], title)
        assert answer.headers["Vary"] == "Accept, Accept-Language, User-Agent"
    _, gone = await _look(app, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA", **{"Accept-Language": "uk"})
    assert gone.said("h1") == "Ця сторінка вже не діє"
    assert (gone.named("a"), gone.named("script")) == ([], [])


async def test_the_page_names_account_and_grant_and_no_secret(app: Running) -> None:
    """The account and the code for support stand there; code and state only in the link, the handle nowhere."""
    code = app.amo.code()
    address = await _returned(app, code=code, state="a-state-to-find")
    answer, markup = await _look(app, address)
    assert markup.said("b") == HOST
    assert len(markup.said("code")) == 8
    for secret in (code, "a-state-to-find"):
        assert answer.text.count(secret) == 1
    assert address.rpartition("/")[2] not in answer.text


async def test_android_has_a_second_way_where_the_package_is_known(run: Any) -> None:
    """With `app.android_package` the help holds an intent for Android's browsers, and for no others."""
    async with run(APP__ANDROID_PACKAGE="com.example.for_you") as app:
        code = app.amo.code()
        address = await _returned(app, code=code, state="a;end#b")
        _, markup = await _look(app, address, CHROME)
        assert markup.id("intent")["href"] == (
            f"intent://amo-crm/callback?code={code}&state=a%3Bend%23b"
            "#Intent;scheme=foryoure;package=com.example.for_you;end"
        )
        assert markup.id("open")["href"] == f"{LINK}?code={code}&state=a%3Bend%23b"
        for agent in (SAFARI, INSTAGRAM, DESKTOP):
            assert (await _look(app, address, agent))[1].find("intent") is None


# --- once more -------------------------------------------------------------------------------------


async def test_what_has_failed_is_tried_again_from_its_page(app: Running) -> None:
    """While AMO is ill the first button tries again; once it is well, that leads to the clean address, connected."""
    app.amo.sandbox.faults.add(Fault.HTTP_500, Fault.HTTP_500)
    address = await _returned(app, state="s")
    answer, markup = await _look(app, address)
    assert answer.status == 503
    assert [(link["id"], link["class"], link["href"]) for link in markup.named("a")] == [
        ("again", "button", "?again=1"),
        ("open", "second", f"{LINK}?error=amo_unavailable&state=s"),
    ]
    for expected in (503, 200, 200):
        again = await app.public(f"{address}?again=1")
        assert (again.status, again.location) == (303, address)
        answer, markup = await _look(app, address)
        assert (answer.status, markup.find("again") is None) == (expected, expected == 200)
    assert markup.said("h1") == "amoCRM is connected"
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 1


async def test_a_look_tries_nothing_again(app: Running) -> None:
    """HEAD and prefetches do no work here, either."""
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    address = f"{await _returned(app)}?again=1"
    asked = len(app.amo.fake.ledger.entries)
    assert (await app.public(address, method="HEAD")).status == 200
    for headers in ({"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}, {"X-Moz": "prefetch"}):
        assert (await app.public(address, headers=headers)).status == 204
    assert len(app.amo.fake.ledger.entries) == asked
    assert (await app.public(f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA", method="HEAD")).status == 200
    assert (await app.public(address)).status == 303
    assert len(app.amo.fake.ledger.exchanges()) == asked + 1


@pytest.mark.parametrize("query", ["", "?again=0", "?again=", "?again=1&again=1", "?Again=1", "?n=1"])
async def test_only_the_button_tries_again(app: Running, query: str) -> None:
    """A reload of the clean address, or anything that is not the button's, shows what happened and asks nobody."""
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    address = await _returned(app)
    asked = len(app.amo.fake.ledger.entries)
    assert (await app.public(address + query)).status == 503
    assert len(app.amo.fake.ledger.entries) == asked


async def test_a_final_answer_is_not_asked_for_again(app: Running) -> None:
    """What AMO refused for good, and what is connected, stays as it is, whoever asks for another try."""
    for code, status in ((None, 200), ("junk", 400)):
        address = await _returned(app, **({"code": code} if code else {}))
        asked = len(app.amo.fake.ledger.entries)
        again = await app.public(f"{address}?again=1")
        assert (again.status, again.location) == (303, address)
        answer, markup = await _look(app, address)
        assert (answer.status, markup.find("again")) == (status, None)
        assert len(app.amo.fake.ledger.entries) == asked


async def test_many_tries_of_one_page_at_once_are_one_exchange(app: Running) -> None:
    """An impatient person's ten taps ask AMO once."""
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    address = await _returned(app)
    asked = len(app.amo.fake.ledger.exchanges())
    answers = await asyncio.gather(*(app.public(f"{address}?again=1") for _ in range(10)))
    assert {(answer.status, answer.location) for answer in answers} == {(303, address)}
    assert len(app.amo.fake.ledger.exchanges()) == asked + 1


async def test_too_many_tries_are_told_with_the_way_to_go_on(run: Any) -> None:
    """Where the address has no place left, the page says so, hands back the state, and works a minute later."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        address = await _returned(app, state="s")
        answer, markup = await _look(app, f"{address}?again=1")
        assert (answer.status, markup.said("h1")) == (429, "Too many attempts")
        assert markup.id("again")["href"] == ""
        assert markup.id("open")["href"] == f"{LINK}?error=rate_limited&state=s"
        assert len(markup.said("code")) == 8
        app.clock.advance(60)
        assert (await app.public(f"{address}?again=1")).location == address
        assert (await app.public(address)).status == 200


async def test_a_passing_error_at_the_callbacks_address_is_tried_again_there(run: Any) -> None:
    """Nothing was written, so the same address, whose code is still good, is what "Try again" leads to."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        await app.callback(app.query(code="junk"))
        query = app.query(state="s")
        page = await app.callback(query, html=True, headers={"User-Agent": SAFARI})
        markup = Markup.read(page.text)
        assert page.status == 429
        assert [(link["id"], link["class"], link["href"]) for link in markup.named("a")] == [
            ("again", "button", ""),
            ("open", "second", f"{LINK}?error=rate_limited&state=s"),
        ]
        app.clock.advance(60)
        assert (await app.callback(query, html=True)).status == 303
