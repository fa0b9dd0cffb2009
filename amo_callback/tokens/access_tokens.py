"""A token with enough life, for whoever may have it."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_within
from amo_callback.errors import AmoCallbackError, HostNotAllowed, NeedsReauth, NotYet, OperatorError, RetryableError
from amo_callback.model import Connection, Reason, RefreshTrigger, TokenPair, TokenState, connection_id
from amo_callback.schedule import fresh_enough, lives
from amo_callback.tokens.decrypted_pairs import DecryptedPairCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.core import Core
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.stored_hosts import StoredHosts
    from amo_callback.tokens.access_token_check import AccessTokenCheck
    from amo_callback.tokens.lookup import ConnectionLookup

_IN_DOUBT = "in_doubt"
"""Why a token is stale that AMO could not be asked about."""
_NEW = timedelta(seconds=10)
_PATIENCE = 8.0
"""Seconds that a hand-out waits for a refresh; one that was asked to refresh waits for AMO to answer or time out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """A live access token; `stale` where it has less life than asked for, and `reason` says why."""

    connection: Connection
    pair: TokenPair
    base_url: str
    """The address of AMO's API for the account: the token may be sent there."""
    stale: bool = False
    reason: str | None = None


class AccessTokens:
    """Hand out access tokens, refreshed first where they have too little life left."""

    def __init__(
        self,
        core: Core,
        *,
        lookup: ConnectionLookup,
        coordinator: RefreshCoordinator,
        access_token_check: AccessTokenCheck,
        hosts: StoredHosts,
    ) -> None:
        self._core = core
        self._lookup = lookup
        self._coordinator = coordinator
        self._access_token_check = access_token_check
        self._hosts = hosts
        self._opened = DecryptedPairCache(store=core.store, cipher=core.cipher)

    async def token(self, selector: str, *, min_ttl: float) -> AccessToken:
        """Return a token of the connection with this id, or of the account in `account:ID`.

        A token with less than `min_ttl` seconds is refreshed first; where that fails and it lives still, it is
        handed out as stale, and so is the last that is known while the store is away. Raises `NotFound`,
        `NeedsReauth`, `RetryableError`, `OperatorError`: then there is no live one, or it must not leave
        (`HostNotAllowed`).
        """
        if handed_out := self._at_hand(selector, min_ttl):
            return handed_out

        def is_fresh(connection: Connection) -> bool:
            return self._fresh_pair(connection, min_ttl) is not None

        recalled = await self._lookup.recall(selector)
        if recalled.away is not None:
            handed_out = await self._as_it_is(recalled.connection, error=recalled.away, changed=recalled.changed)
            if handed_out is None:
                raise recalled.away
            return handed_out
        connection = recalled.connection
        satisfied: Callable[[Connection], bool] = is_fresh
        if is_fresh(connection):
            if handed_out := await self._as_it_is(connection):
                return handed_out
            satisfied = _newer_than(connection)  # it is dead before its time
        try:
            return await self._refreshed(
                connection, demand=RefreshTrigger.HAND_OUT, satisfied=satisfied, patience=_PATIENCE
            )
        except (RetryableError, OperatorError, NeedsReauth) as error:
            recalled = await self._lookup.recall(connection.id, anew=True)  # another process may have stored a pair
            stale = recalled.away is not None or not is_fresh(recalled.connection)
            handed_out = await self._as_it_is(recalled.connection, error=error if stale else None)
            if handed_out is None:
                raise
            return handed_out

    async def refresh(self, selector: str, *, rejected: str | None = None) -> AccessToken:
        """Refresh now, and return the new pair; raises what `token` raises, and never hands out a stale one.

        Any pair stored after the call and in no doubt is new enough, and without a `rejected` token so is one that is
        younger than ten seconds: a caller in a loop must not rotate tokens. A `rejected` access token selects its own
        connection; where that has another one by now, it is handed out and nothing is refreshed.
        """
        connection = self._choose(await self._lookup.find(selector), rejected)
        if rejected is None and (pair := self._new_pair(connection)):
            return AccessToken(connection=connection, pair=pair, base_url=await self._hosts.check(connection))
        if rejected is not None:
            if self._is_stored(connection, rejected):
                self._access_token_check.reject(connection)
            elif handed_out := await self._as_it_is(connection):
                return handed_out
        return await self._refreshed(
            connection,
            demand=RefreshTrigger.FORCED,
            satisfied=_newer_than(connection),
            patience=max(_PATIENCE, self._core.amo.timeout + 1.0),
        )

    def _at_hand(self, selector: str, min_ttl: float) -> AccessToken | None:
        """Hand out what is certain, fresh and in no doubt: almost every time, and there is nothing to wait for."""
        connection = self._lookup.remembered(selector)
        if connection is None or (pair := self._fresh_pair(connection, min_ttl)) is None:
            return None
        if self._access_token_check.is_doubtful(connection):
            return None
        try:
            return AccessToken(connection=connection, pair=pair, base_url=self._hosts.base_url(connection))
        except HostNotAllowed:
            return None  # which is to be written down

    def _fresh_pair(self, connection: Connection, min_ttl: float) -> TokenPair | None:
        """Return a connection's pair, where it has enough life left."""
        pair = self._opened.pair_of(connection)
        return pair if pair is not None and fresh_enough(pair, now=self._core.clock.now(), min_ttl=min_ttl) else None

    def _new_pair(self, connection: Connection) -> TokenPair | None:
        """Return a connection's pair, where it is so new that a forced refresh would bring nothing."""
        pair, now = self._opened.pair_of(connection), self._core.clock.now()
        if pair is None or not connection.has_refresh_token:
            return None
        if now - pair.issued_at >= _NEW or self._access_token_check.is_doubtful(connection):
            return None
        return pair if lives(pair, now=now) else None

    async def _refreshed(
        self,
        connection: Connection,
        *,
        demand: RefreshTrigger,
        satisfied: Callable[[Connection], bool],
        patience: float,
    ) -> AccessToken:
        """Refresh, but do not keep a backend waiting for a paused rate limit or a slow AMO: that goes on alone."""
        refreshing = asyncio.ensure_future(self._coordinator.refresh(connection.id, demand=demand, satisfied=satisfied))
        try:
            if not await done_within(refreshing, seconds=patience, clock=self._core.clock):
                raise NotYet(patience)
            connection = refreshing.result()
        finally:
            refreshing.cancel()
        pair = self._opened.pair_of(connection)
        if pair is None:
            raise NeedsReauth(Reason.UNREADABLE)
        if not lives(pair, now=self._core.clock.now()):
            raise NotYet(1.0)  # the process was stopped for longer than a token lives
        if self._access_token_check.is_doubtful(connection):
            raise NotYet(1.0)  # what was stored meanwhile is being refreshed again, and may be dead by now
        return AccessToken(connection=connection, pair=pair, base_url=await self._hosts.check(connection))

    async def _as_it_is(
        self, connection: Connection, *, error: AmoCallbackError | None = None, changed: bool = False
    ) -> AccessToken | None:
        """Hand out what there is, if it is valid: as stale where `error` kept it from being refreshed, or in doubt.

        One that was `changed` since it was read may have been replaced: AMO is asked.
        """
        pair = self._opened.pair_of(connection)
        if pair is None or not lives(pair, now=self._core.clock.now()):
            return None
        standing = await self._access_token_check.standing(connection, pair, doubted=changed)
        if standing is TokenState.REFUSED or not lives(pair, now=self._core.clock.now()):
            return None
        reason = None if standing is TokenState.GOOD else _IN_DOUBT
        if error is not None:
            reason = _reason(error)
        base_url = await self._hosts.check(connection)
        return AccessToken(connection=connection, pair=pair, base_url=base_url, stale=reason is not None, reason=reason)

    # --- which one -------------------------------------------------------------------------------

    def _choose(self, candidates: Sequence[Connection], rejected: str | None) -> Connection:
        """Return the connection that a rejected token is of, as far as it tells; else the freshest."""
        if rejected is None:
            return candidates[0]
        for candidate in candidates:
            if self._is_stored(candidate, rejected):
                return candidate
        account = self._core.amo.account_of(rejected)
        name = connection_id(account, "")
        return next((one for one in candidates if one.id == name), candidates[0])

    def _is_stored(self, connection: Connection, access_token: str) -> bool:
        pair = self._opened.pair_of(connection)
        return pair is not None and hmac.compare_digest(pair.access_token.encode(), access_token.encode())


def _newer_than(seen: Connection) -> Callable[[Connection], bool]:
    """Be satisfied by any pair stored after this one."""
    return lambda connection: connection.pair_version != seen.pair_version


def _reason(error: AmoCallbackError) -> str:
    if isinstance(error, NeedsReauth) and error.reason:
        return f"{error.code}: {error.reason}"
    if isinstance(error, NotYet) and error.cause_code:
        return error.cause_code
    return error.code
