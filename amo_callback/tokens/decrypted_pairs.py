"""Token pairs that were opened, so that a hand-out does not open one again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amo_callback.crypto import Cipher
    from amo_callback.model import ChangeNotice, Connection, TokenPair
    from amo_callback.store import Store

PAIRS = 10_000


class DecryptedPairCache:
    """Open pairs, and remember the last `limit` of them.

    One is remembered for the very bytes that it was opened from, and so it can never be another one's; it is let go
    where its connection changes only because a secret that nobody needs should not be lying about.
    """

    def __init__(self, *, cipher: Cipher, store: Store, limit: int = PAIRS) -> None:
        self._cipher = cipher
        self._limit = limit
        # Two mappings, and no tuples: the search for garbage would look through each of them.
        self._pairs: OrderedDict[str, TokenPair] = OrderedDict()
        self._of: dict[str, Connection] = {}
        store.subscribe(self._changed)

    def __len__(self) -> int:
        return len(self._pairs)

    def pair_of(self, connection: Connection) -> TokenPair | None:
        """Return a connection's token pair, or `None` where no key opens it."""
        known = self._of.get(connection.id)
        if known is not None and _same(known, connection):
            self._pairs.move_to_end(connection.id)
            return self._pairs[connection.id]
        pair = self._cipher.pair_of(connection)
        if pair is not None:
            self._pairs[connection.id], self._of[connection.id] = pair, connection
            self._pairs.move_to_end(connection.id)
            while len(self._pairs) > self._limit:
                self._forget(next(iter(self._pairs)))
        return pair

    def _changed(self, changed: ChangeNotice) -> None:
        if changed.connections is None:
            self._pairs.clear()
            self._of.clear()
            return
        for name in changed.connections:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._pairs.pop(name, None)
        self._of.pop(name, None)


def _same(one: Connection, other: Connection) -> bool:
    """Tell whether all that an opened pair depends on is the same."""
    return one is other or (
        one.sealed_pair == other.sealed_pair
        and one.account_id == other.account_id
        and one.user_id == other.user_id
        and one.access_issued_at == other.access_issued_at
        and one.access_expires_at == other.access_expires_at
    )
