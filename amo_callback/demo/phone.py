"""The mobile app, simulated by a web page that starts the flow, handles the deep link, and calls the public API."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import jwt
from aiohttp import web

from amo_callback.demo.feed import APP, YOU

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from amo_callback.clock import Clock
    from amo_callback.demo.panel import Renderer

USER = "42"
ANOTHER_USER = "77"
"""The user of an app that is tried with the demo."""
AUDIENCE = "demo"
_JWT_LIFE = timedelta(minutes=5)
_SHOWN = 10
"""The maximum number of characters shown of a code or state."""
_STARTS = 20
"""The maximum number of flows whose PKCE verifiers are kept."""
_ASK_EVERY = 2.0
"""Seconds between two requests for a result, if the service does not respond."""


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

    def jwt_of(self, user: str, *, expires_at: datetime) -> str:
        claims = {"sub": user, "aud": AUDIENCE, "exp": expires_at}
        return jwt.encode(claims, self.jwt_secret, algorithm="HS256")


class AppAnswer(NamedTuple):
    """A response of the public API to the app."""

    status: int
    content: Mapping[str, Any]
    retry_after: float | None = None
    """The seconds in the header `Retry-After`."""


class Phone:
    def __init__(
        self,
        http: aiohttp.ClientSession,
        app: AppConfig,
        *,
        renderer: Renderer,
        clock: Clock,
        report: Callable[[str, str], None],
    ) -> None:
        self._http = http
        self._app = app
        self._renderer = renderer
        self._clock = clock
        self._report = report
        self._verifiers: dict[str, str] = {}
        """The PKCE verifier of each authorization request, by state."""
        self._screen = Screen()
        self._screens = 0
        """The number of screens shown so far, with which an open page notices a new screen."""
        self._loses_next = False
        self._lost: str | None = None
        """The state of the flow whose deep link does not reach the app."""
        self._asking: asyncio.Task[None] | None = None

    def lose_next_link(self) -> None:
        """Lose the deep link of the next flow, in which the app requests the result instead."""
        self._loses_next = True

    async def close(self) -> None:
        """Stop the requests for a result."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/phone", self._home),
            web.get("/phone/connect", self._connect),
            web.get("/phone/return", self._return),
            web.get("/phone/version", self._new_version),
            web.post("/phone/disconnect", self._disconnect),
        ]

    async def _home(self, _request: web.Request) -> web.Response:
        status = await self._status()
        return self._renderer.page("phone.html", screen=self._screen, status=status, version=self._version(status))

    async def _new_version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": self._version(await self._status())})

    async def _status(self) -> Mapping[str, Any]:
        return (await self._ask("GET", "/status")).content.get("data") or {}

    def _version(self, status: Mapping[str, Any]) -> str:
        """Return a string that changes whenever the page shows another screen or status."""
        return f"{self._screens} {status.get('connected')}"

    def _show(self, screen: Screen) -> web.Response:
        self._screen = screen
        self._screens += 1
        return _to("/phone")

    async def _connect(self, _request: web.Request) -> web.Response:
        verifier = secrets.token_urlsafe(32)
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        started = await self._ask(
            "POST", "/authorizations", {"code_challenge": challenge, "code_challenge_method": "S256"}
        )
        if not started.content.get("success"):
            return self._show(Screen(title="Not started", text=str(started.content.get("message"))))
        while len(self._verifiers) >= _STARTS:
            del self._verifiers[next(iter(self._verifiers))]
        state = started.content["data"]["state"]
        self._verifiers[state] = verifier
        await self.close()
        if self._loses_next:
            self._loses_next, self._lost = False, state
            self._asking = asyncio.create_task(self._claim(state, verifier), name="claim")
        return _to(started.content["data"]["authorize_url"])

    async def _return(self, request: web.Request) -> web.Response:
        """Handle a deep link as an app must: compare the state, handle each link only once, and exchange the code."""
        code, state = request.query.get("code"), request.query.get("state", "")
        if state == self._lost and state in self._verifiers:
            self._report(YOU, "The deep link is lost: the app does not receive it.")
            return web.Response(status=204)  # the browser keeps the page that it shows
        verifier = self._verifiers.pop(state, None)
        if verifier is None:
            return _to("/phone")  # the link was already handled, or this app did not start the flow
        link = f"{self._app.deep_link}?{shortened(request.query)}"
        if code is None:
            word = request.query.get("error", "")
            return self._show(Screen(title="Not connected", text=f"The deep link contains error={word}.", link=link))
        answer = await self._ask("POST", "/exchange-code", {"code": code, "code_verifier": verifier})
        return self._show(
            _screen_of(
                answer,
                title="Back in the app",
                text="The state matches the one that the service issued.",
                link=link,
                request=f'POST /exchange-code {{"code": "{code[:_SHOWN]}…", "code_verifier": "…"}}',
            )
        )

    async def _claim(self, state: str, verifier: str) -> None:
        """Request the result of a flow until there is one, as an app must that has received no deep link."""
        body = {"state": state, "code_verifier": verifier}
        before = None
        while True:
            answer = await self._ask_if_reachable("POST", "/exchange-code", body)
            result = answer.content.get("error") or answer.content["message"].rstrip(".")
            if (answer.status, result) != before:
                again = "" if answer.retry_after is None else f" The app asks again every {answer.retry_after:.0f} s."
                self._report(APP, f"The app asks for the result: {answer.status}, {result}.{again}")
            before = answer.status, result
            if answer.retry_after is None:
                break
            await self._clock.sleep(answer.retry_after)
        self._verifiers.pop(state, None)
        self._show(
            _screen_of(
                answer,
                title="Connected without the deep link",
                text="The app has received no deep link. It has asked the service for the result.",
                request=f'POST /exchange-code {{"state": "{state[:_SHOWN]}…", "code_verifier": "…"}}',
            )
        )

    async def _disconnect(self, _request: web.Request) -> web.Response:
        answer = await self._ask("POST", "/disconnect")
        if answer.content.get("success"):
            self._report(YOU, "The app user disconnected: the service erased the tokens.")
        return self._show(Screen(title="Disconnected", request="POST /disconnect", answer=_json(answer)))

    async def _ask_if_reachable(self, method: str, path: str, body: Mapping[str, str]) -> AppAnswer:
        try:
            return await self._ask(method, path, body)
        except (aiohttp.ClientError, TimeoutError, ValueError):  # a proxy's error is not JSON
            return AppAnswer(502, {"error": "no response of the service"}, _ASK_EVERY)

    async def _ask(self, method: str, path: str, body: Mapping[str, str] | None = None) -> AppAnswer:
        headers = {"Authorization": f"Bearer {self._app.jwt_of(USER, expires_at=self._clock.now() + _JWT_LIFE)}"}
        async with self._http.request(method, self._app.base + path, json=body, headers=headers) as response:
            wait = response.headers.get("Retry-After")
            content = await response.json(content_type=None)
            return AppAnswer(response.status, content, None if wait is None else float(wait))


def shortened(query: Mapping[str, str]) -> str:
    """Return a deep link's query with shortened values."""
    return "&".join(f"{name}={value[:_SHOWN]}{'…' * (len(value) > _SHOWN)}" for name, value in query.items())


def _screen_of(answer: AppAnswer, *, title: str, text: str, request: str, link: str = "") -> Screen:
    """Return the screen for a response of `exchange-code`; `title` is the title if the account is connected."""
    connected = bool(answer.content.get("success"))
    return Screen(
        title=title if connected else "Not connected",
        connected=connected,
        text=text,
        link=link,
        request=request,
        answer=_json(answer),
    )


def _json(answer: AppAnswer) -> str:
    return json.dumps(answer.content, indent=1, ensure_ascii=False)


def _to(address: str) -> web.Response:
    return web.Response(status=303, headers={"Location": address})
