"""The mobile app, simulated by a web page that starts the flow, handles the deep link, and calls the public API."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import jwt
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import aiohttp

    from amo_callback.clock import Clock
    from amo_callback.demo.panel import Renderer

USER = "42"
AUDIENCE = "demo"
_SHOWN = 10
"""The maximum number of characters shown of a code or state."""
_STARTS = 20
"""The maximum number of flows whose PKCE verifiers are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """The app's screen after its last step."""

    title: str = ""
    connected: bool = False
    text: str = ""
    link: str = ""
    """The deep link that a phone would receive, with shortened values."""
    request: str = ""
    answer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AppConfig:
    base: str
    """The base URL of the public API."""
    deep_link: str
    jwt_secret: str = field(repr=False)


class Phone:
    def __init__(
        self,
        http: aiohttp.ClientSession,
        app: AppConfig,
        *,
        renderer: Renderer,
        clock: Clock,
        report: Callable[[str], None],
    ) -> None:
        self._http = http
        self._app = app
        self._renderer = renderer
        self._clock = clock
        self._report = report
        self._verifiers: dict[str, str] = {}
        """The PKCE verifier of each authorization request, by state."""
        self._screen = Screen()

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/phone", self._home),
            web.get("/phone/connect", self._connect),
            web.get("/phone/return", self._return),
            web.get("/phone/status", self._status),
            web.post("/phone/disconnect", self._disconnect),
        ]

    async def _home(self, _request: web.Request) -> web.Response:
        status = await self._ask("GET", "/status")
        return self._renderer.page("phone.html", screen=self._screen, status=status.get("data") or {})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response((await self._ask("GET", "/status")).get("data"))

    async def _connect(self, _request: web.Request) -> web.Response:
        verifier = secrets.token_urlsafe(32)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        started = await self._ask(
            "POST", "/authorizations", {"code_challenge": challenge, "code_challenge_method": "S256"}
        )
        if not started.get("success"):
            self._screen = Screen(title="Not started", text=str(started.get("message")))
            return _to("/phone")
        while len(self._verifiers) >= _STARTS:
            del self._verifiers[next(iter(self._verifiers))]
        self._verifiers[started["data"]["state"]] = verifier
        return _to(started["data"]["authorize_url"])

    async def _return(self, request: web.Request) -> web.Response:
        """Handle a deep link as an app must: compare the state, handle each link only once, and exchange the code."""
        code, state = request.query.get("code"), request.query.get("state", "")
        verifier = self._verifiers.pop(state, None)
        if verifier is None:
            return _to("/phone")  # the link was already handled, or this app did not start the flow
        link = f"{self._app.deep_link}?{shortened(request.query)}"
        if code is None:
            word = request.query.get("error", "")
            self._screen = Screen(title="Not connected", text=f"The deep link contains error={word}.", link=link)
            return _to("/phone")
        answer = await self._ask("POST", "/exchange-code", {"code": code, "code_verifier": verifier})
        self._screen = Screen(
            title="Back in the app" if answer.get("success") else "Not connected",
            connected=bool(answer.get("success")),
            text="The state matches the one that the service issued.",
            link=link,
            request=f'POST /exchange-code {{"code": "{code[:_SHOWN]}…", "code_verifier": "…"}}',
            answer=_json(answer),
        )
        return _to("/phone")

    async def _disconnect(self, _request: web.Request) -> web.Response:
        answer = await self._ask("POST", "/disconnect")
        if answer.get("success"):
            self._report("The app user disconnected: the service erased the tokens.")
        self._screen = Screen(title="Disconnected", request="POST /disconnect", answer=_json(answer))
        return _to("/phone")

    async def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
        now = self._clock.now()
        claims = {"sub": USER, "aud": AUDIENCE, "exp": now + timedelta(minutes=5)}
        headers = {"Authorization": f"Bearer {jwt.encode(claims, self._app.jwt_secret, algorithm='HS256')}"}
        async with self._http.request(method, self._app.base + path, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
        return answer


def shortened(query: Mapping[str, str]) -> str:
    """Return a deep link's query with shortened values."""
    return "&".join(f"{name}={value[:_SHOWN]}{'…' * (len(value) > _SHOWN)}" for name, value in query.items())


def _json(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, indent=1, ensure_ascii=False)


def _to(address: str) -> web.Response:
    return web.Response(status=303, headers={"Location": address})
