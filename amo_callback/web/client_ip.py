"""The client's IP address, and the answer to an identity probe that names it."""

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
"""An address with a port, as IIS and Azure write it."""
_UNKNOWN = "unknown"
"""The address of a peer that disconnected before it was read: an untrusted one."""


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is trusted, as addresses or networks; a Unix socket always is."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(network, strict=False) for network in networks]
        self._trusts = functools.lru_cache(_CACHE_SIZE)(self._is_trusted)  # a few proxies send every request

    def client_of(self, request: web.Request) -> str | None:
        """Return the client's address, or `None` behind a Unix socket that names none."""
        return self.rightmost_untrusted(peer_of(request), request.headers.getall("X-Forwarded-For", []))

    def rightmost_untrusted(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """Return the first address, from the right, that is not a trusted proxy; a Unix socket (`None`) is trusted.

        Entries to the left of it were written by the client.
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
    """Return the address of the connection's other end, `None` on a Unix socket."""
    listener = request.get_extra_info("socket")
    if listener is not None and listener.family == socket.AF_UNIX:
        return None
    peer = request.remote or _UNKNOWN
    return _plain(peer) or peer


@functools.lru_cache(_CACHE_SIZE)
def _plain(text: str) -> str | None:
    """Return an address in its canonical form, or `None` for text that is no address."""
    address = _address(text)
    return None if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; an IPv4-mapped IPv6 address, as dual-stack sockets report, becomes the IPv4 one."""
    try:
        address = None if "%" in text else ip_address(text)  # a zone may be any text, and no client has one
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _without_port(entry: str) -> str:
    """Return the address of `192.0.2.1:51234`, `[2001:db8::1]:51234` or `[2001:db8::1]`; anything else as it is."""
    match = _WITH_PORT.fullmatch(entry)
    return entry if match is None else match["ipv4"] or match["ipv6"]


def answer_probe(request: web.Request, cipher: Cipher, *, client: str | None) -> str | None:
    """Return the sealed answer to an identity probe, or `None` where the request is none that our keys sealed."""
    question = request.headers.get(probe.HEADER)
    if question is None:
        return None
    seen = probe.ObservedClient(peer=peer_of(request), forwarded="X-Forwarded-For" in request.headers, client=client)
    return probe.reply_to(cipher, question, seen=seen)
