"""Several deep links: an authorization request names one, and each way back of the request uses it."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.grant import AuthorizationRequest
from tests.service import BASE, HOST, LINK, Answer, Running
from tests.web.markup import Markup
from tests.web.phone import WITH_USERS, Phone, allow, bearer, of

OTHER = "foryoure-dev://amo-crm/callback"
WEB = "https://app.example.com/amo-crm"
LINKS = {"APP__DEEP_LINK": f"{LINK} {OTHER} {WEB}"}
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1"
HTML = {"Accept": "text/html", "User-Agent": IPHONE}


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with three deep links."""
    async with run(**WITH_USERS, **LINKS) as running:
        yield running


async def _started(app: Running, **body: object) -> str:
    """Start an authorization request with another deep link, and return its consent URL."""
    body = {"deep_link": OTHER, **body}
    answer = await app.public(f"{BASE}/authorizations", method="POST", json=body, headers=bearer("42"))
    assert answer.status == 200, answer.text
    return str(answer.json()["data"]["authorize_url"])


async def _page_link(app: Running, page: Answer) -> str:
    """Return the link of a page, or of the page that a redirect leads to."""
    if page.status == 303:
        page = await app.public(page.location, headers=HTML)
    return str(Markup.read(page.text).id("open")["href"])


# --- the request -----------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [LINK, OTHER, WEB])
async def test_each_configured_deep_link_is_accepted_everywhere(app: Running, link: str) -> None:
    """The app, a backend and a plain link can name each deep link, and the user returns to it."""
    owned = await app.private("/authorizations", method="POST", json={"owner": 42, "deep_link": link})
    plain = await app.public(f"{BASE}/connect?deep_link={quote(link, safe='')}")
    for url in (await _started(app, deep_link=link), owned.json()["authorize_url"], plain.location):
        assert (await allow(app, url)).location.startswith(f"{link}?code=")


async def test_request_without_deep_link_uses_first(app: Running) -> None:
    """Without a deep link in the request, and without an authorization request, the default deep link is used."""
    assert (await allow(app, await _started(app, deep_link=None))).location.startswith(f"{LINK}?code=")
    assert (await app.callback(app.query())).location.startswith(f"{LINK}?code=")


@pytest.mark.parametrize(
    "link",
    ["", "foryoure-dev://amo-crm", f"{OTHER}/", OTHER.upper(), f"{OTHER}?x=1", f"{LINK} {OTHER}", "javascript:alert(1)",
     "evil://x", "x" * 60_000],
)  # fmt: skip
async def test_deep_link_that_is_not_configured_is_400(app: Running, link: str) -> None:
    """Another deep link is refused with the field's name, never with its value."""
    answer = await app.public(f"{BASE}/authorizations", method="POST", json={"deep_link": link}, headers=bearer("42"))
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert answer.json()["message"] == "deep_link: must be one of the deep links in app.deep_link"
    owned = await app.private("/authorizations", method="POST", json={"owner": 42, "deep_link": link})
    assert (owned.status, owned.json()["detail"]) == (400, answer.json()["message"])
    if len(link) < 9000 and link.isprintable():
        answer = await app.public(f"{BASE}/connect?deep_link={quote(link, safe='')}")
        assert (answer.status, answer.location) == (302, f"{LINK}?error=invalid_request")


@pytest.mark.parametrize("link", [7, [OTHER], {"a": OTHER}, True])
async def test_deep_link_of_another_type_is_400(app: Running, link: object) -> None:
    """A deep link that is not a string is refused by both APIs, and the message names the field."""
    answer = await app.public(f"{BASE}/authorizations", method="POST", json={"deep_link": link}, headers=bearer("42"))
    assert (answer.status, '"deep_link"' in answer.json()["message"]) == (400, True)
    owned = await app.private("/authorizations", method="POST", json={"owner": 42, "deep_link": link})
    assert (owned.status, owned.json()["detail"].startswith("deep_link: ")) == (400, True)


async def test_connect_doubled_deep_link_is_invalid_request(app: Running) -> None:
    """A link with two deep links is refused, and the user returns by the default deep link."""
    twice = "&".join([f"deep_link={quote(OTHER, safe='')}"] * 2)
    assert (await app.public(f"{BASE}/connect?{twice}")).location == f"{LINK}?error=invalid_request"


async def test_connect_refused_after_its_deep_link_was_accepted_uses_it(run: Any) -> None:
    """A link that is refused because of the rate limit leads back by the deep link that it names."""
    async with run(LIMITS__FAILED_CODES="1", **LINKS) as app:
        path = f"{BASE}/connect?deep_link={quote(OTHER, safe='')}"
        assert (await app.public(path)).status == 303
        assert (await app.public(path)).location == f"{OTHER}?error=rate_limited"
        page = await app.public(path, headers=HTML)
        assert (page.status, await _page_link(app, page)) == (429, f"{OTHER}?error=rate_limited")


# --- the ways back ---------------------------------------------------------------------------------


async def test_page_and_redirect_use_deep_link_of_request(app: Running) -> None:
    """The redirect and the return page, also of a repeated callback, have the deep link and the app's own state."""
    url, code = await _started(app, state="mine"), app.amo.code()
    expected = f"{OTHER}?code={code}&state=mine"
    assert (await allow(app, url, code=code)).location == expected
    page = await allow(app, url, code=code, html=True)
    assert page.status == 303
    assert await _page_link(app, page) == expected


@pytest.mark.parametrize("error", ["access_denied", "server_error"])
async def test_failure_before_amo_is_asked_uses_deep_link_of_issued_state(app: Running, error: str) -> None:
    """AMO's error, a missing code and a foreign host lead back by the deep link of the issued state."""
    state = quote(of(await _started(app))["state"], safe="")
    for query in (f"error={error}&state={state}", f"state={state}", f"code=x&state={state}&referer=evil.example"):
        answer = await app.callback(query)
        assert answer.location.startswith(f"{OTHER}?error=")
        page = await app.callback(query, html=True)
        assert await _page_link(app, page) == answer.location


async def test_failure_of_exchange_and_retry_use_deep_link_of_request(app: Running) -> None:
    """A temporary failure, its page, and the retry on that page lead back by the deep link of the request."""
    url, code = await _started(app), app.amo.code()
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    page = await allow(app, url, code=code, html=True)
    assert (await _page_link(app, page)).startswith(f"{OTHER}?error=amo_unavailable&state=ac1.")
    again = await app.public(f"{page.location}?again=1", headers=HTML)
    assert (again.status, await _page_link(app, again)) == (303, (await allow(app, url, code=code)).location)
    assert (await _page_link(app, again)).startswith(f"{OTHER}?code={code}&state=ac1.")


async def test_refused_retry_uses_deep_link_of_request(run: Any) -> None:
    """A retry that is refused before AMO is asked leads back by the deep link of the request."""
    async with run(LIMITS__FAILED_CODES="1", **WITH_USERS, **LINKS) as app:
        url = await _started(app)
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        page = await allow(app, url, html=True)
        assert (await app.callback("code=wrong&referer=" + HOST)).location.startswith(f"{LINK}?error=")
        again = await app.public(f"{page.location}?again=1", headers=HTML)
        assert (again.status, (await _page_link(app, again)).partition("&")[0]) == (429, f"{OTHER}?error=rate_limited")


async def test_late_answer_uses_deep_link_of_request(app: Running) -> None:
    """If AMO does not answer within 8 seconds, the redirect has the deep link of the request, and so has the page."""
    url, code = await _started(app), app.amo.code()
    late = await app.late(allow(app, url, code=code))
    assert late.location.startswith(f"{OTHER}?error=amo_unavailable&state=ac1.")
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")
    assert (
        await _page_link(app, await allow(app, url, code=code, html=True))
        == (await allow(app, url, code=code)).location
    )


async def test_used_state_with_unknown_code_uses_deep_link_of_request(app: Running) -> None:
    """A code of another account with a used state is refused by the deep link of the state's request."""
    url = await _started(app)
    await allow(app, url)
    other = app.amo.fake.open_account("another.amocrm.ru")
    state = quote(of(url)["state"], safe="")
    answer = await app.callback(f"code={app.amo.fake.allow(other)}&state={state}&referer={other.host}")
    assert answer.location == f"{OTHER}?error=invalid_state&state={of(url)['state']}"


async def test_code_presented_with_state_of_another_request_uses_that_requests_deep_link(app: Running) -> None:
    """A known code that comes with another issued state leads back by the deep link of that state's request."""
    code = app.amo.code()
    await allow(app, await _started(app), code=code)
    other = await _started(app, deep_link=WEB, state="theirs")
    answer = await allow(app, other, code=code)
    assert answer.location == f"{WEB}?error=invalid_state&state=theirs"


async def test_state_of_app_leads_back_by_default_deep_link(app: Running) -> None:
    """A state that looks like an issued one, or an app's own state, leads back by the default deep link."""
    for state in ("ac1.AAAAAAAAAAAAAAAAAAAAAA", "own", OTHER):
        answer = await app.callback(f"error=access_denied&state={quote(state, safe='')}")
        assert answer.location.startswith(f"{LINK}?error=access_denied&state=")


async def test_exchange_code_is_independent_of_deep_link(app: Running) -> None:
    """The app exchanges the code of each deep link with its verifier, and its user becomes an owner."""
    phone = Phone(app, "42")
    code = await phone.connect(deep_link=WEB)
    assert (await phone.exchange(code)).json()["success"] is True


# --- stored values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["gone://x", "javascript:alert(1)", "", 7, [LINK], {"a": 1}])
async def test_stored_deep_link_that_is_not_configured_is_replaced_by_default(app: Running, stored: Any) -> None:
    """A stored deep link that is no longer configured, or of another type, leads back by the default deep link."""
    authorizations, code = app.service.services.oauth.authorizations, app.amo.code()
    for query, begin in (("error=access_denied", "?error="), (f"code={code}&referer={HOST}", f"?code={code}&")):
        started = await authorizations.start(AuthorizationRequest(deep_link=stored))
        answer = await app.callback(f"{query}&state={started.state.decode()}")
        assert answer.location.startswith(LINK + begin)


async def test_deep_link_is_stored_encrypted(app: Running) -> None:
    """The database does not contain the deep link of a request in readable form, and neither does the log."""
    url = await _started(app, deep_link=WEB)
    await allow(app, url)
    content = b"".join(path.read_bytes() for path in app.folder.glob("amo-callback.db*"))
    assert content
    assert WEB.encode() not in content
    assert WEB not in app.log.getvalue()


# --- https links -----------------------------------------------------------------------------------


async def test_https_link_is_opened_by_button_or_redirect_mode(run: Any) -> None:
    """A page has the https link as its button and no `Refresh` header; `app.return_mode = "redirect"` redirects."""
    async with run(APP__DEEP_LINK=WEB, APP__RETURN_MODE="page") as app:
        page = await app.callback(app.query(), html=True, headers={"User-Agent": IPHONE})
        shown = await app.public(page.location, headers=HTML)
        button = Markup.read(shown.text).id("open")
        assert (button["href"].startswith(f"{WEB}?code="), "data-auto" in button) == (True, False)
        assert "Refresh" not in shown.headers
        assert (await app.callback("error=access_denied")).status == 400
    async with run(APP__DEEP_LINK=WEB, APP__RETURN_MODE="redirect") as app:
        answer = await app.callback(app.query(), html=True)
        assert (answer.status, answer.location.startswith(f"{WEB}?code=")) == (302, True)
