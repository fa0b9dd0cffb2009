"""The least that aiohttp can do: a handler that answers with the same bytes, whoever asks for whatever."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from amo_callback.cli.loop import run_loop


async def serve(answer: bytes) -> None:
    """Serve until it is killed; print the address."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(
            body=answer,
            content_type="application/json",
            charset="utf-8",
            headers={"Cache-Control": "no-store", "X-Request-ID": "0123456789abcdef"},
        )

    app = web.Application()
    app.add_routes([web.get("/connections/{id}/token", handler)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("http://{}:{}".format(*runner.addresses[0]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run_loop(serve(Path(sys.argv[1]).read_bytes()))
