"""The proxy between the demo's phone and the public API."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict
from yarl import URL

from amo_callback import probe
from amo_callback.demo.proxy import PHONE_USER_AGENT, Proxy
from tests.demo.walkthrough import Walkthrough, link

_LINK = "foryoure://amo-crm/callback"
_PANEL = "127.0.0.1:8100"
_APP = f"http://{_PANEL}/phone/return"
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'"
_DESKTOP = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
)
_IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Mobile/15E148 Safari/604.1"
)
_NOT_FRAMED = (None, "", "document", "empty", "object", "Iframe", "iframe, document")
"""Values of `Sec-Fetch-Dest` of a tab, of a script, and of a client, which sends none."""


@dataclass(kw_only=True, slots=True)
class Upstream:
    """The public API's place: it keeps its requests and has one response."""

    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return web.Response(status=self.status, headers=self.headers, body=self.body)


@dataclass(kw_only=True, slots=True)
class Passage:
    """A proxy, its upstream and a client of the proxy."""

    proxy: Proxy
    upstream: Upstream
    http: aiohttp.ClientSession
    address: URL

    async def ask(
        self,
        path: str = "/x",
        *,
        dest: str | None,
        method: str = "GET",
        data: bytes | io.BytesIO | None = None,
        **headers: str,
    ) -> aiohttp.ClientResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = named if dest is None else {"Sec-Fetch-Dest": dest, **named}
        address = URL(f"{self.address.origin()}{path}", encoded=True)
        async with self.http.request(method, address, headers=sent, data=data, allow_redirects=False) as response:
            await response.read()
            return response


@asynccontextmanager
async def _passage() -> AsyncIterator[Passage]:
    upstream = Upstream()
    behind = web.Application()
    behind.router.add_route("*", "/{path:.*}", upstream.answer)
    async with (
        TestServer(behind) as server,
        aiohttp.ClientSession(auto_decompress=False) as outgoing,
        aiohttp.ClientSession() as http,
    ):
        proxy = Proxy(outgoing, panel=_PANEL, deep_link=_LINK)
        proxy.public = f"{server.host}:{server.port}"
        async with TestServer(proxy.app()) as front:
            yield Passage(proxy=proxy, upstream=upstream, http=http, address=front.make_url("/"))


@pytest.fixture
async def passage() -> AsyncIterator[Passage]:
    async with _passage() as opened:
        yield opened


# --- requests of the panel's frame ---------------------------------------------------------------


async def test_proxy_framed_request_has_user_agent_of_phone(passage: Passage) -> None:
    """The service receives one user agent from the frame, the phone's."""
    await passage.ask(dest="iframe", User_Agent=_DESKTOP)
    assert passage.upstream.requests[0].headers.getall("User-Agent") == [PHONE_USER_AGENT]


async def test_proxy_framed_page_links_to_simulated_app(passage: Passage) -> None:
    """In the frame, each link to the app leads to the simulated app, with its query; the page's text is unchanged."""
    passage.upstream.body = f'<a href="{_LINK}?code=c&amp;state=s">Open</a> {_LINK} <a href="{_LINK}">'.encode()
    response = await passage.ask(dest="iframe")
    assert await response.text() == f'<a href="{_APP}?code=c&amp;state=s">Open</a> {_LINK} <a href="{_APP}">'


async def test_proxy_framed_redirect_leads_to_simulated_app(passage: Passage) -> None:
    """In the frame, a redirect to the app leads to the simulated app; any other redirect is unchanged."""
    passage.upstream.status = 303
    for location, followed in (
        (f"{_LINK}?code=c&state=s", f"{_APP}?code=c&state=s"),
        ("/return/AAAA", "/return/AAAA"),
        (f"https://evil.example/?to={_LINK}", f"https://evil.example/?to={_LINK}"),
    ):
        passage.upstream.headers = CIMultiDict({"Location": location})
        assert (await passage.ask(dest="iframe")).headers["Location"] == followed


async def test_proxy_framed_page_may_be_framed_by_panel_only(passage: Passage) -> None:
    """In the frame, the page's policy allows the panel and nothing else; the rest of the policy is unchanged."""
    passage.upstream.headers = CIMultiDict({"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"})
    headers = (await passage.ask(dest="iframe")).headers
    assert headers.getall("Content-Security-Policy") == [_POLICY.replace("'none'; base", f"http://{_PANEL}; base")]
    assert "X-Frame-Options" not in headers


async def test_proxy_framed_response_without_policy_has_none(passage: Passage) -> None:
    """In the frame, a response without a policy stays without one."""
    response = await passage.ask(dest="iframe")
    assert (response.status, "Content-Security-Policy" in response.headers) == (200, False)


# --- all other requests --------------------------------------------------------------------------


@pytest.mark.parametrize("dest", _NOT_FRAMED)
async def test_proxy_other_request_is_unchanged(passage: Passage, dest: str | None) -> None:
    """A tab's, a script's or a client's request arrives with its own user agent, and its response is unchanged."""
    passage.upstream.status = 303
    own = {"Location": f"{_LINK}?code=c", "Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"}
    passage.upstream.headers = CIMultiDict(own)
    passage.upstream.body = f'<a href="{_LINK}?code=c">'.encode()
    response = await passage.ask(dest=dest, User_Agent=_DESKTOP)
    assert passage.upstream.requests[0].headers.getall("User-Agent") == [_DESKTOP]
    assert (response.status, await response.text()) == (303, f'<a href="{_LINK}?code=c">')
    assert {name: response.headers.getall(name) for name in own} == {name: [value] for name, value in own.items()}


@pytest.mark.parametrize("dest", [None, "iframe"])
async def test_proxy_forwards_method_path_body_and_headers(passage: Passage, dest: str | None) -> None:
    """The method, the raw path and query, the body, and all headers except those of the connection are forwarded."""
    passage.upstream.headers = CIMultiDict([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Retry-After", "2")])
    passage.upstream.status = 404
    path = "/a%2Fb//c?d=%26&d=+&e"
    response = await passage.ask(
        path, dest=dest, method="POST", data=b"\x00{}", Authorization="Bearer jwt", Keep_Alive="timeout=5"
    )
    [request] = passage.upstream.requests
    assert (request.method, request.raw_path, passage.upstream.bodies) == ("POST", path, [b"\x00{}"])
    assert (request.headers["Authorization"], request.headers["Accept-Encoding"]) == ("Bearer jwt", "identity")
    assert request.headers["Host"] == passage.address.authority
    assert "Keep-Alive" not in request.headers
    assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert (response.status, response.headers["Retry-After"]) == (404, "2")


async def test_proxy_replaces_forwarded_for(show: Walkthrough) -> None:
    """The proxy replaces a client's own `X-Forwarded-For`."""
    cipher = show.demo.service.services.core.cipher
    headers = {probe.HEADER: probe.seal_nonce(cipher, nonce="n"), "X-Forwarded-For": "203.0.113.9"}
    async with show.http.head(f"http://{show.addresses.proxy}/api/amo-crm/callback", headers=headers) as response:
        seen = probe.read_reply(cipher, response.headers[probe.HEADER], nonce="n")
    assert seen is not None
    assert seen.client == "127.0.0.1"


async def test_proxy_request_of_other_host_is_refused(passage: Passage) -> None:
    """A request for a complete URL, as a client sends it to a forward proxy, is not forwarded."""
    async with passage.http.get("http://evil.example/", proxy=passage.address.origin()) as response:
        assert (response.status, passage.upstream.requests) == (400, [])


async def test_proxy_large_body_is_refused(passage: Passage) -> None:
    """A body of more than 1 MiB is refused and not forwarded."""
    response = await passage.ask(dest=None, method="POST", data=io.BytesIO(bytes(1024**2 + 1)))
    assert (response.status, passage.upstream.requests) == (413, [])


@pytest.mark.parametrize("public", [None, "127.0.0.1:1"])
async def test_proxy_without_service_returns_502(passage: Passage, public: str | None) -> None:
    """While the service does not listen, the response is 502 with a text for the user."""
    passage.proxy.public = public
    response = await passage.ask(dest="iframe")
    assert (response.status, "does not respond" in await response.text()) == (502, True)


# --- the service's page --------------------------------------------------------------------------


async def _return_page(show: Walkthrough, *, headers: dict[str, str]) -> aiohttp.ClientResponse:
    """Connect up to the service's page, and return the response that a browser with `headers` gets."""
    consent = await show.page(f"http://{show.addresses.panel}/phone/connect")
    allow = link(consent, r'class="allow" href="([^"]+)"')
    async with (
        aiohttp.ClientSession(headers={"Accept": "text/html", **headers}) as http,
        http.get(f"http://{show.addresses.amo}{allow}") as response,
    ):
        await response.read()
        return response


async def test_return_page_in_frame_opens_simulated_app(show: Walkthrough) -> None:
    """The panel's frame gets the page for Android phones, which opens the simulated app by itself."""
    page = await _return_page(show, headers={"User-Agent": _DESKTOP, "Sec-Fetch-Dest": "iframe"})
    html = await page.text()
    app = f"http://{show.addresses.panel}/phone/return"
    assert link(html, r'id="open"[^>]*href="([^"?]+)\?code=[^"]+"[^>]* data-auto="1"') == app
    assert "foryoure://" not in html
    assert f"frame-ancestors http://{show.addresses.panel}" in page.headers["Content-Security-Policy"]
    assert "X-Frame-Options" not in page.headers


@pytest.mark.parametrize("dest", [{}, {"Sec-Fetch-Dest": "document"}, {"Sec-Fetch-Dest": "empty"}])
async def test_return_page_outside_frame_opens_real_app(show: Walkthrough, dest: dict[str, str]) -> None:
    """A tab or a client gets the page for its own browser, with the app's deep link; no page may frame it."""
    for agent, opens_itself in ((_DESKTOP, False), (_IPHONE, True)):
        page = await _return_page(show, headers={"User-Agent": agent, **dest})
        html = await page.text()
        assert link(html, r'id="open"[^>]*href="([^"?]+)\?code=[^"]+"') == _LINK
        assert (agent, "data-auto" in html, "/phone/return" in html) == (agent, opens_itself, False)
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["X-Frame-Options"] == "DENY"
