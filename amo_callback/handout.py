"""A token with enough life, for whoever may have it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError, Busy, MustMend, MustWait, NeedsReauth, NotFound
from amo_callback.model import Connection, Reason, Status, TokenPair
from amo_callback.schedule import fresh_enough, lives
from amo_callback.tasks import done_within

if TYPE_CHECKING:
    from amo_callback.cipher import Cipher
    from amo_callback.keeper import Keeper
    from amo_callback.ports import Clock, Store

_ACCOUNT = "account:"
_PATIENCE = 8.0
"""Seconds that a hand-out waits for a refresh."""


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
        pair = self._cipher.pair_of(connection)
        if pair is not None and fresh_enough(pair, now=self._clock.now(), min_ttl=min_ttl):
            return HandedOut(connection=connection, pair=pair)
        try:
            connection = await self._refreshed(connection)
        except (MustWait, MustMend, NeedsReauth) as error:
            return await self._as_it_is(connection.id, error)
        pair = self._cipher.pair_of(connection)
        if pair is None:
            raise NeedsReauth(Reason.UNREADABLE)
        return HandedOut(connection=connection, pair=pair)

    async def _refreshed(self, connection: Connection) -> Connection:
        """Refresh, but do not keep a backend waiting for a paused rate limit or a slow AMO: that goes on alone."""
        refreshing = asyncio.ensure_future(self._keeper.refresh(connection.id, demand="hand_out", patient=True))
        try:
            if await done_within(refreshing, seconds=_PATIENCE, clock=self._clock):
                return refreshing.result()
        finally:
            refreshing.cancel()
        raise Busy(_PATIENCE)

    async def _as_it_is(self, connection_id: str, error: AmoCallbackError) -> HandedOut:
        """Hand out what there is: another process may have stored a newer pair meanwhile."""
        connection = await self._find(connection_id)
        pair = self._cipher.pair_of(connection)
        if pair is None or not lives(pair, now=self._clock.now()):
            raise error
        return HandedOut(connection=connection, pair=pair, stale=True, reason=_reason(error))

    async def _find(self, selector: str) -> Connection:
        if selector.startswith(_ACCOUNT):
            found = await self._store.connections_of(selector.removeprefix(_ACCOUNT))
            connection = found[0] if found else None
        else:
            connection = await self._store.connection(selector)
        if connection is None or connection.status is Status.DISCONNECTED:
            raise NotFound
        return connection


def _reason(error: AmoCallbackError) -> str:
    if isinstance(error, NeedsReauth) and error.reason:
        return f"{error.code}: {error.reason}"
    if isinstance(error, Busy) and error.because:
        return error.because
    return error.code
