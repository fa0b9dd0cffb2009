"""What a refresh without a pair leaves behind: written down, told, and weighed against all the others.

A connection is given up only where AMO says so in its listed words, or no key opens its pair; and where not a whole
fleet would be at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.custody.verdict import is_final, verdict_of
from amo_callback.errors import (
    AmoCallbackError,
    ClientRefused,
    MustMend,
    NeedsReauth,
    StoreUnavailable,
    Superseded,
    UnexplainedRefusal,
    VerdictHeld,
)
from amo_callback.event import Event, Level
from amo_callback.model import Connection, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.custody.breaker import Breaker
    from amo_callback.custody.leases import Leases
    from amo_callback.model import RefreshRules, Verdict
    from amo_callback.ports import Clock, Observer, Store


class Judge:
    """Judge attempts."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        observer: Observer,
        breaker: Breaker,
        leases: Leases,
        rules: RefreshRules,
        random: Callable[[], float],
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._breaker = breaker
        self._leases = leases
        self._rules = rules
        self._random = random
        self._deciding = asyncio.Lock()

    async def judge(self, claimed: Connection, error: AmoCallbackError) -> AmoCallbackError:
        """Write down what an attempt's error means, end its claim, and return what to tell the caller."""
        try:
            async with self._deciding:  # so that a whole fleet's deaths are counted one after the other
                error = await self._weigh(claimed, error)
                verdict = self._verdict(claimed, error)
                judged = await self._store.save_verdict(verdict)
        except StoreUnavailable as failed:
            # The claim stays, with what it was spending: after the lease it counts as doubtful.
            self._tell("refresh.verdict_unsaved", claimed, Level.ERROR, error=error.code, store=failed.what)
            return NeedsReauth(self._verdict(claimed, error).reason) if is_final(error) else error
        if judged is None:
            self._tell("refresh.superseded", claimed, Level.WARNING, error=error.code)
            return Superseded()
        self._leases.left(judged)  # an attempt that stays open: its lease counts from here
        return self._told(claimed, verdict, error)

    def _verdict(self, claimed: Connection, error: AmoCallbackError) -> Verdict:
        return verdict_of(error, claimed=claimed, now=self._clock.now(), rules=self._rules, random=self._random)

    async def _weigh(self, claimed: Connection, error: AmoCallbackError) -> AmoCallbackError:
        """Return the error as it is to be believed."""
        if isinstance(error, ClientRefused):
            self._breaker.refuse(error.hint)
        elif isinstance(error, UnexplainedRefusal) and error.looked_up and claimed.status is Status.ACTIVE:
            await self._breaker.suspect(claimed.id)
        elif is_final(error) and claimed.status is Status.ACTIVE and not await self._breaker.believes():
            return VerdictHeld()
        return error

    def _told(self, claimed: Connection, verdict: Verdict, error: AmoCallbackError) -> AmoCallbackError:
        if is_final(error):
            if claimed.status is not verdict.status:
                self._tell("connection.needs_reauth", claimed, Level.WARNING, reason=verdict.reason, error=error.code)
            return NeedsReauth(verdict.reason)
        self._tell(
            "refresh.failed",
            claimed,
            Level.ERROR if isinstance(error, MustMend) else Level.WARNING,
            failures=claimed.failures + 1,
            next_refresh_at=verdict.next_refresh_at,
            **error.fields,
        )
        return error

    def _tell(self, name: str, connection: Connection, level: Level, **fields: object) -> None:
        fields = {"domain": connection.domain, **fields}
        self._observer(Event(name=name, level=level, connection_id=connection.id, fields=fields))
