"""The measured servers, each of which writes the lags of its loop to a file.

Run each as a separate process: `python -m tests.benchmarks.servers LAGS service|idle`, or `… LAGS answer|relay WITH`.
The latter two print their address.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import aiohttp
from aiohttp import web

from amo_callback.amo.protocol import Integration, exchange_request
from amo_callback.amo.sandbox.fake_amo import SandboxIntegration
from amo_callback.cli import serve
from amo_callback.cli.context import run_loop
from tests.benchmarks.harness import DEEP_LINK
from tests.service import BASE

T = TypeVar("T")


_PERIOD, _LEAST = 0.005, 0.001
"""Seconds between samples, and the longest lag that is ignored, because the loop's timers are no finer."""


async def beside(file: Path, work: Coroutine[object, object, T]) -> T:
    """Run `work`, and write the loop's lags: the time of each late wake-up (CLOCK_MONOTONIC) and its delay."""

    async def sample() -> None:
        with file.open("w", buffering=1, encoding="utf-8") as lines:
            while True:
                due = time.monotonic() + _PERIOD
                await asyncio.sleep(_PERIOD)
                came = time.monotonic()
                if came - due > _LEAST:
                    lines.write(f"{came:.6f} {came - due:.6f}\n")

    sampler = asyncio.create_task(sample(), name="lag")
    try:
        return await work
    finally:
        sampler.cancel()


async def answer(file: str) -> None:
    """Serve the bytes of a file with the headers of a hand-out."""
    body, headers = Path(file).read_bytes(), {"Cache-Control": "no-store", "X-Request-ID": "0123456789abcdef"}

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json", charset="utf-8", headers=headers)

    await _serve(web.get("/connections/{id}/token", handler))


async def relay(endpoint: str) -> None:
    """Exchange a callback's code as the service does, and discard the pair."""
    known = SandboxIntegration()
    integration = Integration(
        client_id=known.client_id, client_secret=known.client_secret, redirect_uri=known.redirect_uri, endpoint=endpoint
    )

    async def handler(request: web.Request) -> web.Response:
        code, domain = request.query["code"], request.query["referer"]
        asked = exchange_request(integration, code=code.encode(), domain=domain)
        async with http.post(asked.url, data=asked.body, headers=asked.headers) as answer:
            await answer.json()
            answer.raise_for_status()
        return web.Response(status=302, headers={"Location": DEEP_LINK + code, "Cache-Control": "no-store"})

    async with aiohttp.ClientSession() as http:
        await _serve(web.get(f"{BASE}/callback", handler))


async def _serve(route: web.RouteDef) -> None:
    app = web.Application()
    app.add_routes([route])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print("http://{}:{}".format(*runner.addresses[0]), flush=True)
    await asyncio.Event().wait()


def main(lags: str, what: str, *with_what: str) -> int:
    if what == "service":
        return serve.run(None, os.environ, run_loop=lambda work: run_loop(beside(Path(lags), work)))
    works: dict[str, Callable[..., Coroutine[object, object, object]]] = {
        "idle": asyncio.Event().wait,
        "answer": answer,
        "relay": relay,
    }
    run_loop(beside(Path(lags), works[what](*with_what)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
