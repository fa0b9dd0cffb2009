"""Whose request it is."""

from __future__ import annotations

import functools
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web


_REMEMBERED = 256
_UNKNOWN = "unknown"
"""A peer that was gone before it could be asked for its address: a stranger like any other."""


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed, as addresses or networks; a Unix socket always is."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network, strict=False) for network in networks]
        self._trusts = functools.lru_cache(_REMEMBERED)(self._is_trusted)  # the same few proxies come again and again

    def client_of(self, request: web.Request) -> str | None:
        """Return the client's address, or `None` behind a Unix socket that names none."""
        return self.rightmost_untrusted(peer_of(request), request.headers.getall("X-Forwarded-For", []))

    def rightmost_untrusted(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """Return the first address, from the right, that is no proxy of ours; no peer is a trusted one.

        What stands to the left of it was written by whoever sent the request.
        """
        if peer is not None and not self._trusts(peer):
            return peer
        for hop in reversed([hop.strip() for line in forwarded for hop in line.split(",")]):
            if _address(hop) is None:
                break
            if not self._trusts(hop):
                return hop
        return peer

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


def peer_of(request: web.Request) -> str | None:
    """Return who has connected, `None` on a Unix socket."""
    listener = request.get_extra_info("socket")
    local = listener is not None and listener.family == socket.AF_UNIX
    return None if local else request.remote or _UNKNOWN


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return None if "%" in text else ip_address(text)  # a zone may be any text, and nobody behind a proxy has one
    except ValueError:
        return None
