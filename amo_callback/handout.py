"""A token with enough life, for whoever may have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError, MustMend, MustWait, NeedsReauth, NotFound, Unreadable
from amo_callback.model import Connection, Reason, Status, TokenPair
from amo_callback.schedule import fresh_enough, lives

if TYPE_CHECKING:
    from amo_callback.cipher import Cipher
    from amo_callback.keeper import Keeper
    from amo_callback.ports import Clock, Store

_ACCOUNT = "account:"


@dataclass(frozen=True, kw_only=True, slots=True)
class HandedOut:
    """A live access token; `stale` where it has less life than asked for, and `reason` says why."""

    connection: Connection
    pair: TokenPair
    stale: bool = False
    reason: str | None = None


class Handout:
    """Hand out access tokens, refreshed first where they have too little life left."""

    def __init__(self, *, store: Store, keeper: Keeper, cipher: Cipher, clock: Clock) -> None:
        self._store = store
        self._keeper = keeper
        self._cipher = cipher
        self._clock = clock

    async def token(self, selector: str, *, min_ttl: float) -> HandedOut:
        """Return a token of the connection with this id, or of the account in `account:ID`.

        A token with less than `min_ttl` seconds is refreshed first; where that fails and it lives still, it is
        handed out as stale. Raises `NotFound`, `NeedsReauth`, `MustWait`, `MustMend`: then there is no live one.
        """
        connection = await self._find(selector)
        pair = self._opened(connection)
        if pair is not None and fresh_enough(pair, now=self._clock.now(), min_ttl=min_ttl):
            return HandedOut(connection=connection, pair=pair)
        try:
            connection = await self._keeper.refresh(connection.id, demand="hand_out", patient=True)
        except (MustWait, MustMend, NeedsReauth) as error:
            if pair is None or not lives(pair, now=self._clock.now()):
                raise
            return HandedOut(connection=connection, pair=pair, stale=True, reason=_reason(error))
        pair = self._opened(connection)
        if pair is None:
            raise NeedsReauth(Reason.UNREADABLE)
        return HandedOut(connection=connection, pair=pair)

    async def _find(self, selector: str) -> Connection:
        if selector.startswith(_ACCOUNT):
            found = await self._store.connections_of(selector.removeprefix(_ACCOUNT))
            connection = found[0] if found else None
        else:
            connection = await self._store.connection(selector)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        return connection

    def _opened(self, connection: Connection) -> TokenPair | None:
        try:
            return self._cipher.open_pair(connection.sealed_pair or b"", connection_id=connection.id)
        except Unreadable:
            return None


def _reason(error: AmoCallbackError) -> str:
    if isinstance(error, NeedsReauth) and error.reason:
        return f"{error.code}: {error.reason}"
    return error.code
