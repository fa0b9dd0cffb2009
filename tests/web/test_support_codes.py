"""Support codes: each failure has one on its page, and it leads to one line of the log that says what was refused."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.grant import support_code
from amo_callback.model import fingerprint
from tests.conftest import ADMIN_KEY, BASE, HOST

if TYPE_CHECKING:
    from tests.conftest import Answer, Running


def _code_of(page: Answer) -> str:
    [code] = re.findall(r'class="support">[^<]*<code>([0-9a-f]{8})</code>', page.text)
    return str(code)


def _line(app: Running, page: Answer) -> dict[str, Any]:
    """Return the one line that a page's support code leads to, without what every line has."""
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
async def test_a_callback_refused_before_the_exchange_is_logged_with_its_reason(
    app: Running, query: str, line: dict[str, object]
) -> None:
    """The page's code, the error's word, the kind of value, and a host by its name; never a code or a state."""
    page = await app.callback(query, html=True)
    assert _line(app, page) == line
    assert app.amo.sandbox.requests == 0
    assert "s3cret" not in app.log.getvalue()
    assert "abcdef" not in app.log.getvalue()


async def test_a_redirect_is_logged_as_a_page_is(app: Running) -> None:
    """The app gets the word alone; the log has the reason."""
    await app.callback("code=abcdef&state=s&referer=evil.example.com")
    [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
    assert (line["support_code"], line["host"]) == (support_code(fingerprint("abcdef")), "evil.example.com")


async def test_a_callback_without_a_code_has_a_support_code_of_its_own(app: Running) -> None:
    """Two people who come without one are told apart."""
    codes = [_code_of(await app.callback("state=s", html=True)) for _ in range(2)]
    assert codes[0] != codes[1]


async def test_too_many_failed_codes_are_logged(run: Any) -> None:
    """The address is in the request's own line, and not in this one."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        await app.callback(app.query(code="junk"), html=True)
        page = await app.callback(app.query(code="junk-2"), html=True)
        assert _line(app, page) == _refused("rate_limited", error="rate_limited", refused="address")


async def test_an_account_that_is_not_listed_is_logged_by_its_number(run: Any) -> None:
    """It is known only after the exchange, and no secret."""
    async with run(AMO__ALLOWED_ACCOUNTS="1") as app:
        page = await app.public((await app.callback(app.query(), html=True)).location)
        line = _line(app, page)
        assert line["event"] == "grant.failed"
        assert (line["word"], line["refused"]) == ("account_not_allowed", "account")
        assert line["account_id"] == str(app.amo.account.id)


async def test_a_refused_code_is_logged_with_amos_words(app: Running) -> None:
    """The page that shows how a grant ended has the code of its line."""
    page = await app.public((await app.callback(app.query(code="junk"), html=True)).location)
    line = _line(app, page)
    assert (line["event"], line["word"], line["refused"]) == ("grant.failed", "auth_failed", "code")
    assert (line["status"], line["hint"]) == (400, "Cannot decrypt the authorization code")


async def test_an_exchange_that_takes_too_long_for_a_redirect_is_logged(app: Running) -> None:
    """The app is told `amo_unavailable` while the exchange goes on."""
    app.amo.sandbox.faults.add(Fault.SLOW)
    code = app.amo.code()
    await _late(app, code)
    app.amo.sandbox.go_on.set()
    await app.witness.until("connection.connected")
    [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
    assert (line["word"], line["error"], line["level"]) == ("amo_unavailable", "exchanging", "warning")
    assert line["support_code"] == support_code(fingerprint(code))


async def _late(app: Running, code: str) -> None:
    """Come with a code, and wait until the service waits no longer."""
    coming = asyncio.create_task(app.callback(app.query(code=code)))
    await app.amo.sandbox.until_asked(1)
    await app.clock.until_sleeping(8)
    app.clock.advance(8)
    assert "error=amo_unavailable" in (await coming).location


async def test_a_try_again_that_is_refused_is_logged(run: Any) -> None:
    """The return page keeps the grant's support code."""
    async with run(LIMITS__FAILED_CODES="1") as app:
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        code = app.amo.code()
        address = (await app.callback(app.query(code=code), html=True)).location
        page = await app.public(f"{address}?again=1")
        assert _code_of(page) == support_code(fingerprint(code))
        [line] = [line for line in app.lines() if line["event"] == "callback.refused"]
        assert (line["word"], line["refused"]) == ("rate_limited", "address")


async def test_a_link_that_cannot_be_followed_is_logged(app: Running) -> None:
    """Also before AMO's consent page."""
    page = await app.public(f"{BASE}/connect?state=a&state=b", headers={"Accept": "text/html"})
    assert _line(app, page) == _refused("invalid_request", error="invalid_request", refused="query")


async def test_a_grant_that_a_disconnect_ended_is_logged(app: Running) -> None:
    """Its pair came too late, and the page says `code_expired`."""
    await app.connected()
    app.amo.sandbox.faults.add(Fault.SLOW)
    coming = asyncio.create_task(app.callback(app.query(), html=True))
    await app.amo.sandbox.until_asked(2)
    assert (
        await app.private(f"/connections/account:{app.amo.account.id}", method="DELETE", key=ADMIN_KEY)
    ).status < 300
    app.amo.sandbox.go_on.set()
    page = await app.public((await coming).location)
    line = _line(app, page)
    assert (line["event"], line["word"]) == ("grant.superseded", "code_expired")
