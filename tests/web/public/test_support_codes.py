"""Every failure page has a support code, with which the log names the refused value."""

import dataclasses
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.grant import CodePresentation
from amo_callback.oauth.grants import GrantRecords, GrantRules
from tests.service import BASE, HOST, Answer, Running

PAGE = {"Accept": "text/html"}
Reach = Callable[[Running], Awaitable[Answer]]


async def _visit(app: Running, query: str) -> Answer:
    """Visit the callback as a browser, and follow its redirect to the return page."""
    answer = await app.callback(query, html=True)
    return await app.public(answer.location) if answer.status == 303 else answer


def _callback(query: str) -> Reach:
    return lambda app: _visit(app, query)


def _refused_by_amo(fault: Fault) -> Reach:
    async def reach(app: Running) -> Answer:
        app.amo.sandbox.faults.add(fault)
        return await _visit(app, app.query())

    return reach


def _connect(query: str) -> Reach:
    return lambda app: app.public(f"{BASE}/connect?{query}", headers=PAGE)


async def _code_used(app: Running) -> Answer:
    code = app.amo.code()
    app.amo.spend(grant_type="authorization_code", code=code)
    return await _visit(app, app.query(code=code))


async def _rate_limited(app: Running) -> Answer:
    await app.callback(app.query(code="junk"))
    return await _visit(app, app.query(code="more-junk"))


async def _connect_rate_limited(app: Running) -> Answer:
    await _connect("state=a")(app)
    return await _connect("state=b")(app)


async def _retry_rate_limited(app: Running) -> Answer:
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    answer = await app.callback(app.query(), html=True)
    app.log.seek(0)
    app.log.truncate()  # the exchange itself has a line with the grant's support code, too
    return await app.public(f"{answer.location}?again=1")


async def _unknown_handle(app: Running) -> Answer:
    return await app.public(f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA")


async def _expired_retry(app: Running) -> Answer:
    answer = await app.callback(app.query(), html=True)
    app.clock.advance(1200)
    return await app.public(f"{answer.location}?again=1")


async def _claimed(app: Running, **changes: Any) -> Answer:
    """Claim a grant as another process that has exited, and show its page after the lease."""
    core = app.service.services.core
    presented = CodePresentation(code=b"abc", state=b"s")
    grant, secrets = GrantRecords(core, GrantRules()).begin(presented, domain=HOST, request=None)
    await core.store.claim_grant(dataclasses.replace(grant, **changes), now=app.clock.now(), over=None, state_hash=None)
    app.clock.advance(core.rules.lease + 1)
    return await app.public(f"{BASE}/return/{secrets.handle}")


async def _abandoned(app: Running) -> Answer:
    return await _claimed(app)


async def _unreadable(app: Running) -> Answer:
    return await _claimed(app, sealed=b"written by another key")


ONE_CODE = {"LIMITS__FAILED_CODES": "1"}
FAILURES: list[tuple[str, Reach, str, dict[str, str], dict[str, str]]] = [
    ("no-code", _callback("state=s"), "missing_code", {"refused": "code"}, {}),
    ("denied", _callback("error=access_denied&state=s"), "access_denied", {"refused": "error"}, {}),
    ("error", _callback("error=server_error&state=s"), "auth_failed", {"refused": "error"}, {}),
    ("state", _callback(f"code=a&state=ac1.x&referer={HOST}"), "invalid_state", {"refused": "state"}, {}),
    ("doubled", _callback(f"code=a&code=b&state=s&referer={HOST}"), "invalid_request", {"refused": "query"}, {}),
    ("no-host", _callback("code=a&state=s"), "invalid_request", {"refused": "host"}, {}),
    ("host", _callback("code=a&referer=evil.com"), "account_not_allowed", {"refused": "host", "host": "evil.com"}, {}),
    ("binary", _callback(f"code=%ff&referer={HOST}"), "auth_failed", {"refused": "code"}, {}),
    ("junk", _callback(f"code=junk&referer={HOST}"), "auth_failed", {"refused": "code", "domain": HOST}, {}),
    ("used", _code_used, "code_used", {"refused": "code", "domain": HOST}, {}),
    ("amo", _refused_by_amo(Fault.HTTP_500), "amo_unavailable", {"error": "outcome_open", "domain": HOST}, {}),
    ("account", lambda app: _visit(app, app.query()), "account_not_allowed", {"refused": "account"},
     {"AMO__ALLOWED_ACCOUNTS": "1"}),
    ("rate", _rate_limited, "rate_limited", {"refused": "address"}, ONE_CODE),
    ("connect", _connect("state=a&state=b"), "invalid_request", {"refused": "query"}, {}),
    ("connect-rate", _connect_rate_limited, "rate_limited", {"refused": "address"}, ONE_CODE),
    ("retry-rate", _retry_rate_limited, "rate_limited", {"refused": "address"}, ONE_CODE),
    ("handle", _unknown_handle, "gone", {"refused": "handle"}, {}),
    ("expired-retry", _expired_retry, "gone", {"refused": "handle"}, {}),
    ("abandoned", _abandoned, "amo_unavailable", {"error": "process_exited"}, {}),
    ("unreadable", _unreadable, "amo_unavailable", {"error": "unreadable"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reach", "word", "fields", "settings"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
async def test_failure_page_support_code_is_in_one_log_line(
    run: Any, reach: Reach, word: str, fields: dict[str, str], settings: dict[str, str]
) -> None:
    """The page's support code is in one log line, with the error word and the refused value's kind."""
    async with run(**settings) as app:
        page = await reach(app)
        assert page.status >= 400
        [code] = re.findall(r'class="support">[^<]*<code>([0-9a-f]{8})</code>', page.text)
        [line] = [line for line in app.lines() if line.get("support_code") == code]
        assert line["word"] == word
        assert {name: line.get(name) for name in fields} == fields
