"""A request by which the command recognises the service: only a holder of the keys can make it and read the reply.

`amo-callback check` asks it by the public address, and so learns whether that leads to this service, and whether the
proxy in front passes the client's address on. The command sends it to the private API before its API key: while
the service is down, another process of the machine may listen there. To all others the header is noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import DecryptionFailed

if TYPE_CHECKING:
    from amo_callback.crypto import Cipher

HEADER = "X-Amo-Callback-Probe"
"""Of the request and of its answer."""
_LIMIT = 512
"""Characters: what is longer is ignored."""
_QUESTION, _ANSWER = "probe", "probe:answer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    peer: str | None
    """Who has connected; `None` on a Unix socket."""
    forwarded: bool
    """Whether there was an `X-Forwarded-For`."""
    client: str | None
    """Whose request it is taken for."""


def ask(cipher: Cipher, *, nonce: str) -> str:
    return cipher.seal(nonce.encode(), bound_to=_QUESTION).decode()


def answer(cipher: Cipher, question: str, *, seen: Seen) -> str | None:
    """Return the answer's header, or `None` where the request was not made with our keys."""
    nonce = _opened(cipher, question, bound_to=_QUESTION)
    if nonce is None:
        return None
    content = [nonce.decode(), seen.peer, seen.forwarded, seen.client]
    return cipher.seal(json.dumps(content).encode(), bound_to=_ANSWER).decode()


def read_answer(cipher: Cipher, header: str, *, nonce: str) -> Seen | None:
    """Return what the service sees, or `None` where this is no answer to this question."""
    content = _opened(cipher, header, bound_to=_ANSWER)
    if content is None:
        return None
    asked, peer, forwarded, client = json.loads(content)
    return Seen(peer=peer, forwarded=forwarded, client=client) if asked == nonce else None


def _opened(cipher: Cipher, header: str, *, bound_to: str) -> bytes | None:
    if len(header) > _LIMIT or not header.isascii():
        return None
    try:
        return cipher.open(header.encode(), bound_to=bound_to)
    except DecryptionFailed:
        return None
