"""Looks that are no visits: HEAD, and what a browser asks for before the person does. They do no work."""

from __future__ import annotations

from aiohttp import web

from amo_callback.web.operation import Operation, Reply, describe


@describe(Operation(id="look", replies={200: Reply(about="Nothing was done.")}))
async def without_work(_request: web.Request) -> web.Response:
    """Answer a look that is no visit."""
    return web.Response()


def is_prefetch(request: web.Request) -> bool:
    """Tell whether a browser asks before the person does: that must not spend the code."""
    told = (request.headers.get(name, "") for name in ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"))
    return any("prefetch" in value.lower() or "preview" in value.lower() for value in told)
