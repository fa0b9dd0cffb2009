"""Whose request it is."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aiohttp import web


def client_address(request: web.Request, trusted: Collection[str]) -> str | None:
    """Return the client's address, or `None` behind a Unix socket that names none."""
    return rightmost_untrusted(request.remote or "", request.headers.getall("X-Forwarded-For", []), trusted)


def rightmost_untrusted(peer: str, forwarded: Sequence[str], trusted: Collection[str]) -> str | None:
    """Return the first address, from the right, that no proxy of ours has; a Unix socket's peer is trusted.

    What stands to the left of it was written by whoever sent the request.
    """
    if peer and peer not in trusted:
        return peer
    hops = [hop.strip() for line in forwarded for hop in line.split(",")]
    for hop in reversed(hops):
        if not _is_address(hop):
            break
        if hop not in trusted:
            return hop
    return peer or None


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
