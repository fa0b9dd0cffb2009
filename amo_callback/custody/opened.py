"""Token pairs that were opened, so that a hand-out does not open one again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.cipher import Cipher
    from amo_callback.model import Changed, Connection, TokenPair
    from amo_callback.ports import Store

PAIRS = 10_000


class _Sealed(NamedTuple):
    """All that an opened pair depends on."""

    content: bytes | None
    issued_at: datetime | None
    expires_at: datetime | None


class Opened:
    """Open pairs, and remember the last `limit` of them.

    One is remembered for the very bytes that it was opened from, and so it can never be another one's; it is let go
    where its connection changes only because a secret that nobody needs should not be lying about.
    """

    def __init__(self, *, cipher: Cipher, store: Store, limit: int = PAIRS) -> None:
        self._cipher = cipher
        self._limit = limit
        self._pairs: OrderedDict[str, tuple[_Sealed, TokenPair]] = OrderedDict()
        store.watch(self._changed)

    def __len__(self) -> int:
        return len(self._pairs)

    def pair_of(self, connection: Connection) -> TokenPair | None:
        """Return a connection's token pair, or `None` where no key opens it."""
        sealed = _Sealed(connection.sealed_pair, connection.access_issued_at, connection.access_expires_at)
        known = self._pairs.get(connection.id)
        if known is not None and known[0] == sealed:
            self._pairs.move_to_end(connection.id)
            return known[1]
        pair = self._cipher.pair_of(connection)
        if pair is not None:
            self._pairs[connection.id] = sealed, pair
            self._pairs.move_to_end(connection.id)
            while len(self._pairs) > self._limit:
                self._pairs.popitem(last=False)
        return pair

    def _changed(self, changed: Changed) -> None:
        if changed.connections is None:
            self._pairs.clear()
            return
        for name in changed.connections:
            self._pairs.pop(name, None)
