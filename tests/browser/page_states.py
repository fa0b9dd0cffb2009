"""Every state of the return page, with a function that reaches it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from amo_callback.amo.sandbox.app import Fault
from amo_callback.web.pages import read_texts
from tests.service import BASE, HOST, Running

STATE = "the-app's state"


def titles(language: str = "en") -> Mapping[str, str]:
    """Return the title of each variant of the page."""
    values = {"{app}": "For You", "{crm}": "amoCRM"}
    found = {variant: texts["title"] for variant, texts in read_texts(language).items() if "title" in texts}
    for placeholder, value in values.items():
        found = {variant: title.replace(placeholder, value) for variant, title in found.items()}
    return found


def public(app: Running, path: str) -> str:
    """Return an address of the public API."""
    return f"http://{app.service.public}{path}"


async def returned(app: Running, query: str | None = None) -> str:
    """Visit the callback as a browser does and return the return page's address."""
    answer = await app.callback(query or app.query(state=STATE), html=True)
    assert answer.status == 303, answer.text
    return public(app, answer.location)


def early(query: str) -> Callable[[Running], Awaitable[str]]:
    """Return a function that reaches an error found before a request to AMO."""

    async def reach(app: Running) -> str:
        return public(app, f"{BASE}/callback?{query}")

    return reach


async def _connected(app: Running) -> str:
    return await returned(app)


async def _exchanging(app: Running) -> str:
    app.amo.sandbox.faults.add(Fault.SLOW)
    asked = asyncio.create_task(returned(app))
    await app.amo.sandbox.asked.wait()
    await app.clock.until_sleeping(8)
    app.clock.advance(8)
    return await asked


async def _gone(app: Running) -> str:
    return public(app, f"{BASE}/return/AAAAAAAAAAAAAAAAAAAAAA")


async def _code_expired(app: Running) -> str:
    app.amo.sandbox.faults.add(Fault.HTTP_500_AFTER)
    query = app.query(state=STATE)
    await app.callback(query)
    return await returned(app, query)


async def _code_used(app: Running) -> str:
    code = app.amo.code()
    app.amo.spend(grant_type="authorization_code", code=code)
    return await returned(app, app.query(code=code, state=STATE))


async def _amo_unavailable(app: Running) -> str:
    app.amo.sandbox.faults.add(Fault.HTTP_500)
    return await returned(app)


async def _rate_limited(app: Running) -> str:
    await app.callback(app.query(code="the-last-that-is-asked-about"))
    return public(app, f"{BASE}/callback?{app.query(code='one-too-many', state=STATE)}")


async def _auth_failed(app: Running) -> str:
    return await returned(app, app.query(code="junk", state=STATE))


STATES: Mapping[str, Callable[[Running], Awaitable[str]]] = {
    "connected": _connected,
    "exchanging": _exchanging,
    "gone": _gone,
    "missing_code": early("state=s"),
    "access_denied": early("error=access_denied&state=s"),
    "invalid_state": early(f"code=a&state=ac1.{'A' * 22}&referer={HOST}"),
    "invalid_request": early(f"code=a&code=b&state=s&referer={HOST}"),
    "account_not_allowed": early("code=a&state=s&referer=evil.com"),
    "code_expired": _code_expired,
    "code_used": _code_used,
    "amo_unavailable": _amo_unavailable,
    "rate_limited": _rate_limited,
    "auth_failed": _auth_failed,
}

SETTINGS: Mapping[str, Mapping[str, str]] = {"rate_limited": {"LIMITS__FAILED_CODES": "1"}}
"""Settings required by a state."""

BEFORE_AMO = ("missing_code", "access_denied", "invalid_state", "invalid_request", "account_not_allowed")
"""Errors found before a request to AMO."""
