"""Whose request it is."""

from __future__ import annotations

import functools
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web


_REMEMBERED = 256
_WITH_PORT = re.compile(r"(?P<ipv4>[0-9.]+):[0-9]{1,5}|\[(?P<ipv6>[0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
"""An address with a port, as IIS and Azure write it."""
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
        for entry in reversed([entry for line in forwarded for entry in line.split(",")]):
            hop = _plain(_without_port(entry.strip()))
            if hop is None:
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
    if listener is not None and listener.family == socket.AF_UNIX:
        return None
    peer = request.remote or _UNKNOWN
    return _plain(peer) or peer


@functools.lru_cache(_REMEMBERED)
def _plain(text: str) -> str | None:
    """Return an address as all others write it, or `None` for what is no address."""
    address = _address(text)
    return None if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address; an IPv4 one in IPv6's notation, as dual-stack sockets give it, is the IPv4 one."""
    try:
        address = None if "%" in text else ip_address(text)  # a zone may be any text, and nobody behind a proxy has one
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(entry: str) -> str:
    """Return the address of `192.0.2.1:51234`, `[2001:db8::1]:51234` or `[2001:db8::1]`; anything else as it is."""
    match = _WITH_PORT.fullmatch(entry)
    return entry if match is None else match["ipv4"] or match["ipv6"]
