"""The least that aiohttp can do: a server that answers with the same bytes, and one that asks AMO and stores nothing.

Run as a process of its own: `python -m tests.benchmarks.bare LAGS answer FILE`, or `… relay ENDPOINT`.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from amo_callback.amo.protocol import Integration, exchange_request
from amo_callback.amo.sandbox.rules import SandboxIntegration
from amo_callback.cli.context import run_loop
from tests.benchmarks.lag import beside
from tests.conftest import BASE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEEP_LINK = "foryoure://amo-crm/callback?code="


def answering(answer: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that answers as a hand-out does, whoever asks for whatever."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(
            body=answer,
            content_type="application/json",
            charset="utf-8",
            headers={"Cache-Control": "no-store", "X-Request-ID": "0123456789abcdef"},
        )

    return handler


def relaying(http: aiohttp.ClientSession, endpoint: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that exchanges a callback's code as the service does, and forgets what it got."""
    known = SandboxIntegration()
    integration = Integration(
        client_id=known.client_id,
        client_secret=known.client_secret,
        redirect_uri=known.redirect_uri,
        endpoint=endpoint,
    )

    async def handler(request: web.Request) -> web.Response:
        code, domain = request.query["code"], request.query["referer"]
        asked = exchange_request(integration, code=code.encode(), domain=domain)
        async with http.post(asked.url, data=asked.body, headers=asked.headers) as answer:
            await answer.json()
            good = answer.status == HTTPStatus.OK
        if not good:
            return web.Response(status=502)
        return web.Response(status=302, headers={"Location": DEEP_LINK + code, "Cache-Control": "no-store"})

    return handler


async def serve(what: str, with_what: str) -> None:
    """Serve until it is stopped; print the address."""
    async with aiohttp.ClientSession() as http:
        app = web.Application()
        if what == "relay":
            app.add_routes([web.get(f"{BASE}/callback", relaying(http, with_what))])
        else:
            app.add_routes([web.get("/connections/{id}/token", answering(Path(with_what).read_bytes()))])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print("http://{}:{}".format(*runner.addresses[0]), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    run_loop(beside(Path(sys.argv[1]), serve(sys.argv[2], sys.argv[3])))
