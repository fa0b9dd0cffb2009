"""An HTTP stand-in for AMO; each AMO host is a path prefix, as in `/{host}/oauth2/access_token`."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web
from jinja2 import Environment

from amo_callback.amo.sandbox.fake_amo import TOP_LEVEL, FakeAmo, SandboxAccount, SandboxReply, client_unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from amo_callback.clock import Clock

_BANNED_AFTER = 20
"""The number of consecutive 429 responses after which the stand-in responds with 403."""


class Fault(Enum):
    """A fault of the AMO stand-in.

    Faults in `_BEFORE` occur before the credential is examined. All other faults occur afterwards.
    """

    HTTP_500 = "500 before the credential is spent"
    HTTP_500_AFTER = "500 after the credential is spent"
    HTML = "an HTML page with status 502"
    HTML_200 = "an HTML page with status 200"
    HALF_JSON_AFTER = "the first half of the JSON body"
    NO_REFRESH_TOKEN_AFTER = "a response without a refresh token"  # noqa: S105 -- a description
    REDIRECT = "a redirect"
    RESET = "connection closed before the request is examined"
    HANG = "no response until the client disconnects, without examining the request"
    WRONG_CLIENT = "401 without a hint"
    CLIENT_ID = "400, Check the `client_id` parameter"
    NOT_LINKED = "400, Token is not linked to client"
    HUGE_AFTER = "a body of 64 MB"
    NOTHING_AFTER = "connection closed without a response"
    HANG_AFTER = "no response until the client disconnects"
    SLOW = "a response held until released"
    TOO_MANY = "429 with Retry-After: 1"
    UNPAID = "402"
    BLOCKED = "403 with an HTML page of nginx"
    ACCOUNT_BLOCKED = "403 with problem+json"
    TEAPOT = "400 with an unlisted hint"


@dataclass(slots=True)
class Faults:
    coming: deque[Fault] = field(default_factory=deque)
    persistent: Fault | None = None
    """The fault applied to every request that has no queued fault."""

    def add(self, *faults: Fault) -> None:
        self.coming.extend(faults)

    def next(self) -> Fault | None:
        return self.coming.popleft() if self.coming else self.persistent


class Sandbox:
    """The AMO stand-in, as a web application."""

    def __init__(self, fake: FakeAmo, *, clock: Clock, per_second: int | None = None, latency: float = 0.0) -> None:
        self.fake = fake
        self.faults = Faults()
        self.introspection_faults = Faults()
        self.introspections = 0
        self.latency = latency
        self.code_delay = 0.0
        """Seconds by which the response to the next accepted authorization code is delayed."""
        self.requests = 0
        """The number of requests to the token endpoint, including requests with a fault."""
        self.asked = asyncio.Event()
        self.cut_off = asyncio.Event()
        """Set when a client has disconnected during a huge response."""
        self.go_on = asyncio.Event()
        self._clock = clock
        self._per_second = per_second
        self._recent: deque[float] = deque()
        self._refused_in_a_row = 0
        self._consent = Environment(autoescape=True).from_string(
            (resources.files("amo_callback.amo.sandbox") / "consent.html").read_text(encoding="utf-8")
        )

    async def until_asked(self, times: int) -> None:
        """Wait until the token endpoint has received `times` requests in total."""
        while self.requests < times:
            self.asked.clear()
            await self.asked.wait()

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/oauth", self._ask),
                web.get("/oauth/allow", self._allowed),
                web.post("/{host}/oauth2/access_token", self._token),
                web.get("/{host}/oauth2/account/current/subdomain", self._current_subdomain),
                web.get("/{host}/oauth2/account/subdomain", self._subdomain),
                web.get("/{host}/api/v4/account", self._account),
            ]
        )
        return app

    # --- consent ---------------------------------------------------------------------------------

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        if fault := self.faults.persistent:
            return await _BEFORE[fault](request, None)
        if request.query.get("client_id") != self.fake.integration.client_id:
            return web.Response(text="unknown client_id\n", status=400)
        state = request.query.get("state", "false")
        accounts = [
            {
                "id": account.id,
                "host": account.host,
                "link": "/oauth/allow?" + urlencode({"host": account.host, "state": state}),
            }
            for account in self.fake.accounts
        ]
        refuse = self._redirect_uri(error="access_denied", state=state)
        html = self._consent.render(accounts=accounts, refuse=refuse)
        return web.Response(text=html, content_type="text/html")

    async def _allowed(self, request: web.Request) -> web.Response:
        account = self.fake.account_at(request.query.get("host", ""))
        if account is None:
            return web.Response(text="unknown account\n", status=400)
        address = self._redirect_uri(
            code=self.fake.allow(account),
            state=request.query.get("state", "false"),
            referer=account.host,
            platform="1",
            client_id=self.fake.integration.client_id,
        )
        return web.Response(status=302, headers={"Location": address})

    def _redirect_uri(self, **query: str) -> str:
        return f"{self.fake.integration.redirect_uri}?{urlencode(query, quote_via=quote)}"

    # --- the token endpoint ----------------------------------------------------------------------

    async def _token(self, request: web.Request) -> web.StreamResponse:
        fault = self.faults.next()
        body = await request.read()
        self.requests += 1
        self.asked.set()
        if self.latency:
            await self._clock.sleep(self.latency)
        refused = self.limit()
        if refused or fault in _BEFORE:
            self.fake.turned_away(request.match_info["host"], body=body)
            return web.Response(status=refused) if refused else await _BEFORE[fault](request, None)
        reply = self.fake.token(request.match_info["host"], body=body, content_type=request.content_type)
        if reply.status == 200 and self.fake.ledger.entries[-1].kind == "authorization_code":
            delay, self.code_delay = self.code_delay, 0.0
            await self._clock.sleep(delay)
        if fault is Fault.SLOW:
            await self.go_on.wait()
        elif fault is Fault.HUGE_AFTER:
            return await self._huge(request)
        elif fault is not None and reply.status == 200:
            return await _AFTER[fault](request, reply)
        return _response(reply)

    async def _huge(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(b'{"access_token": "')
            for _ in range(64):
                await response.write(b"a" * 1024 * 1024)
        except ConnectionError:
            self.cut_off.set()
        return response

    def limit(self) -> int | None:
        """Count a request; return the status of a refusal, or `None` if the rate limit allows the request.

        The status is 429, or 403 after `_BANNED_AFTER` consecutive refusals.
        """
        if self._per_second is None:
            return None
        now = self._clock.monotonic()
        while self._recent and now - self._recent[0] >= 1:
            self._recent.popleft()
        if len(self._recent) < self._per_second:
            self._recent.append(now)
            self._refused_in_a_row = 0
            return None
        self._refused_in_a_row += 1
        return 403 if self._refused_in_a_row > _BANNED_AFTER else 429

    # --- the "disabled" hook ---------------------------------------------------------------------

    async def disable(self, account: SandboxAccount, *, hook: str) -> int:
        """Disable the integration in an account, call the hook as AMO does, and return the response's status."""
        account.disabled = True
        async with (
            aiohttp.ClientSession() as session,
            session.get(hook, params=self.fake.hook_query(account)) as response,
        ):
            return response.status

    # --- introspection ---------------------------------------------------------------------------

    async def _current_subdomain(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("X-Refresh-Token", "")
        return await self._looked_up(request, f"api-b.{TOP_LEVEL}", lambda: self.fake.current_subdomain(token))

    async def _subdomain(self, request: web.Request) -> web.StreamResponse:
        return await self._looked_up(request, f"www.{TOP_LEVEL}", lambda: self.fake.subdomain(_bearer(request)))

    async def _looked_up(
        self, request: web.Request, host: str, answer: Callable[[], SandboxReply]
    ) -> web.StreamResponse:
        self.introspections += 1
        if fault := self.introspection_faults.next():
            return await _BEFORE[fault](request, None)
        return _response(answer()) if request.match_info["host"] == host else web.Response(status=404)

    async def _account(self, request: web.Request) -> web.Response:
        account = self.fake.live_account(_bearer(request))
        if account is None or account.host != request.match_info["host"]:
            return web.Response(status=401)
        return web.json_response({"id": account.id, "current_user_id": account.user_id})


def _bearer(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _response(reply: SandboxReply) -> web.Response:
    headers = {"X-Request-ID": secrets.token_hex(16)}
    return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type, headers=headers)


# --- faults --------------------------------------------------------------------------------------

_PROBLEM = "application/problem+json"


def _always(status: int, text: str = "", headers: dict[str, str] | None = None, kind: str = "text/html") -> _Fault:
    async def fault(_request: web.Request, _reply: SandboxReply | None) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers, content_type=kind)

    return fault


async def _half_json(_request: web.Request, reply: SandboxReply | None) -> web.StreamResponse:
    body = b"" if reply is None else reply.body
    return web.Response(body=body[: len(body) // 2], content_type="application/json")


async def _no_refresh_token(_request: web.Request, reply: SandboxReply | None) -> web.StreamResponse:
    content = {} if reply is None else reply.content
    return web.json_response({key: value for key, value in content.items() if key != "refresh_token"})


async def _reset(request: web.Request, _reply: SandboxReply | None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _hang(request: web.Request, _reply: SandboxReply | None) -> web.StreamResponse:
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 -- aiohttp does not notify handlers when a client disconnects
        await asyncio.sleep(0.01)
    return web.Response()


async def _wrong_client(_request: web.Request, _reply: SandboxReply | None) -> web.StreamResponse:
    return _response(client_unknown())


if TYPE_CHECKING:
    _Fault = Callable[[web.Request, SandboxReply | None], Awaitable[web.StreamResponse]]

_BEFORE: dict[Fault | None, _Fault] = {
    Fault.HTTP_500: _always(500, "<h1>500</h1>"),
    Fault.HTML: _always(502, "<h1>Bad gateway</h1>"),
    Fault.HTML_200: _always(200, "<h1>Maintenance</h1>"),
    Fault.REDIRECT: _always(302, headers={"Location": "http://127.0.0.1:1/oauth2/access_token"}),
    Fault.TOO_MANY: _always(429, headers={"Retry-After": "1"}),
    Fault.UNPAID: _always(402),
    Fault.BLOCKED: _always(403, "<html><head><title>403 Forbidden</title></head><body>nginx</body></html>"),
    Fault.ACCOUNT_BLOCKED: _always(403, '{"title": "Forbidden", "status": 403}', kind=_PROBLEM),
    Fault.TEAPOT: _always(400, '{"hint": "I am a teapot"}', kind=_PROBLEM),
    Fault.RESET: _reset,
    Fault.HANG: _hang,
    Fault.WRONG_CLIENT: _wrong_client,
    Fault.CLIENT_ID: _always(400, '{"hint": "Check the `client_id` parameter"}', kind=_PROBLEM),
    Fault.NOT_LINKED: _always(400, '{"hint": "Token is not linked to client"}', kind=_PROBLEM),
}
_AFTER: dict[Fault, _Fault] = {
    Fault.HTTP_500_AFTER: _always(500, "<h1>500</h1>"),
    Fault.HALF_JSON_AFTER: _half_json,
    Fault.NO_REFRESH_TOKEN_AFTER: _no_refresh_token,
    Fault.NOTHING_AFTER: _reset,
    Fault.HANG_AFTER: _hang,
}
