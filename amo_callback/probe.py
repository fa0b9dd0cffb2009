"""A request header, encrypted with the encryption keys, by which `amo-callback` commands recognize the service.

`amo-callback check` sends the header to the public address, to find out whether requests reach this service and whether
the proxy forwards the client's address. Commands also send the header to the private API before they send their API
key, because another process may be listening there while the service is down. Headers from other clients are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import DecryptionFailed

if TYPE_CHECKING:
    from amo_callback.crypto import Cipher

HEADER = "X-Amo-Callback-Probe"
"""The name of the request header and of the response header."""
_LIMIT = 512
"""The maximum length of the header in characters; longer headers are ignored."""
_QUESTION, _ANSWER = "probe", "probe:answer"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedClient:
    """The client of a request as the service sees it."""

    peer: str | None
    """The address of the TCP peer; `None` for a Unix socket."""
    forwarded: bool
    """Whether the request has an `X-Forwarded-For` header."""
    client: str | None
    """The client's address, as determined by the service; `None` if it is unknown."""


def seal_nonce(cipher: Cipher, *, nonce: str) -> str:
    """Return the value of the header for a request with a nonce."""
    return cipher.seal(nonce.encode(), context=_QUESTION).decode()


def reply_to(cipher: Cipher, question: str, *, seen: ObservedClient) -> str | None:
    """Return the value of the header for the response; `None` if these keys do not decrypt the request's header."""
    nonce = _opened(cipher, question, context=_QUESTION)
    if nonce is None:
        return None
    content = [nonce.decode(), seen.peer, seen.forwarded, seen.client]
    return cipher.seal(json.dumps(content).encode(), context=_ANSWER).decode()


def read_reply(cipher: Cipher, header: str, *, nonce: str) -> ObservedClient | None:
    """Return the client as the service saw it; `None` if the header is not a response to `nonce`."""
    content = _opened(cipher, header, context=_ANSWER)
    if content is None:
        return None
    asked, peer, forwarded, client = json.loads(content)
    return ObservedClient(peer=peer, forwarded=forwarded, client=client) if asked == nonce else None


def _opened(cipher: Cipher, header: str, *, context: str) -> bytes | None:
    if len(header) > _LIMIT or not header.isascii():
        return None
    try:
        return cipher.open(header.encode(), context=context)
    except DecryptionFailed:
        return None
