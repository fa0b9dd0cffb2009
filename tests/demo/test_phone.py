"""The demo's phone page, which takes the place of the app."""

import asyncio
import base64
import hashlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from amo_callback.demo.feed import APP
from amo_callback.demo.panel import Renderer
from amo_callback.demo.phone import AppConfig, Phone, shortened
from tests.demo.walkthrough import Walkthrough, link
from tests.fakes import FakeClock
from tests.wait_limit import WAIT_LIMIT


async def test_phone_shows_requests_and_answers(show: Walkthrough) -> None:
    """After the deep link the page shows `exchange-code` and `status`, without a whole code."""
    await show.connect()
    html = await show.page(f"http://{show.addresses.panel}/phone")
    assert "POST /exchange-code" in html
    assert "&#34;accountId&#34;: &#34;31920194&#34;" in html
    assert "foryoure://amo-crm/callback?code=def50200" in html
    assert not re.search(r"def502\w{10}", html)


async def test_phone_refusal_returns_access_denied(show: Walkthrough) -> None:
    """A refusal returns to the app with `access_denied`."""
    consent = await show.page(f"http://{show.addresses.panel}/phone/connect")
    page = await show.page(link(consent, r'class="refuse" href="([^"]+)"'))
    html = await show.page(link(page, r'id="open"[^>]*href="([^"]+)"'))
    assert "The deep link contains error=access_denied." in html
    assert '"connected": false' in html


async def test_phone_second_account_is_second_connection(show: Walkthrough) -> None:
    """Two accounts of one user are two connections."""
    await show.connect()
    await show.connect("gingersnaps.amocrm.ru")
    lifetime = await show.until(lambda lifetime: len(lifetime.connections) == 2)
    assert [one.pairs for one in lifetime.connections] == [1, 1]


async def test_phone_link_with_unknown_state_is_ignored(show: Walkthrough) -> None:
    """A deep link with a state that the app did not create, or has used, changes nothing."""
    html = await show.page(f"http://{show.addresses.panel}/phone/return?code=def50200aa&state=ac1.somebody")
    assert "Connect amoCRM" in html
    assert "Not connected" not in html


async def test_phone_disconnect_removes_connection(show: Walkthrough) -> None:
    """The app's button disconnects the user's connections."""
    await show.connect()
    async with show.http.post(f"http://{show.addresses.panel}/phone/disconnect") as response:
        assert "Disconnected" in await response.text()
    await show.until(lambda lifetime: not lifetime.connections)
    assert show.said("you") == ["The app user disconnected: the service erased the tokens."]


def test_phone_link_values_are_shortened() -> None:
    """A long value is shown by its beginning, a short one as a whole."""
    assert shortened({"code": "def50200abcdef", "state": "s"}) == "code=def50200ab…&state=s"


# --- a lost deep link ----------------------------------------------------------------------------

_STATE = "ac1.state"
_CONNECTED = {"connected": True, "hasTokens": True, "domain": "a.amocrm.ru", "accountId": "1"}
_RESULT = {"success": True, "data": _CONNECTED}


@dataclass(kw_only=True, slots=True)
class _Flow:
    """A phone, a public API with prepared responses to `exchange-code`, and a client of the phone page."""

    http: aiohttp.ClientSession
    clock: FakeClock
    answers: deque[Callable[[web.Request], web.Response]] = field(default_factory=deque)
    proofs: list[Mapping[str, str]] = field(default_factory=list)
    challenges: list[str] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    phone: Phone | None = None
    address: URL = field(default_factory=URL)

    async def authorize(self, request: web.Request) -> web.Response:
        self.challenges.append((await request.json())["code_challenge"])
        state = f"{_STATE}{len(self.challenges)}"
        return web.json_response(
            {"success": True, "data": {"state": state, "authorize_url": "http://127.0.0.1:1/oauth"}}
        )

    async def exchange(self, request: web.Request) -> web.Response:
        self.proofs.append(await request.json())
        return self.answers.popleft()(request)

    async def status(self, _request: web.Request) -> web.Response:
        return web.json_response({"success": True, "data": _CONNECTED})

    async def connect(self) -> None:
        async with self.http.get(self.address / "phone/connect", allow_redirects=False) as response:
            assert response.headers["Location"] == "http://127.0.0.1:1/oauth"

    async def until_shown(self, title: str) -> str:
        async with asyncio.timeout(WAIT_LIMIT):
            while title not in (html := await self.page()):
                pass
        return html

    async def page(self) -> str:
        async with self.http.get(self.address / "phone") as response:
            return await response.text()


@pytest.fixture
async def flow() -> AsyncIterator[_Flow]:
    async with aiohttp.ClientSession() as http:
        opened = _Flow(http=http, clock=FakeClock())
        api, pages = web.Application(), web.Application()
        api.router.add_post("/authorizations", opened.authorize)
        api.router.add_post("/exchange-code", opened.exchange)
        api.router.add_get("/status", opened.status)
        async with TestServer(api) as server:
            phone = opened.phone = Phone(
                http,
                AppConfig(base=str(server.make_url("")).rstrip("/"), deep_link="foryoure://amo", jwt_secret="s" * 32),
                renderer=Renderer(phone_sites=[]),
                clock=opened.clock,
                report=lambda who, text: opened.said.append((who, text)),
            )
            pages.add_routes(phone.routes())
            async with TestServer(pages) as front:
                opened.address = front.make_url("/")
                yield opened
            await phone.close()


def _json(status: int, content: object, **headers: str) -> Callable[[web.Request], web.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request: web.json_response(content, status=status, headers=named)


def _html(_request: web.Request) -> web.Response:
    return web.Response(status=502, text="<h1>502 Bad Gateway</h1>", content_type="text/html")


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_phone_asks_for_result_until_there_is_one(flow: _Flow) -> None:
    """Without a link, the app asks again after `Retry-After` or an unreachable service, and ends with the result."""
    assert flow.phone is not None
    pending = {"success": False, "error": "pending", "message": "ask again"}
    flow.answers.extend(
        [
            _json(404, pending, Retry_After="2"),
            _json(404, pending, Retry_After="2"),
            _html,
            _cut,
            _json(503, {"success": False, "error": "store_unavailable"}, Retry_After="7"),
            _json(200, _RESULT),
        ]
    )
    flow.phone.lose_next_link()
    await flow.connect()
    await flow.clock.tick(2, times=4)
    await flow.clock.tick(7)
    await flow.until_shown("<h1>Connected without the deep link</h1>")
    assert flow.said == [
        (APP, "The app asks for the result: 404, pending. The app asks again every 2 s."),
        (APP, "The app asks for the result: 502, no response of the service. The app asks again every 2 s."),
        (APP, "The app asks for the result: 503, store_unavailable. The app asks again every 7 s."),
        (APP, "The app asks for the result: 200, connected."),
    ]
    assert (len(flow.proofs), {proof["state"] for proof in flow.proofs}) == (6, {f"{_STATE}1"})
    [verifier] = {proof["code_verifier"] for proof in flow.proofs}
    digest = hashlib.sha256(verifier.encode()).digest()
    assert flow.challenges == [base64.urlsafe_b64encode(digest).rstrip(b"=").decode()]
    assert verifier not in await flow.page() + str(flow.said)


async def test_phone_result_that_is_an_error_is_shown(flow: _Flow) -> None:
    """A final error ends the requests and is shown."""
    assert flow.phone is not None
    flow.answers.append(_json(410, {"success": False, "error": "code_expired", "message": "start again"}))
    flow.phone.lose_next_link()
    await flow.connect()
    html = await flow.until_shown("<h1>Not connected</h1>")
    assert "code_expired" in html
    assert flow.said == [(APP, "The app asks for the result: 410, code_expired.")]


async def test_phone_result_of_user_without_connection_is_reported(flow: _Flow) -> None:
    """A successful response for an account that another user owns is not reported as a connection."""
    assert flow.phone is not None
    flow.answers.append(_json(200, {"success": True, "data": {**_CONNECTED, "connected": False}}))
    flow.phone.lose_next_link()
    await flow.connect()
    await flow.until_shown("POST /exchange-code")
    assert flow.said == [(APP, "The app asks for the result: 200, not connected.")]


async def test_phone_next_connection_ends_requests_for_earlier_result(flow: _Flow) -> None:
    """A new flow ends the requests for the earlier one's result, and its own link is not lost."""
    assert flow.phone is not None
    flow.answers.append(_json(404, {"success": False, "error": "pending"}, Retry_After="2"))
    flow.phone.lose_next_link()
    await flow.connect()
    await flow.clock.until_sleeping(2)
    await flow.connect()
    assert flow.clock.sleeping() == []
    flow.answers.append(_json(200, _RESULT))
    async with flow.http.get(flow.address / "phone/return", params={"code": "c", "state": f"{_STATE}2"}) as response:
        assert "Back in the app" in await response.text()
    assert [proof.get("code") for proof in flow.proofs] == [None, "c"]
