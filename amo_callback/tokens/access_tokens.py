"""The access-token hand-out.

A fresh token is handed out immediately. Any other token is refreshed first. If the refresh fails, the stored token is
handed out as stale while it is valid.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_at_most
from amo_callback.errors import AmoCallbackError, NeedsReauth, NotYet, OperatorError, RetryableError
from amo_callback.model import Connection, Reason, RefreshTrigger, TokenState, connection_id
from amo_callback.schedule import fresh_enough, is_unexpired
from amo_callback.tokens.cache import AccessToken, OpenConnection, open_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.core import Core
    from amo_callback.refresh.coordinator import RefreshCoordinator
    from amo_callback.refresh.stored_hosts import StoredHosts
    from amo_callback.tokens.access_token_check import AccessTokenCheck
    from amo_callback.tokens.lookup import ConnectionLookup

_IN_DOUBT = "in_doubt"
"""The `reason` of a token that is stale because AMO could not confirm that it is valid."""
_NEW = timedelta(seconds=10)
"""The maximum age of a pair that a forced refresh returns unchanged."""
_WAIT_LIMIT = 8.0
"""The maximum number of seconds that a hand-out waits for a refresh.

The limit of a forced refresh is at least one second longer than the timeout of a request to AMO.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOut:
    """A valid access token.

    The token is `stale` if it expires sooner than requested, if the store is unreachable, or if AMO could not confirm
    that the token is valid. If the token is stale, `reason` states the cause.
    """

    connection: Connection
    token: AccessToken
    base_url: str
    stale: bool = False
    reason: str | None = None


class AccessTokens:
    """The hand-out of access tokens."""

    def __init__(
        self,
        core: Core,
        *,
        lookup: ConnectionLookup,
        coordinator: RefreshCoordinator,
        check: AccessTokenCheck,
        hosts: StoredHosts,
    ) -> None:
        self._core = core
        self._lookup = lookup
        self._coordinator = coordinator
        self._check = check
        self._hosts = hosts

    async def token(self, selector: str, *, min_ttl: float) -> HandOut:
        """Return an access token of the connection that `selector` names.

        A token that expires within `min_ttl` seconds is refreshed first, unless it was just issued. If the refresh
        fails, or if the store is unreachable, the last known token is returned as stale while it is valid. Raises
        `NotFound`, `NeedsReauth`, `RetryableError` or `OperatorError` if there is no valid token, and `HostNotAllowed`
        if the stored host is not allowed.
        """
        if hand_out := self._cached(selector, min_ttl):
            return hand_out
        result = await self._lookup.get(selector)
        found = result.found
        if result.store_error is not None:
            hand_out = await self._without_refresh(found, error=result.store_error, changed=result.changed)
            if hand_out is None:
                raise result.store_error
            return hand_out

        def is_fresh(connection: Connection) -> bool:
            return self._is_fresh(open_connection(connection, self._core).token, min_ttl)

        is_fresh_enough: Callable[[Connection], bool] = is_fresh
        if self._is_fresh(found.token, min_ttl):
            if hand_out := await self._without_refresh(found):
                return hand_out
            is_fresh_enough = _newer_than(found.connection)  # AMO rejects the token although it has not expired
        name = found.connection.id
        try:
            return await self._refreshed(
                name, trigger=RefreshTrigger.HAND_OUT, is_fresh_enough=is_fresh_enough, wait_limit=_WAIT_LIMIT
            )
        except (RetryableError, OperatorError, NeedsReauth) as error:
            result = await self._lookup.get(name, reread=True)  # another process may have refreshed the connection
            stale = result.store_error is not None or not self._is_fresh(result.found.token, min_ttl)
            hand_out = await self._without_refresh(result.found, error=error if stale else None)
            if hand_out is None:
                raise
            return hand_out

    async def refresh(self, selector: str, *, rejected: str | None = None) -> HandOut:
        """Refresh a connection now, and return its new access token, which is never stale.

        Any pair that is stored after the call begins and is not in doubt is new enough to be returned. If no access
        token was `rejected`, a pair that is less than ten seconds old is also new enough, because repeated calls must
        not rotate tokens endlessly.

        If an access token was `rejected`, its connection is refreshed, unless the connection already has another valid
        token, which is then returned. Raises the same errors as `token`.
        """
        chosen = await self._choose(selector, rejected)
        if rejected is None and chosen.token is not None and self._is_new(chosen.connection, chosen.token):
            return await self._hand_out(chosen.connection, chosen.token)
        if rejected is not None:
            if _has_token(chosen, rejected):
                self._check.mark_rejected(chosen.connection)
            elif (hand_out := await self._without_refresh(chosen)) and not hand_out.stale:
                return hand_out
        return await self._refreshed(
            chosen.connection.id,
            trigger=RefreshTrigger.FORCED,
            is_fresh_enough=_newer_than(chosen.connection),
            wait_limit=max(_WAIT_LIMIT, self._core.amo.timeout + 1.0),
        )

    async def connection_of(self, selector: str, rejected: str) -> Connection:
        """Return the connection that `refresh` refreshes if this access token was `rejected`."""
        return (await self._choose(selector, rejected)).connection

    def _cached(self, selector: str, min_ttl: float) -> HandOut | None:
        """Return a cached token if it is fresh and not in doubt, otherwise `None`."""
        found = self._lookup.cached(selector)
        if found is None or found.token is None or found.token.base_url is None:
            return None
        if not self._is_fresh(found.token, min_ttl) or self._check.is_in_doubt(found.connection):
            return None
        return HandOut(connection=found.connection, token=found.token, base_url=found.token.base_url)

    def _is_fresh(self, token: AccessToken | None, min_ttl: float) -> bool:
        return token is not None and fresh_enough(token, now=self._core.clock.now(), min_ttl=min_ttl)

    def _is_valid(self, token: AccessToken) -> bool:
        return is_unexpired(token, now=self._core.clock.now())

    def _is_new(self, connection: Connection, token: AccessToken) -> bool:
        """Return whether a forced refresh returns the pair unchanged, because it is new, valid and not in doubt."""
        if not connection.has_refresh_token or not self._is_valid(token):
            return False
        return self._core.clock.now() - token.issued_at < _NEW and not self._check.is_in_doubt(connection)

    async def _refreshed(
        self,
        connection_id: str,
        *,
        trigger: RefreshTrigger,
        is_fresh_enough: Callable[[Connection], bool],
        wait_limit: float,
    ) -> HandOut:
        """Refresh a connection and return its new access token.

        Raises `NotYet` after `wait_limit` seconds; the refresh then continues in the background.
        """
        refreshing = asyncio.ensure_future(
            self._coordinator.refresh(connection_id, trigger=trigger, is_fresh_enough=is_fresh_enough)
        )
        try:
            if not await wait_at_most(refreshing, seconds=wait_limit, clock=self._core.clock):
                raise NotYet(wait_limit)
            refreshed = open_connection(refreshing.result(), self._core)
        finally:
            refreshing.cancel()
        if refreshed.token is None:
            raise NeedsReauth(Reason.UNREADABLE)
        if not self._is_valid(refreshed.token):
            raise NotYet(1.0)  # the process was suspended for longer than the token was valid
        if self._check.is_in_doubt(refreshed.connection):
            raise NotYet(1.0)  # another refresh may already have invalidated the token
        return await self._hand_out(refreshed.connection, refreshed.token)

    async def _without_refresh(
        self, found: OpenConnection, *, error: AmoCallbackError | None = None, changed: bool = False
    ) -> HandOut | None:
        """Return the known token without a refresh, or `None` if it is not valid.

        The token is stale if `error` is set, or if AMO could not confirm that the token is valid. If the row has
        `changed` since it was read, the token may have been replaced, so it is introspected.
        """
        token = found.token
        if token is None or not self._is_valid(token):
            return None
        state = await self._check.state_of(found, in_doubt=changed)
        if state is TokenState.REJECTED or not self._is_valid(token):
            return None
        reason = None if state is TokenState.VALID else _IN_DOUBT
        return await self._hand_out(found.connection, token, reason=reason if error is None else _reason(error))

    async def _hand_out(self, connection: Connection, token: AccessToken, *, reason: str | None = None) -> HandOut:
        base_url = await self._hosts.check(connection)
        return HandOut(connection=connection, token=token, base_url=base_url, stale=reason is not None, reason=reason)

    async def _choose(self, selector: str, rejected: str | None) -> OpenConnection:
        """Return the connection to which the rejected token belongs, or the named one if no connection matches."""
        candidates = [open_connection(one, self._core) for one in await self._lookup.find(selector)]
        if rejected is None:
            return candidates[0]
        for candidate in candidates:
            if _has_token(candidate, rejected):
                return candidate
        name = connection_id(self._core.amo.account_of(rejected), "")
        return next((one for one in candidates if one.connection.id == name), candidates[0])


def _has_token(found: OpenConnection, access_token: str) -> bool:
    return found.token is not None and hmac.compare_digest(found.token.value.encode(), access_token.encode())


def _newer_than(seen: Connection) -> Callable[[Connection], bool]:
    """Return a predicate that accepts a connection if its pair was stored after the pair of `seen`."""
    return lambda connection: connection.pair_version != seen.pair_version


def _reason(error: AmoCallbackError) -> str:
    if isinstance(error, NeedsReauth) and error.reason:
        return f"{error.code}: {error.reason}"
    if isinstance(error, NotYet) and error.cause_code:
        return error.cause_code
    return error.code
