"""A check by introspection, which spends nothing, whether an access token in doubt is still valid.

It is unknown whether an old access token remains valid after a refresh. The stored token may therefore be invalid
before it expires: after a refresh with an unknown outcome; during one that takes long, or began before this process; if
the connection needs reauthorization; while it is frozen, because another host may refresh it; and if its times are
impossible.

A token that AMO rejects is never handed out. If AMO does not respond, the token is handed out as stale until it
expires.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.concurrency import SingleFlight, wait_at_most
from amo_callback.errors import HostNotAllowed, NotYet, ShuttingDown
from amo_callback.events import report_bug
from amo_callback.model import Connection, Status, TokenState
from amo_callback.rate_limit import Priority
from amo_callback.schedule import is_impossible

if TYPE_CHECKING:
    import asyncio

    from amo_callback.core import Core
    from amo_callback.refresh.introspector import Introspector
    from amo_callback.refresh.leases import Leases
    from amo_callback.tokens.cache import OpenConnection

_WAIT_LIMIT = 1.0
"""Seconds that a caller waits for AMO's response."""
_UNDER_WAY = 5.0
"""Seconds for which another process's refresh may be in progress before the access token is in doubt."""
_SETTLED = 600.0
_UNSETTLED = 5.0
"""Cache times in seconds: long for rejections and connections that need reauthorization, short for other results."""
_FROZEN = 60.0
"""Cache time for a frozen connection, which another host may refresh at any time."""
_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownState:
    holds_until: float
    state: TokenState


_Pair = tuple[str, int]


def _pair(connection: Connection) -> _Pair:
    return connection.id, connection.pair_version


def _key(connection: Connection) -> str:
    """Return the cache key of a result: the pair, and the last attempt that may have invalidated its access token."""
    return f"{connection.id} {connection.pair_version} {connection.attempt}"


class AccessTokenCheck:
    """Checks access tokens, and caches the results."""

    def __init__(self, core: Core, *, introspector: Introspector, leases: Leases) -> None:
        self._core = core
        self._introspector = introspector
        self._leases = leases
        self._answers: OrderedDict[str, _KnownState] = OrderedDict()
        self._rejected: OrderedDict[_Pair, None] = OrderedDict()
        self._asking: SingleFlight[None] = SingleFlight("token check", on_end=self._ended)

    def is_in_doubt(self, connection: Connection) -> bool:
        """Return whether the access token may be invalid before it expires."""
        if connection.status is Status.NEEDS_REAUTH or connection.possibly_spent_token is not None:
            return True
        if connection.frozen:
            return True  # another host may have refreshed it
        if _pair(connection) in self._rejected or self._leases.has_ended(connection):
            return True
        if is_impossible(connection, now=self._core.clock.now()):
            return True
        # A refresh that has just begun casts no doubt, unlike one with an unknown outcome, or one that takes long.
        return connection.attempt is not None and (
            connection.failures > 0 or self._leases.age(connection) >= _UNDER_WAY
        )

    def mark_rejected(self, connection: Connection) -> None:
        """Record that AMO has rejected the access token for a backend, which is only a hint."""
        self._rejected[_pair(connection)] = None
        while len(self._rejected) > _REMEMBERED:
            self._rejected.popitem(last=False)

    async def state_of(self, found: OpenConnection, *, in_doubt: bool = False) -> TokenState:
        """Return the state of the access token; `UNKNOWN` if AMO cannot be reached or does not respond.

        `in_doubt` forces a check.
        """
        connection, token = found.connection, found.token
        if token is None:
            return TokenState.REJECTED
        if not in_doubt and not self.is_in_doubt(connection):
            return TokenState.VALID
        key = _key(connection)
        known = self._answers.get(key)
        if known is None or self._is_over(known):
            asking, _ = self._asking.start(key, lambda: self._ask(connection, token.value))
            await wait_at_most(asking, seconds=_WAIT_LIMIT, clock=self._core.clock)
        answer = self._answers.get(key)
        return TokenState.UNKNOWN if answer is None or self._is_over(answer) else answer.state

    def _is_over(self, answer: _KnownState) -> bool:
        return self._core.clock.monotonic() >= answer.holds_until

    def _ended(self, _key: str, asking: asyncio.Task[None]) -> None:
        report_bug("token_check.bug", asking, self._core.observer)

    async def drain(self) -> None:
        """Cancel all checks."""
        for _, asking in self._asking:
            asking.cancel()
        await self._asking.drain()

    async def _ask(self, connection: Connection, access_token: str) -> None:
        try:
            introspection = await self._introspector.introspect_access_token(
                connection, access_token, priority=Priority.TOKEN_CHECK, limit=_WAIT_LIMIT
            )
        except (ShuttingDown, NotYet, HostNotAllowed):
            return
        state = introspection.state
        settled = connection.status is Status.NEEDS_REAUTH and state is not TokenState.UNKNOWN
        holds = _SETTLED if settled or state is TokenState.REJECTED else _FROZEN if connection.frozen else _UNSETTLED
        key = _key(connection)
        self._answers[key] = _KnownState(holds_until=self._core.clock.monotonic() + holds, state=state)
        if state is TokenState.VALID:
            self._rejected.pop(_pair(connection), None)
        self._answers.move_to_end(key)
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
