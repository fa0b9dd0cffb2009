"""The reverse proxy between the simulated phone and the public API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Iterable

PHONE_USER_AGENT = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36"
)
_NOT_PASSED_ON = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "upgrade"})
"""Headers that the proxy does not forward: hop-by-hop headers (RFC 9110, section 7.6.1), and Content-Length."""
_POLICY = "Content-Security-Policy"
_AWAY = "The service does not respond: reload the page in a few seconds.\n"


class Proxy:
    """A reverse proxy in front of the public API, and a substitute for parts of a phone.

    For pages in the panel's frame, the proxy sends a phone's user agent, so that the frame shows the page for
    phones. It replaces the app's deep link with the URL of the simulated app, because no installed app handles the
    link. It allows the panel to frame the service's pages. The service itself forbids framing (`frame-ancestors
    'none'`), and a proxy in production must not allow it. All other requests are forwarded unchanged, so that real apps
    can be tried.
    """

    def __init__(self, http: aiohttp.ClientSession, *, panel: str, deep_link: str) -> None:
        self._http = http
        self._panel = panel
        self._deep_link = deep_link
        self._app = f"http://{panel}/phone/return"
        self.public: str | None = None
        """The public API's address; `None` until the API listens."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1024**2)
        app.add_routes([web.route("*", "/{path:.*}", self._pass)])
        return app

    async def _pass(self, request: web.Request) -> web.Response:
        if self.public is None:
            return web.Response(status=502, text=_AWAY)
        if not request.raw_path.startswith("/"):
            return web.Response(
                status=400, text="The proxy serves only this host: request a path, not a complete URL.\n"
            )
        address = URL(f"http://{self.public}{request.raw_path}", encoded=True)
        is_framed = request.headers.get("Sec-Fetch-Dest") == "iframe"
        try:
            async with self._http.request(
                request.method,
                address,
                headers=_headers_from(request, is_framed=is_framed),
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
                passed = web.Response(status=answer.status, body=self._linked(body) if is_framed else body)
                passed.headers.clear()
                passed.headers.extend(_end_to_end(answer.headers.items()))
        except (aiohttp.ClientError, TimeoutError):
            return web.Response(status=502, text=_AWAY)
        return self._framed(passed) if is_framed else passed

    def _linked(self, body: bytes) -> bytes:
        """Return a page with links to the simulated app in place of deep links."""
        return body.replace(f'href="{self._deep_link}'.encode(), f'href="{self._app}'.encode())

    def _framed(self, answer: web.Response) -> web.Response:
        location = answer.headers.get("Location", "")
        if location.startswith(self._deep_link):
            answer.headers["Location"] = self._app + location.removeprefix(self._deep_link)
        policy = answer.headers.get(_POLICY)
        if policy is not None:
            allowed = f"frame-ancestors http://{self._panel}"
            answer.headers[_POLICY] = policy.replace("frame-ancestors 'none'", allowed)
        answer.headers.popall("X-Frame-Options", None)
        return answer


def _headers_from(request: web.Request, *, is_framed: bool) -> CIMultiDict[str]:
    headers = CIMultiDict(_end_to_end(request.headers.items()))
    headers["X-Forwarded-For"] = request.remote or ""  # replaces the client's value, which may be forged
    headers["Accept-Encoding"] = "identity"  # a compressed page cannot be searched for links
    if is_framed:
        headers["User-Agent"] = PHONE_USER_AGENT
    return headers


def _end_to_end(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _NOT_PASSED_ON]
