"""Hostile values on the return page: they stay text, and reach the app unchanged or not at all."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from playwright.async_api import Route

from amo_callback.grant import MAX_CODE, MAX_STATE
from tests.browser.chromium import ANDROID, Chromium, Tab
from tests.browser.conftest import Lenient
from tests.browser.hostile import QUERIES, REFERERS, VALUES
from tests.browser.page_states import public
from tests.service import BASE, HOST, LINK, Running

PARAMETERS = ("code", "state", "error", "error_description", "client_id")
_ANY_LINK = re.compile(
    rf"{LINK}\?(?:code=(?:[A-Za-z0-9._~-]|%[0-9A-F]{{2}})+&state=(?:[A-Za-z0-9._~-]|%[0-9A-F]{{2}})*"
    r"|error=[a-z_]+(?:&state=(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})*)?)"
)
_OF_ONE_REQUEST = re.compile(rb"(?<=nonce=\")[\w-]+|(?<=<code>)[\w-]+|(?<= d=\"M4 4)[^\"]+")
_OUR_HEADERS = {
    "cache-control",
    "connection",
    "content-length",
    "content-security-policy",
    "content-type",
    "cross-origin-opener-policy",
    "date",
    "location",
    "referrer-policy",
    "server",
    "vary",
    "x-content-type-options",
    "x-frame-options",
    "x-request-id",
    "x-robots-tag",
}
_LOOK = """() => ({
  x: window.__x ?? null,
  buttons: document.querySelectorAll('#open').length,
  href: document.querySelector('#open')?.getAttribute('href') ?? null,
  resolved: document.querySelector('#open')?.href ?? null,
  others: [...document.querySelectorAll('a:not(#open)')].map(each => each.getAttribute('href')),
  scripts: document.scripts.length,
  elements: [...new Set([...document.querySelectorAll('*')].map(each => each.localName))],
  handlers: [...document.querySelectorAll('*')].flatMap(each => each.getAttributeNames())
    .filter(name => name.startsWith('on')),
})"""
_OUR_ELEMENTS = {
    *("html", "head", "meta", "title", "link", "style", "body", "main", "svg", "circle", "path", "h1", "p", "b"),
    *("a", "details", "summary", "ul", "li", "code", "script", "figure", "div", "figcaption"),
}


@dataclass(kw_only=True, slots=True)
class Tried:
    """Counts of the cases and their results."""

    cases: int = 0
    raw: int = 0
    executed: int = 0
    shown: set[bytes] = field(default_factory=set)
    """Pages shown by the browser, without the parts specific to one request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Raw:
    """An answer's raw bytes and headers."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, found
        return found[0] if found else None


async def _ask(app: Running, query: bytes, *, accept: bytes = b"text/html") -> Raw:
    """Send a query unchanged, because a browser or a client library would encode it."""
    host, _, port = app.service.public.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    target = f"{BASE}/callback?".encode() + query
    writer.write(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\nAccept: " + accept + b"\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Raw(status=int(first.split()[1]), headers=headers, body=body)


async def _look(tab: Tab, tried: Tried, *, link: str | None, case: str) -> None:
    """Check that the page has only its own elements and one button, with this link or a well-formed one."""
    seen = await tab.page.evaluate(_LOOK)
    tried.cases += 1
    tried.executed += seen["x"] is not None or bool(tab.dialogs)
    assert (case, seen["x"], tab.dialogs) == (case, None, [])
    assert (case, seen["buttons"], seen["scripts"], seen["handlers"]) == (case, 1, 1, [])
    assert (case, set(seen["elements"]) - _OUR_ELEMENTS, seen["others"]) == (case, set(), [])
    assert seen["resolved"] == seen["href"]
    assert _ANY_LINK.fullmatch(seen["href"]), (case, seen["href"])
    if link is not None:
        assert (case, seen["href"]) == (case, link)


def _escaped(value: bytes) -> str:
    """Escape every byte, so that the browser does not choose the encoding."""
    return "".join(f"%{byte:02x}" for byte in value)


def _parameters(name: str, value: str, *, code: str) -> str:
    """Return the query of AMO's redirect with one hostile value."""
    given = {"code": code, "state": "s0", "referer": HOST, name: value}
    if name == "error_description":
        given["error"] = "access_denied"
    return "&".join(f"{key}={text}" for key, text in given.items())


def _expected(name: str, value: bytes, *, code: str) -> str:
    """Return the link expected for a hostile value."""
    sent = quote_from_bytes(value, safe="")
    if name == "error_description":
        return f"{LINK}?error=access_denied&state=s0"
    if name == "error" and value:
        return f"{LINK}?error=auth_failed&state=s0"
    if name == "referer":
        return f"{LINK}?error={'account_not_allowed' if value else 'invalid_request'}&state=s0"
    if name == "code" and not value:
        return f"{LINK}?error=missing_code&state=s0"
    if name == "code" and len(value) > MAX_CODE:
        return f"{LINK}?error=invalid_request&state=s0"
    if name == "code" and not _is_utf8(value):
        return f"{LINK}?error=auth_failed&state=s0"
    if name == "state" and len(value) > MAX_STATE:
        return f"{LINK}?error=invalid_request"
    return f"{LINK}?code={sent if name == 'code' else code}&state={sent if name == 'state' else 's0'}"


def _is_utf8(value: bytes) -> bool:
    return value.decode(errors="replace").encode() == value


async def _show_raw(tab: Tab, app: Running, answer: Raw) -> None:
    """Show the browser a raw answer, or follow its redirect."""
    if (location := answer.get("location")) is not None:
        await tab.page.goto(public(app, location))
        return

    async def fulfill(route: Route) -> None:
        await route.fulfill(status=answer.status, headers=dict(answer.headers), body=answer.body)

    address = public(app, "/as-it-came")
    await tab.page.route(address, fulfill)
    await tab.page.goto(address)
    await tab.page.unroute(address)


async def _try_raw(tab: Tab, app: Running, query: bytes, tried: Tried, *, case: str, code: str = "") -> None:
    """Send a raw query as a browser and as a program, and check each kind of page once."""
    for accept in (b"text/html", b"*/*"):
        answer = await _ask(app, query, accept=accept)
        tried.raw += 1
        assert {name for name, _ in answer.headers} <= _OUR_HEADERS, case
        location = answer.get("location")
        if answer.status == 303:
            assert re.fullmatch(rf"{BASE}/return/[\w-]{{22}}", location or ""), case
        if answer.status == 303 or (answer.get("content-type") or "").startswith("text/html"):
            page = answer.body if location is None else (await app.public(location)).text.encode()
            alike = _OF_ONE_REQUEST.sub(b"", page.replace(code.encode(), b""))
            if alike not in tried.shown:
                tried.shown.add(alike)
                await _show_raw(tab, app, answer)
                await _look(tab, tried, link=None, case=case)
        elif answer.status == 302:
            assert _ANY_LINK.fullmatch(location or ""), case
        else:  # the request line is invalid
            assert (answer.status, answer.get("content-type")) == (400, "text/plain; charset=utf-8"), case
            assert re.fullmatch(rb"[\w: ]+\n", answer.body), case


@pytest.mark.parametrize("name", [*PARAMETERS, "referer"])
async def test_hostile_value_stays_text(
    chromium: Chromium, lenient: Callable[..., Any], record_property: Callable[[str, object], None], name: str
) -> None:
    """A hostile value, escaped or raw, executes and adds nothing, and its exact bytes reach the app."""
    values = {**VALUES, **(REFERERS if name == "referer" else {})}
    tried = Tried()
    async with lenient() as amo:
        app: Running = amo.app
        tab = await chromium.tab()
        for number, (case, value) in enumerate(values.items()):
            code = f"{name}-{number}"
            query = _parameters(name, _escaped(value), code=code)
            await tab.page.goto(public(app, f"{BASE}/callback?{query}"))
            await _look(tab, tried, link=_expected(name, value, code=code), case=case)
            raw = _parameters(name, "\0", code=f"raw-{code}").encode().replace(b"\0", value)
            await _try_raw(tab, app, raw, tried, case=case, code=f"raw-{code}")
        assert tab.hosts == {app.service.public}
        assert tab.violations == []
        _check_log(app, amo)
    record_property("values", len(values))
    record_property("pages", tried.cases)
    record_property("raw requests", tried.raw)
    record_property("executed", tried.executed)


def _check_log(app: Running, amo: Lenient) -> None:
    log = app.log.getvalue()
    assert "window.__x" not in log
    assert [code for code in amo.codes if len(code) > 8 and code in log] == []


async def test_hostile_query_stays_text(
    chromium: Chromium, app: Running, record_property: Callable[[str, object], None]
) -> None:
    """Repeated, list-like, nameless or too many parameters are an error without a request to AMO."""
    tried = Tried()
    tab = await chromium.tab()
    for case, query in QUERIES.items():
        await _try_raw(tab, app, query, tried, case=case)
        await tab.page.goto(public(app, f"{BASE}/callback?{query.decode()}"))
        await _look(tab, tried, link=None, case=case)
        assert "?error=" in (await tab.link() or ""), case
    assert app.amo.sandbox.requests == 0
    record_property("queries", len(QUERIES))
    record_property("executed", tried.executed)


@pytest.mark.parametrize(
    "case", ["a script", "a header", "an intent", "more parameters", "no UTF-8", "a broken escape"]
)
async def test_hostile_state_attempt_requests_exact_link(
    chromium: Chromium, lenient: Callable[..., Any], case: str
) -> None:
    """With a hostile state the page's automatic attempt requests the exact link."""
    async with lenient(APP__ANDROID_PACKAGE="ae.foryoure.app") as amo:
        tab = await chromium.tab(ANDROID, own_browser=True)
        query = _parameters("state", _escaped(VALUES[case]), code="good")
        await tab.page.goto(public(amo.app, f"{BASE}/callback?{query}"))
        link = _expected("state", VALUES[case], code="good")
        assert await tab.until_launched() == link
        await tab.tap()
        await tab.pass_time(1)
        assert tab.launches == [link, f"{link}&n=2"]
        intent = await tab.page.locator("#intent").get_attribute("href") or ""
        assert intent == f"intent:{link.partition(':')[2]}#Intent;scheme=foryoure;package=ae.foryoure.app;end"
