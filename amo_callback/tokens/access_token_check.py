"""Introspection of access tokens that are in doubt; it spends no token.

It is unknown whether a refresh invalidates the previous access token. A stored access token that has not expired is
in doubt in these cases:

- A refresh has an unknown outcome, takes a long time, or began before this process started.
- The connection needs reauthorization.
- The connection is frozen, because another host may refresh it.
- The stored times of the connection are impossible.
- A backend reports that AMO rejected the token.

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
"""The maximum number of seconds that a caller waits for AMO's response."""
_UNDER_WAY = 5.0
"""Seconds for which a refresh may be in progress before the access token is in doubt."""
_SETTLED = 600.0
_UNSETTLED = 5.0
"""Cache times of check results, in seconds.

`_SETTLED` applies to rejections, and to known results for connections that need reauthorization. `_UNSETTLED` applies
to all other results, except for frozen connections (see `_FROZEN`).
"""
_FROZEN = 60.0
"""The cache time in seconds for a frozen connection, which another host may refresh at any time."""
_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownState:
    asked_at: float
    holds_until: float
    state: TokenState


_Pair = tuple[str, int]


def _pair(connection: Connection) -> _Pair:
    return connection.id, connection.pair_version


def _key(connection: Connection) -> str:
    """Return the cache key of a result: the pair, and the attempt that may have invalidated the access token."""
    return f"{connection.id} {connection.pair_version} {connection.attempt}"


class AccessTokenCheck:
    """A checker of access tokens that caches its results."""

    def __init__(self, core: Core, *, introspector: Introspector, leases: Leases) -> None:
        self._core = core
        self._introspector = introspector
        self._leases = leases
        self._answers: OrderedDict[str, _KnownState] = OrderedDict()
        self._rejected: OrderedDict[_Pair, None] = OrderedDict()
        self._asking: SingleFlight[None] = SingleFlight("token check", on_end=self._ended)

    def is_in_doubt(self, connection: Connection) -> bool:
        """Return whether the access token may be invalid although it has not expired."""
        if connection.status is Status.NEEDS_REAUTH or connection.possibly_spent_token is not None:
            return True
        if connection.frozen:
            return True  # another host may have refreshed the connection
        if _pair(connection) in self._rejected or self._leases.has_ended(connection):
            return True
        if is_impossible(connection, now=self._core.clock.now()):
            return True
        # A refresh that just began does not put the token in doubt. A long refresh, or an unknown outcome, does.
        return connection.attempt is not None and (
            connection.failures > 0 or self._leases.age(connection) >= _UNDER_WAY
        )

    def mark_rejected(self, connection: Connection) -> None:
        """Record a backend's report that AMO rejected the access token; the report is only a hint."""
        self._rejected[_pair(connection)] = None
        while len(self._rejected) > _REMEMBERED:
            self._rejected.popitem(last=False)

    async def state_of(self, found: OpenConnection, *, in_doubt: bool = False, max_age: float = 0.0) -> TokenState:
        """Return the state of the access token; `UNKNOWN` if AMO cannot be reached or does not respond.

        If `in_doubt` is true, the token is checked even if `is_in_doubt` returns false. A result is also used, although
        its cache time has passed, if AMO was asked less than `max_age` seconds ago.
        """
        connection, token = found.connection, found.token
        if token is None:
            return TokenState.REJECTED
        if not in_doubt and not self.is_in_doubt(connection):
            return TokenState.VALID
        key = _key(connection)
        known = self._answers.get(key)
        if known is None or self._is_over(known, max_age):
            asking, _ = self._asking.start(key, lambda: self._ask(connection, token.value))
            await wait_at_most(asking, seconds=_WAIT_LIMIT, clock=self._core.clock)
        answer = self._answers.get(key)
        return TokenState.UNKNOWN if answer is None or self._is_over(answer, max_age) else answer.state

    def _is_over(self, answer: _KnownState, max_age: float) -> bool:
        return self._core.clock.monotonic() >= max(answer.holds_until, answer.asked_at + max_age)

    def _ended(self, _key: str, asking: asyncio.Task[None]) -> None:
        report_bug("token_check.bug", asking, self._core.observer)

    async def drain(self) -> None:
        """Cancel all checks, and wait until they have ended."""
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
        key, now = _key(connection), self._core.clock.monotonic()
        self._answers[key] = _KnownState(asked_at=now, holds_until=now + holds, state=state)
        if state is TokenState.VALID:
            self._rejected.pop(_pair(connection), None)
        self._answers.move_to_end(key)
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
