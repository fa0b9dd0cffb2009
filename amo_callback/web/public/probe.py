"""The answer to `amo-callback check`, which asks by the public address what arrives here."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from amo_callback import probe
from amo_callback.web.keys import CIPHER, PROXIES

if TYPE_CHECKING:
    from aiohttp import web


async def answer_probe(request: web.Request, response: web.StreamResponse) -> None:
    """Say in a header, sealed, whom this request is seen to come from, where who asks has our keys."""
    question = request.headers.get(probe.HEADER)
    if question is None or request.method != "HEAD":
        return
    listener = request.get_extra_info("socket")
    seen = probe.Seen(
        peer=None if listener is not None and listener.family == socket.AF_UNIX else request.remote,
        forwarded="X-Forwarded-For" in request.headers,
        client=request.app[PROXIES].client_of(request),
    )
    answer = probe.answer(request.app[CIPHER], question, seen=seen)
    if answer is not None:
        response.headers[probe.HEADER] = answer
