"""The client's IP address, which is also returned in response to the probe header of `amo-callback` commands."""

from __future__ import annotations

import functools
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from amo_callback import probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from amo_callback.crypto import Cipher


_CACHE_SIZE = 256
_WITH_PORT = re.compile(r"(?P<ipv4>[0-9.]+):[0-9]{1,5}|\[(?P<ipv6>[0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
"""An address with a port, as IIS and Azure write it; for an address in brackets, the port is optional."""
_UNKNOWN = "unknown"
"""The placeholder for the address of a peer that disconnected before the address was read; it is never trusted."""


class TrustedProxies:
    """The networks of proxies whose `X-Forwarded-For` is trusted; a peer on a Unix socket is always trusted."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network, strict=False) for network in networks]
        self._trusts = functools.lru_cache(_CACHE_SIZE)(self._is_trusted)  # requests come from few proxies

    def client_of(self, request: web.Request) -> str | None:
        """Return the client's address; `None` if it is unknown, which is possible only through a Unix socket."""
        return self.rightmost_untrusted(peer_of(request), request.headers.getall("X-Forwarded-For", []))

    def rightmost_untrusted(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """Return the rightmost address that is not a trusted proxy's; a client can forge the addresses to its left.

        The peer is the rightmost address; `None` is a Unix socket, which is trusted. The result is `peer` if every
        address is trusted, or if a malformed entry is to the right of every untrusted address.
        """
        if peer is not None and not self._trusts(peer):
            return peer
        for entry in reversed(",".join(forwarded).split(",")):
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
    """Return the address of the TCP peer; `None` for a Unix socket."""
    listener = request.get_extra_info("socket")
    if listener is not None and listener.family == socket.AF_UNIX:
        return None
    peer = request.remote or _UNKNOWN
    return _plain(peer) or peer


@functools.lru_cache(_CACHE_SIZE)
def _plain(text: str) -> str | None:
    """Return an address in canonical form, or `None` for any other text."""
    address = _address(text)
    return None if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; convert an IPv4-mapped IPv6 address, as reported by dual-stack sockets, to IPv4."""
    try:
        address = None if "%" in text else ip_address(text)  # a zone id may be any text
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(entry: str) -> str:
    """Return the address in `192.0.2.1:51234`, `[2001:db8::1]:51234` or `[2001:db8::1]`; other text is unchanged."""
    match = _WITH_PORT.fullmatch(entry)
    return entry if match is None else match["ipv4"] or match["ipv6"]


def answer_probe(request: web.Request, cipher: Cipher, *, client: str | None) -> str | None:
    """Return the encrypted response to a probe; `None` if the request contains no probe that the cipher can decrypt."""
    question = request.headers.get(probe.HEADER)
    if question is None:
        return None
    seen = probe.ObservedClient(peer=peer_of(request), forwarded="X-Forwarded-For" in request.headers, client=client)
    return probe.reply_to(cipher, question, seen=seen)
