"""The reverse proxy in front of the public API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Iterable

_NOT_PASSED_ON = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "upgrade"})
"""What belongs to one connection: RFC 9110, section 7.6.1."""
_POLICY = "Content-Security-Policy"
_FORWARDED = "X-Forwarded-For"
_AWAY = "The service does not answer yet.\n"


class Proxy:
    """Passes requests on to the public API.

    Only here the service's pages may be framed, and by the panel alone: the phone stands in a frame there. The
    service itself forbids it (`frame-ancestors 'none'`), and so should every proxy.
    """

    def __init__(self, http: aiohttp.ClientSession, *, panel: str) -> None:
        self._http = http
        self._panel = panel
        self.public: str | None = None
        """The public API's address, once it listens."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1024**2)
        app.add_routes([web.route("*", "/{path:.*}", self._pass)])
        return app

    async def _pass(self, request: web.Request) -> web.Response:
        if self.public is None:
            return web.Response(status=502, text=_AWAY)
        if not request.raw_path.startswith("/"):
            return web.Response(status=400, text="This is no proxy for other hosts.\n")
        address = URL(f"http://{self.public}{request.raw_path}", encoded=True)
        headers = CIMultiDict(_end_to_end(request.headers.items()))
        headers[_FORWARDED] = request.remote or ""  # in the place of what the client claims
        try:
            async with self._http.request(
                request.method, address, headers=headers, data=await request.read(), allow_redirects=False
            ) as answer:
                passed = web.Response(status=answer.status, body=await answer.read())
                passed.headers.clear()
                passed.headers.extend(_end_to_end(answer.headers.items()))
        except (aiohttp.ClientError, TimeoutError):
            return web.Response(status=502, text=_AWAY)
        return self._framed(passed)

    def _framed(self, answer: web.Response) -> web.Response:
        policy = answer.headers.get(_POLICY)
        if policy is not None:
            allowed = f"frame-ancestors http://{self._panel}"
            answer.headers[_POLICY] = policy.replace("frame-ancestors 'none'", allowed)
        answer.headers.popall("X-Frame-Options", None)
        return answer


def _end_to_end(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _NOT_PASSED_ON]
