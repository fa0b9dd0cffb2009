"""`GET {base}/return/{handle}`: automatic opening of the app, and retries of a failed exchange."""

import asyncio
from typing import Any

import pytest
import segno

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.pages import Kind
from tests.service import BASE, HOST, LINK, Answer, Running
from tests.web.agents import AGENTS, CHROME, DESKTOP, INSTAGRAM, SAFARI
from tests.web.markup import Markup


async def _look(app: Running, address: str, agent: str = SAFARI, **headers: str) -> tuple[Answer, Markup]:
    answer = await app.public(address, headers={"User-Agent": agent, **headers})
    return answer, Markup.read(answer.text)


async def _returned(app: Running, **query: str) -> str:
    """Return the return address of a callback."""
    answer = await app.callback(app.query(**query), html=True)
    assert answer.status == 303
    return answer.location


# --- automatic opening -----------------------------------------------------------------------------


async def test_return_page_opens_automatically_only_in_phone_browsers(app: Running) -> None:
    """A success opens the app once in iOS and Android browsers, and on tablets, but not in other browsers."""
    address = await _returned(app)
    for name, (kind, agent) in AGENTS.items():
        _, markup = await _look(app, address, agent)
        opens, unsure = kind in {Kind.IOS, Kind.ANDROID}, kind in {Kind.MAC, Kind.LINUX}
        assert ("data-auto" in markup.id("open"), "data-tablet" in markup.id("open")) == (opens or unsure, unsure), name
        assert markup.id("open")["href"].startswith(f"{LINK}?code=")


@pytest.mark.parametrize("query", ["", "?n=0", "?x=1", "?n=1", "?n=", "?n=0&n=2", "?n=%ff", "?x=1&n=1"])
async def test_return_page_second_visit_does_not_open_automatically(app: Running, query: str) -> None:
    """After an attempt, which the page marks in its address, only the button opens the app, and help is shown."""
    _, markup = await _look(app, await _returned(app) + query)
    first = query in {"", "?n=0", "?x=1"}
    assert ("data-auto" in markup.id("open"), "open" in markup.id("help")) == (first, not first)


@pytest.mark.parametrize("agent", [SAFARI, CHROME, INSTAGRAM, DESKTOP])
async def test_return_page_error_does_not_open_automatically(app: Running, agent: str) -> None:
    """An error page never opens the app automatically, at the callback's address or at a return address."""
    refused = await app.callback("error=access_denied&state=s", html=True, headers={"User-Agent": agent})
    _, junk = await _look(app, await _returned(app, code="junk", state="s"), agent)
    for markup, word in ((Markup.read(refused.text), "access_denied"), (junk, "auth_failed")):
        assert markup.id("open") == {"id": "open", "class": "button", "href": f"{LINK}?error={word}&state=s"}
        assert markup.find("again") is None


async def test_callback_page_of_replay_with_other_state_opens_automatically_once(app: Running) -> None:
    """The link has the replay's own state, and a mark in the callback's address prevents a second opening."""
    query = app.query(state="mine")
    await app.callback(query, html=True)
    other = query.replace("state=mine", "state=other")
    first = Markup.read((await app.callback(other, html=True, headers={"User-Agent": SAFARI})).text)
    second = Markup.read((await app.callback(f"{other}&n=1", html=True, headers={"User-Agent": SAFARI})).text)
    assert ("data-auto" in first.id("open"), "data-auto" in second.id("open")) == (True, False)
    assert first.id("open")["href"] == second.id("open")["href"]
    assert first.id("open")["href"].endswith("&state=other")


async def test_return_page_language_follows_accept_language(app: Running) -> None:
    """The page and the 404 page are in the browser's language; a malformed header means English."""
    address = await _returned(app)
    for accepted, language, title in (
        ("uk-UA,uk;q=0.9,en;q=0.8", "uk", "amoCRM підключено"),
        ("ru", "ru", "Аккаунт amoCRM подключён"),
        ("es-MX", "es", "Cuenta de amoCRM conectada"),
        ("pt-BR", "pt", "Conta amoCRM conectada"),
        ("de", "en", "amoCRM is connected"),
        ("й;q=!,\U0001f600-*," * 200, "en", "amoCRM is connected"),
    ):
        answer, markup = await _look(app, address, **{"Accept-Language": accepted})
        assert (markup.named("html"), markup.text_of("h1")) == ([{"lang": language}], title)
        assert answer.headers["Vary"] == "Accept, Accept-Language, User-Agent"
    _, gone = await _look(app, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA", **{"Accept-Language": "uk"})
    assert gone.text_of("h1") == "Ця сторінка вже не діє"
    assert gone.named("a") == [{"id": "open", "class": "button", "href": LINK}]


async def test_return_page_shows_account_and_support_code_without_secrets(app: Running) -> None:
    """Code and state are only in the link, and the handle is nowhere in the page."""
    code = app.amo.code()
    address = await _returned(app, code=code, state="a-state-to-find")
    answer, markup = await _look(app, address)
    assert markup.text_of("b") == HOST
    assert len(markup.text_of("code")) == 8
    for secret in (code, "a-state-to-find"):
        assert answer.text.count(secret) == 1
    assert address.rpartition("/")[2] not in answer.text


async def test_return_page_android_package_adds_intent_link(run: Any) -> None:
    """With `app.android_package` the page has a second button with an intent link, in Android's browsers only."""
    async with run(APP__ANDROID_PACKAGE="com.example.for_you") as app:
        code = app.amo.code()
        address = await _returned(app, code=code, state="a;end#b")
        _, markup = await _look(app, address, CHROME)
        assert markup.id("intent")["href"] == (
            f"intent://amo-crm/callback?code={code}&state=a%3Bend%23b"
            "#Intent;scheme=foryoure;package=com.example.for_you;end"
        )
        assert markup.id("open")["href"] == f"{LINK}?code={code}&state=a%3Bend%23b"
        assert [link["class"] for link in markup.named("a")] == ["button", "second"]
        _, gone = await _look(app, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA", CHROME)
        assert gone.id("intent")["href"] == (
            "intent://amo-crm/callback#Intent;scheme=foryoure;package=com.example.for_you;end"
        )
        for agent in (SAFARI, INSTAGRAM, DESKTOP):
            assert (await _look(app, address, agent))[1].find("intent") is None


async def test_return_page_qr_code_has_public_address_of_handle(app: Running) -> None:
    """The code has the redirect URI's origin and the handle's path; a replay's page, with another state, has none."""
    query = app.query(state="mine")
    address = (await app.callback(query, html=True)).location
    origin = app.settings.amo.redirect_uri.partition("/api/")[0]
    code = segno.make_qr(f"{origin}{address}", error="m").svg_inline(omitsize=True, svgclass=None, lineclass=None)
    for visited in (address, f"{address}?n=1"):
        assert code in (await _look(app, visited, DESKTOP))[0].text
    other = query.replace("state=mine", "state=other")
    replay = await app.callback(other, html=True, headers={"User-Agent": DESKTOP})
    assert (replay.status, 'id="scan"' in replay.text) == (200, False)


async def test_page_names_crm_of_account_or_of_consent_page(run: Any) -> None:
    """Pages of kommo.com accounts say Kommo, even before AMO is asked; otherwise the consent page's host decides."""
    kommo = "reforyou.kommo.com"
    for authorize_url, without in (("https://www.kommo.com/oauth", "Kommo"), ("https://www.amocrm.ru/oauth", "amoCRM")):
        async with run(AMO__AUTHORIZE_URL=authorize_url) as app:
            denied = await app.callback("error=access_denied&state=s", html=True)
            unknown = await app.callback(f"code=a&state=ac1.x&referer={kommo}", html=True)
            app.amo.account.host = kommo
            connected = await app.callback(f"code={app.amo.code()}&state=s&referer={kommo}", html=True)
            _, page = await _look(app, connected.location)
            junk = await app.callback(f"code=junk&state=s&referer={kommo}", html=True)
            _, refused = await _look(app, junk.location)
        assert f"access in {without}" in denied.text
        assert page.text_of("h1") == "Kommo is connected"
        assert refused.text_of("h1") == "Kommo could not be connected"
        assert "Kommo" in unknown.text
        assert "amoCRM" not in unknown.text


# --- retries ---------------------------------------------------------------------------------------


async def test_return_page_retry_repeats_until_connected(app: Running) -> None:
    """While AMO fails the first button retries; after a success the return address shows the connection."""
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
    assert markup.text_of("h1") == "amoCRM is connected"
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 1


async def test_return_page_head_or_prefetch_retries_nothing(app: Running) -> None:
    """HEAD and prefetch requests start no retry."""
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
async def test_return_page_other_query_retries_nothing(app: Running, query: str) -> None:
    """A reload, or any query other than the button's, shows the result without asking AMO."""
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    address = await _returned(app)
    asked = len(app.amo.fake.ledger.entries)
    assert (await app.public(address + query)).status == 503
    assert len(app.amo.fake.ledger.entries) == asked


async def test_return_page_final_result_is_not_retried(app: Running) -> None:
    """A retry request changes neither a refused code nor a completed grant, and AMO is not asked."""
    for code, status in ((None, 200), ("junk", 400)):
        address = await _returned(app, **({"code": code} if code else {}))
        asked = len(app.amo.fake.ledger.entries)
        again = await app.public(f"{address}?again=1")
        assert (again.status, again.location) == (303, address)
        answer, markup = await _look(app, address)
        assert (answer.status, markup.find("again")) == (status, None)
        assert len(app.amo.fake.ledger.entries) == asked


async def test_return_page_concurrent_retries_make_one_exchange(app: Running) -> None:
    """Ten concurrent retries of one page ask AMO once."""
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    address = await _returned(app)
    asked = len(app.amo.fake.ledger.exchanges())
    answers = await asyncio.gather(*(app.public(f"{address}?again=1") for _ in range(10)))
    assert {(answer.status, answer.location) for answer in answers} == {(303, address)}
    assert len(app.amo.fake.ledger.exchanges()) == asked + 1


async def test_return_page_rate_limited_retry_is_429_and_works_later(run: Any) -> None:
    """If the address has no reservation left, the page is 429, returns the state, and works a minute later."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        address = await _returned(app, state="s")
        answer, markup = await _look(app, f"{address}?again=1")
        assert (answer.status, markup.text_of("h1")) == (429, "Too many attempts")
        assert markup.id("again")["href"] == ""
        assert markup.id("open")["href"] == f"{LINK}?error=rate_limited&state=s"
        assert len(markup.text_of("code")) == 8
        app.clock.advance(60)
        assert (await app.public(f"{address}?again=1")).location == address
        assert (await app.public(address)).status == 200


async def test_callback_page_rate_limited_retry_uses_same_address(run: Any) -> None:
    """Nothing was stored and the code is unspent, so the retry button leads to the callback's own address."""
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
