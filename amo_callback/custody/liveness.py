"""Whether an access token in doubt still lives: AMO is asked about it, which spends nothing.

Not known of AMO: whether the old access token outlives a refresh. After a refresh without an answer, once a
connection is given up, and while it is frozen (it may be refreshed elsewhere), the token at hand may be dead before
its time. One that AMO refuses is never handed out; one that it knows, or says nothing about, is, until it expires.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import ShuttingDown
from amo_callback.model import Connection, Standing, Status, TokenPair
from amo_callback.ports import Priority
from amo_callback.tasks import done_within

if TYPE_CHECKING:
    from amo_callback.custody.inquiry import Inquiry
    from amo_callback.custody.leases import Leases
    from amo_callback.ports import Clock

_PATIENCE = 3.0
"""Seconds that a caller waits for AMO's word."""
_SETTLED = 600.0
_UNSETTLED = 5.0
"""Seconds for which an answer holds: a refusal or of a connection given up, and of one that may be refreshed yet."""
_FROZEN = 60.0
"""The same, of one that is frozen: elsewhere it may be refreshed at any moment."""
_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    holds_until: float
    dead: bool


_Pair = tuple[str, int]
_Key = tuple[str, int, str | None]


def _pair(connection: Connection) -> _Pair:
    return connection.id, connection.pair_version


def _key(connection: Connection) -> _Key:
    """Name what an answer is about: this pair, and the last attempt that may have ended its access token."""
    return connection.id, connection.pair_version, connection.attempt


class Liveness:
    """Tell the living from the dead."""

    def __init__(self, *, inquiry: Inquiry, leases: Leases, clock: Clock) -> None:
        self._inquiry = inquiry
        self._leases = leases
        self._clock = clock
        self._answers: OrderedDict[_Key, _Answer] = OrderedDict()
        self._rejected: OrderedDict[_Pair, None] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[None]] = {}

    def is_doubtful(self, connection: Connection) -> bool:
        """Tell whether the access token may be dead before its time."""
        if connection.status is Status.NEEDS_REAUTH or connection.doubtful is not None:
            return True
        if connection.frozen:
            return True  # it may live elsewhere, and have been refreshed there
        if _pair(connection) in self._rejected or self._leases.has_ended(connection):
            return True
        # An attempt of which we know that it is under way is no reason for doubt: it is one when it ends badly.
        return connection.attempt is not None and (connection.failures > 0 or not self._leases.runs(connection))

    def reject(self, connection: Connection) -> None:
        """Note that AMO has refused the access token to a backend, which is a hint and no more."""
        self._rejected[_pair(connection)] = None
        while len(self._rejected) > _REMEMBERED:
            self._rejected.popitem(last=False)

    async def lives(self, connection: Connection, pair: TokenPair, *, doubted: bool = False) -> bool:
        """Tell whether the access token may be handed out; whoever asks may have his own doubts."""
        if not doubted and not self.is_doubtful(connection):
            return True
        key = _key(connection)
        known = self._answers.get(key)
        if known is None or self._clock.monotonic() >= known.holds_until:
            asking = self._asking.get(key)
            if asking is None:
                asking = asyncio.create_task(self._ask(key, connection, pair), name=f"alive:{connection.id}")
                self._asking[key] = asking
                asking.add_done_callback(lambda _: self._asking.pop(key, None))
            await done_within(asking, seconds=_PATIENCE, clock=self._clock)
        answer = self._answers.get(key)
        return answer is None or not answer.dead

    async def drain(self) -> None:
        """Ask nothing any more."""
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, key: _Key, connection: Connection, pair: TokenPair) -> None:
        try:
            asked = await self._inquiry.about_access_token(connection, pair, priority=Priority.TOKEN_CHECK)
        except ShuttingDown:
            return
        standing = asked.standing
        settled = connection.status is Status.NEEDS_REAUTH and standing is not Standing.UNKNOWN
        holds = _SETTLED if settled or standing is Standing.REFUSED else _FROZEN if connection.frozen else _UNSETTLED
        answer = _Answer(holds_until=self._clock.monotonic() + holds, dead=standing is Standing.REFUSED)
        self._answers[key] = answer
        if standing is Standing.GOOD:
            self._rejected.pop(_pair(connection), None)
        self._answers.move_to_end(key)
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
