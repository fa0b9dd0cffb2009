"""The answer to whoever asks, with our keys, whether this is us, and whom we see: on both doors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback import probe
from amo_callback.web.keys import CIPHER, PROXIES
from amo_callback.web.peer import peer_of

if TYPE_CHECKING:
    from aiohttp import web


async def answer_probe(request: web.Request, response: web.StreamResponse) -> None:
    """Say in a header, sealed, whom this request is seen to come from, where who asks has our keys."""
    question = request.headers.get(probe.HEADER)
    if question is None or request.method != "HEAD":
        return
    seen = probe.Seen(
        peer=peer_of(request),
        forwarded="X-Forwarded-For" in request.headers,
        client=request.app[PROXIES].client_of(request),
    )
    answer = probe.answer(request.app[CIPHER], question, seen=seen)
    if answer is not None:
        response.headers[probe.HEADER] = answer
