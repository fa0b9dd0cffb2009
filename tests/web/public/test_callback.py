"""`GET {base}/callback`: every user returns to the app, no code is spent twice, failures have support codes."""

import asyncio
import re
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.grant import support_code
from amo_callback.model import fingerprint
from tests.service import ADMIN_KEY, BASE, HOST, LINK, Answer, Running
from tests.web.markup import Markup


async def test_callback_valid_code_stores_pair_and_redirects_to_app(app: Running) -> None:
    """The callback redirects to the deep link after the pair has been stored."""
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state="abc"))
    assert (answer.status, answer.location) == (302, f"{LINK}?code={code}&state=abc")
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    assert connection.domain == HOST
    assert app.amo.fake.ledger.doubles() == 0


async def test_callback_browser_is_sent_to_return_page_without_code_in_address(app: Running) -> None:
    """A browser is redirected to an address without code and state, whose page has one link."""
    code = app.amo.code()
    answer = await app.callback(app.query(code=code, state="a&b"), html=True)
    assert answer.status == 303
    assert re.fullmatch(rf"{BASE}/return/[A-Za-z0-9_-]{{22}}", answer.location)
    page = await app.public(answer.location)
    assert page.status == 200
    assert f'href="{LINK}?code={code}&amp;state=a%26b"' in page.text
    assert page.text.count("<a ") == 1
    assert (await app.public(answer.location)).status == 200


async def test_return_page_after_20_minutes_is_404(app: Running) -> None:
    """After 20 minutes the return address is a 404 page with a button that opens the app, as is an unknown handle."""
    answer = await app.callback(app.query(), html=True)
    app.clock.advance(1200)
    for address in (answer.location, f"{answer.location}?again=1", f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA"):
        page = await app.public(address)
        assert page.status == 404
        assert Markup.read(page.text).named("a") == [{"id": "open", "class": "button", "href": LINK}]
        assert "no longer valid" in page.text


async def test_callback_return_mode_selects_redirect_or_page(run: Any) -> None:
    """In `auto` only a request for HTML gets the page; `redirect` and `page` apply to every request."""
    html = ("text/html", "application/xhtml+xml", "text/html;q=0.5, */*", "image/png,TEXT/HTML;q=0.1")
    other = ("*/*", "", "application/json", "text/html;q=0", "text/html;q=0.000, */*", "text/*")
    for mode, accepted, status in (
        ("auto", html, 303),
        ("auto", other, 302),
        ("redirect", html, 302),
        ("page", other, 303),
    ):
        async with run(APP__RETURN_MODE=mode) as app:
            for accept in accepted:
                answer = await app.callback(app.query(), headers={"Accept": accept})
                assert (mode, accept, answer.status) == (mode, accept, status)


async def test_callback_hand_back_none_omits_code(run: Any) -> None:
    """With `hand_back = "none"` the link reports success without the code."""
    async with run(APP__HAND_BACK="none") as app:
        answer = await app.callback(app.query(state="s"))
        assert answer.location == f"{LINK}?success=true&state=s"


# --- state and code, byte for byte -----------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        b"plain",
        b"",
        b"eyJyYW5kb20iOiJ4IiwidXNlcklkIjo0Mn0=",
        b"a+b c/d?e=f&g#h%25",
        b"\x00\x01\r\nSet-Cookie: a=b",
        b"\xff\xfe\xc0\xae",
        "й".encode() * 50,
        b'"><script>window.__x=1</script>',
        b"#Intent;scheme=https;package=evil;end",
        b"x" * 2048,
        bytes(range(256)),
    ],
)
async def test_callback_state_is_returned_byte_for_byte(app: Running, state: bytes) -> None:
    """The bytes of the app's state are returned percent-encoded."""
    code = app.amo.code()
    sent = "".join(f"%{byte:02x}" for byte in state)
    answer = await app.callback(f"code={code}&state={sent}&referer={HOST}")
    assert answer.location == f"{LINK}?code={code}&state={quote_from_bytes(state, safe='')}"


@pytest.mark.parametrize(("sent", "returned"), [("&state=a+b", "a%20b"), ("", "")])
async def test_callback_state_plus_is_space_and_missing_is_empty(app: Running, sent: str, returned: str) -> None:
    """A `+` is returned as `%20`; the existing app expects `state` in a success even if none was sent."""
    answer = await app.callback(f"code={app.amo.code()}{sent}&referer={HOST}")
    assert answer.location.endswith(f"&state={returned}")


# --- errors found before AMO is asked --------------------------------------------------------------


BROKEN = [
    ("", "missing_code", None),
    ("state=s", "missing_code", "s"),
    ("code=&state=s", "missing_code", "s"),
    ("error=access_denied&state=s", "access_denied", "s"),
    ("error=access_denied&code=x&state=s", "access_denied", "s"),
    ("error=%3Cscript%3E&state=s", "auth_failed", "s"),
    ("error=" + "x" * 10_000, "auth_failed", None),
    ("code=a&code=b&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a&%63ode=b&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a&state=s&state=t&referer=a.amocrm.ru", "invalid_request", None),
    ("code[]=a&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a&state[x]=s&referer=a.amocrm.ru", "invalid_request", None),
    ("code=a%zz&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a%&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a&state=%2&referer=a.amocrm.ru", "invalid_request", None),
    ("code=" + "c" * 4097 + "&state=s&referer=a.amocrm.ru", "invalid_request", "s"),
    ("code=a&state=" + "s" * 2049 + "&referer=a.amocrm.ru", "invalid_request", None),
    ("&".join(f"p{number}=1" for number in range(2000)), "invalid_request", None),
    ("code=a&state=s", "invalid_request", "s"),
    ("code=a&state=s&referer=evil.com", "account_not_allowed", "s"),
    ("code=%ff%fe&state=s&referer=a.amocrm.ru", "auth_failed", "s"),
]


@pytest.mark.parametrize(("query", "error", "state"), BROKEN)
async def test_callback_invalid_request_returns_error_word(
    app: Running, query: str, error: str, state: str | None
) -> None:
    """The app gets the error word, and the state if it arrived intact; AMO is not asked."""
    answer = await app.callback(query)
    expected = f"{LINK}?error={error}" + ("" if state is None else f"&state={state}")
    assert (answer.status, answer.location) == (302, expected)
    page = await app.callback(query, html=True)
    assert page.status == 400
    assert f'href="{expected.replace("&", "&amp;")}"' in page.text
    assert app.amo.fake.ledger.entries == []


async def test_callback_long_request_line_is_answered_without_quoting_it(app: Running) -> None:
    """A request line of 30 kB gets the deep link; one above 32 kB gets a 400 that quotes nothing of it."""
    assert (await app.callback("state=s&code=" + "c" * 30_000)).location == f"{LINK}?error=invalid_request&state=s"
    refused = await app.callback("code=" + "secret" * 8_000)
    assert (refused.status, "secret" in refused.text) == (400, False)
    assert app.lines()[-1]["event"] == "http.bad_request"
    assert "secret" not in app.log.getvalue()


# --- AMO's answers ---------------------------------------------------------------------------------


async def test_callback_refused_code_returns_its_error_word(app: Running) -> None:
    """Each refusal of a code has its error word, and a repeated callback does not ask AMO again."""
    spent, old = app.amo.code(), app.amo.code()
    app.amo.spend(grant_type="authorization_code", code=spent)
    app.amo.fake.ledger.entries.clear()
    for _ in range(2):
        assert (await app.callback(app.query(code=spent, state="s"))).location == f"{LINK}?error=code_used&state=s"
        assert (await app.callback(app.query(code="junk", state="s"))).location == f"{LINK}?error=auth_failed&state=s"
    app.clock.advance(1200)
    for _ in range(2):
        assert (await app.callback(app.query(code=old, state="s"))).location == f"{LINK}?error=code_expired&state=s"
    assert len(app.amo.fake.ledger.entries) == 3


async def test_callback_code_at_wrong_host_is_auth_failed(app: Running) -> None:
    """A code presented at a host that did not issue it, or that has no account, is `auth_failed`."""
    app.amo.fake.open_account("other.amocrm.ru")
    for host in ("other.amocrm.ru", "nobody.kommo.com"):
        answer = await app.callback(f"code={app.amo.code()}&state=s&referer={host}")
        assert answer.location == f"{LINK}?error=auth_failed&state=s"


PASSING = [Fault.HTTP_500, Fault.HTML, Fault.HTML_200, Fault.REDIRECT, Fault.TOO_MANY, Fault.UNPAID, Fault.BLOCKED]


@pytest.mark.parametrize(
    ("fault", "word"), [*((fault, "amo_unavailable") for fault in PASSING), (Fault.TEAPOT, "auth_failed")]
)
async def test_callback_transient_failure_same_code_works_later(app: Running, fault: Fault, word: str) -> None:
    """If AMO fails or answers an unlisted 4xx, the code is unspent and the same callback works later."""
    app.amo.sandbox.faults.add(fault)
    query = app.query(state="s")
    assert (await app.callback(query)).location == f"{LINK}?error={word}&state=s"
    app.clock.advance(60)  # the pause after a 429
    assert "?code=" in (await app.callback(query)).location


@pytest.mark.parametrize(
    "fault",
    [Fault.HTTP_500_AFTER, Fault.HALF_JSON_AFTER, Fault.NO_REFRESH_TOKEN_AFTER, Fault.HUGE_AFTER, Fault.NOTHING_AFTER],
)
async def test_callback_unknown_outcome_is_code_expired_on_retry(app: Running, fault: Fault) -> None:
    """This service may have spent the code, so a retry is `code_expired` and not `code_used`."""
    app.amo.sandbox.faults.add(fault)
    query = app.query(state="s")
    assert (await app.callback(query)).location == f"{LINK}?error=amo_unavailable&state=s"
    assert (await app.callback(query)).location == f"{LINK}?error=code_expired&state=s"
    assert (await app.callback(query, html=True)).status == 303


async def test_callback_amo_unreachable_is_amo_unavailable(run: Any) -> None:
    """If AMO cannot be reached, the code is not sent and stays unspent."""
    async with run(AMO__ENDPOINT="http://127.0.0.1:9/{domain}") as app:
        answer = await app.callback(app.query(state="s"))
        assert answer.location == f"{LINK}?error=amo_unavailable&state=s"
        assert app.witness.named("grant.failed")[0].fields["error"] == "not_sent"


async def test_callback_slow_amo_shows_page_that_later_has_result(run: Any) -> None:
    """After 8 s the page says that it is still connecting, and its address shows the result later."""
    async with run() as app:
        query = app.query(state="s")
        answer = await app.late(app.callback(query, html=True))
        assert answer.status == 303
        page = await app.public(answer.location)
        assert (page.status, "Still connecting" in page.text, "fetch(" in page.text) == (200, True, True)
        assert [link["href"] for link in Markup.read(page.text).named("a")] == [""]
        assert "Refresh" not in page.headers
        asked = asyncio.create_task(app.callback(query))
        await app.clock.until_sleeping(8)
        app.clock.advance(8)
        late = await asked
        assert late.location == f"{LINK}?error=amo_unavailable&state=s"
        app.amo.sandbox.go_on.set()
        await app.witness.until("connection.connected")
        page = await app.public(answer.location)
        assert (page.status, "is connected" in page.text) == (200, True)
        assert "?code=" in (await app.callback(query)).location
        assert len(app.amo.fake.ledger.exchanges()) == 1


# --- concurrent, repeated and automatic requests --------------------------------------------------


async def test_callback_concurrent_copies_share_one_exchange(app: Running) -> None:
    """Concurrent copies of a callback, and a replay, get the same answer from one exchange."""
    query = app.query()
    for html in (True, False):
        answers = await asyncio.gather(*(app.callback(query, html=html) for _ in range(20)))
        answers.append(await app.callback(query, html=html))
        assert len({(answer.status, answer.location) for answer in answers}) == 1
    assert len(app.amo.fake.ledger.entries) == 1


async def test_callback_replay_with_other_state_returns_that_state(app: Running) -> None:
    """A known code returns its result with the replay's state, and not the first callback's page."""
    code = app.amo.code()
    await app.callback(app.query(code=code, state="mine"), html=True)
    answer = await app.callback(app.query(code=code, state="other"))
    assert answer.location == f"{LINK}?code={code}&state=other"
    page = await app.callback(app.query(code=code, state="other"), html=True)
    assert (page.status, f"?code={code}&amp;state=other" in page.text) == (200, True)
    assert len(app.amo.fake.ledger.entries) == 1


async def test_callback_head_or_prefetch_spends_no_code(app: Running) -> None:
    """HEAD and prefetch requests do no work; the visit after them connects."""
    query = app.query()
    head = await app.public(f"{BASE}/callback?{query}", method="HEAD")
    assert (head.status, "Location" in head.headers) == (200, False)
    for headers in (
        {"Sec-Purpose": "prefetch"},
        {"Sec-Purpose": "prefetch;prerender"},
        {"Purpose": "prefetch"},
        {"X-Moz": "prefetch"},
    ):
        assert (await app.callback(query, headers=headers)).status == 204
    assert app.amo.fake.ledger.entries == []
    assert (await app.callback(query)).status == 302


async def test_callback_from_amo_server_gets_plain_text(app: Running) -> None:
    """`from_exchange` gets 200 and no deep link for any `Accept`, and `from_widget` without HTML does too."""
    for marker, html in (("from_exchange", False), ("from_exchange", True), ("from_widget", False)):
        answer = await app.callback(f"{app.query()}&{marker}=1", html=html)
        assert (answer.status, answer.text, "Location" in answer.headers) == (200, "connected\n", False)
    assert (await app.callback(f"{app.query()}&from_widget=1", html=True)).status == 303
    refused = await app.callback("code=junk&from_exchange=1&referer=" + HOST)
    assert (refused.status, refused.text) == (400, "auth_failed\n")
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 1


async def test_callback_from_amo_server_late_exchange_is_200(app: Running) -> None:
    """If the exchange takes longer than 8 s, AMO's server gets 200 and the exchange continues."""
    answer = await app.late(app.callback(f"{app.query()}&from_exchange=1"))
    assert (answer.status, answer.text) == (200, "exchanging\n")
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")


async def test_callback_same_account_and_user_renews_connection(app: Running) -> None:
    """One account and AMO user have one connection, however often they connect."""
    first = await app.connected()
    second = await app.connected()
    assert first == second
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    assert connection.pair_version == 2


async def test_callback_other_amo_user_creates_other_connection(app: Running) -> None:
    """Tokens have the rights of the AMO user who granted them, so each user of an account has a connection."""
    first = await app.connected()
    app.amo.account.user_id += 1
    assert await app.connected() != first
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 2


async def test_callback_missing_referer_uses_default_domain(run: Any) -> None:
    """A callback without a referer is exchanged at the configured default domain."""
    async with run(AMO__DEFAULT_DOMAIN=HOST) as app:
        assert "?code=" in (await app.callback(f"code={app.amo.code()}&state=s")).location


async def test_callback_failed_codes_are_limited_per_address(run: Any) -> None:
    """An address has a number of failed codes per window; other addresses and accepted codes are not affected."""
    async with run(LIMITS__FAILED_CODES="3") as app:
        for _ in range(5):
            assert "?code=" in (await app.callback(app.query())).location
        junk = [await app.callback(app.query(code=f"junk{number}", state="s")) for number in range(5)]
        words = [answer.location.partition("error=")[2] for answer in junk]
        assert words == ["auth_failed&state=s"] * 3 + ["rate_limited&state=s"] * 2
        page = await app.callback(app.query(), html=True)
        assert page.status == 429
        other_address = await app.callback(app.query(), headers={"X-Forwarded-For": "evil, 192.0.2.7"})
        assert "?code=" in other_address.location
        app.clock.advance(60)
        assert "?code=" in (await app.callback(app.query())).location


# --- headers ---------------------------------------------------------------------------------------


async def test_public_api_responses_have_security_headers(app: Running) -> None:
    """Every response forbids caching, referrers, frames and content sniffing."""
    redirected = await app.callback(app.query(), html=True)
    answers = [
        redirected,
        await app.public(redirected.location),
        await app.callback(app.query()),
        await app.callback("code=a&code=b", html=True),
        await app.public("/nowhere"),
        await app.public(f"{BASE}/callback", method="POST"),
        await app.public("/healthz"),
    ]
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Robots-Tag"] == "noindex"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "aiohttp" not in answer.headers["Server"]


# --- support codes --------------------------------------------------------------------------------


def _code_of(page: Answer) -> str:
    [code] = re.findall(r'class="support">[^<]*<code>([0-9a-f]{8})</code>', page.text)
    return str(code)


def _line(app: Running, page: Answer) -> dict[str, Any]:
    """Return the one log line with a page's support code, without the common fields."""
    code = _code_of(page)
    [line] = [line for line in app.lines() if code in str(line.get("support_code"))]
    return {name: line[name] for name in line if name not in {"support_code", "timestamp", "request_id"}}


def _refused(word: str, level: str = "info", **more: object) -> dict[str, object]:
    return {"event": "callback.refused", "level": level, "word": word, **more}


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("code=abcdef&state=s3cret&referer=evil.com", _refused("account_not_allowed", refused="host", host="evil.com")),
        ("code=abcdef&state=s3cret&referer=x@evil.example.com", _refused("account_not_allowed", refused="host")),
        ("code=abcdef&state=s3cret&referer=abcdef", _refused("account_not_allowed", refused="host")),
        ("code=abcdef&state=s3cret", _refused("invalid_request", refused="host")),
        ("code=abcdef&code=b&state=s3cret", _refused("invalid_request", refused="query")),
        ("state=s3cret", _refused("missing_code", refused="code")),
        ("error=access_denied&state=s3cret", _refused("access_denied", refused="error")),
        ("error=s3cret", _refused("auth_failed", refused="error")),
        (f"code=%ff&state=s3cret&referer={HOST}", _refused("auth_failed", refused="code")),
        (
            f"code=abcdef&state=ac1.s3cret&referer={HOST}",
            _refused("invalid_state", error="invalid_state", refused="state"),
        ),
    ],
    ids=["host", "odd-host", "code-as-host", "no-host", "doubled", "no-code", "denied", "error", "binary", "state"],
)  # fmt: skip
async def test_refused_callback_log_has_support_code_and_reason(
    app: Running, query: str, line: dict[str, object]
) -> None:
    """The line has support code, error word, kind of value, and a host's name, but no code or state."""
    page = await app.callback(query, html=True)
    assert _line(app, page) == line
    assert app.amo.sandbox.requests == 0
    assert "s3cret" not in app.log.getvalue()
    assert "abcdef" not in app.log.getvalue()


async def test_refused_redirect_log_has_support_code_and_reason(app: Running) -> None:
    """The app gets the error word, the log the reason; each visit without a code has its own support code."""
    await app.callback("code=abcdef&state=s&referer=evil.example.com")
    [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
    assert (line["support_code"], line["host"]) == (support_code(fingerprint("abcdef")), "evil.example.com")
    assert len({_code_of(await app.callback("state=s", html=True)) for _ in range(2)}) == 2


async def test_rate_limited_callback_log_omits_address(run: Any) -> None:
    """The refusal's log line omits the client's address, which is in the access log line."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        await app.callback(app.query(code="junk"), html=True)
        page = await app.callback(app.query(code="junk-2"), html=True)
        assert _line(app, page) == _refused("rate_limited", error="rate_limited", refused="address")


async def test_account_not_allowed_is_refused_logged_and_not_stored(run: Any) -> None:
    """With `allowed_accounts` another account's pair is discarded, and the log has the account's number."""
    async with run(AMO__ALLOWED_ACCOUNTS="1, 2") as app:
        answer = await app.callback(app.query(state="s"))
        assert answer.location == f"{LINK}?error=account_not_allowed&state=s"
        assert await app.service.services.store.connections_of(str(app.amo.account.id)) == []
        page = await app.public((await app.callback(app.query(), html=True)).location)
        line = _line(app, page)
        assert line["event"] == "grant.failed"
        assert (line["word"], line["refused"]) == ("account_not_allowed", "account")
        assert line["account_id"] == str(app.amo.account.id)


async def test_refused_code_log_has_amo_status_and_hint(app: Running) -> None:
    """The log line with the page's support code has AMO's status and hint."""
    page = await app.public((await app.callback(app.query(code="junk"), html=True)).location)
    line = _line(app, page)
    assert (line["event"], line["word"], line["refused"]) == ("grant.failed", "auth_failed", "code")
    assert (line["status"], line["hint"]) == (400, "Cannot decrypt the authorization code")


async def test_late_exchange_redirect_is_logged(app: Running) -> None:
    """The redirect with `amo_unavailable` is logged while the exchange continues."""
    code = app.amo.code()
    assert "error=amo_unavailable" in (await app.late(app.callback(app.query(code=code)))).location
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")
    [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
    assert (line["word"], line["error"], line["level"]) == ("amo_unavailable", "exchanging", "warning")
    assert line["support_code"] == support_code(fingerprint(code))


async def test_refused_retry_log_has_support_code_of_grant(run: Any) -> None:
    """A retry refused on the return page is logged with the grant's support code."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        code = app.amo.code()
        address = (await app.callback(app.query(code=code), html=True)).location
        page = await app.public(f"{address}?again=1")
        assert _code_of(page) == support_code(fingerprint(code))
        [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
        assert (line["word"], line["refused"]) == ("rate_limited", "address")


async def test_refused_connect_link_is_logged(app: Running) -> None:
    """An invalid `connect` link is logged as well."""
    page = await app.public(f"{BASE}/connect?state=a&state=b", headers={"Accept": "text/html"})
    assert _line(app, page) == _refused("invalid_request", error="invalid_request", refused="query")


async def test_grant_ended_by_disconnect_is_code_expired_and_logged(app: Running) -> None:
    """The pair arrived after the disconnect, so page and app get `code_expired` and no connection."""
    await app.connected()
    code = app.amo.code()
    coming = await app.begun(app.callback(app.query(code=code), html=True))
    gone = await app.private(f"/connections/account:{app.amo.account.id}", method="DELETE", key=ADMIN_KEY)
    assert gone.status == 200
    app.amo.sandbox.go_on.set()
    page = await app.public((await coming).location)
    line = _line(app, page)
    assert (line["event"], line["word"]) == ("grant.superseded", "code_expired")
    exchanged = await app.public(f"{BASE}/exchange-code", method="POST", json={"code": code})
    assert (exchanged.status, exchanged.json()["success"], exchanged.json()["error"]) == (400, False, "code_expired")
