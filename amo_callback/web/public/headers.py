"""The headers of every answer of the public door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""No cache, no referrer (the address may hold a code), no frame, no script: a page names its own nonce."""


async def protect(_request: web.Request, response: web.StreamResponse) -> None:
    """Add the protecting headers that the handler has not set itself."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
