"""Questions to AMO that spend nothing: whether it knows a token, and where its account lives now."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from amo_callback.concurrency import done_unless
from amo_callback.errors import (
    AmoCallbackError,
    HostNotAllowed,
    IntrospectionUnavailable,
    MassFailureSuspected,
    NotYet,
    ShuttingDown,
    StoreUnavailable,
    UnknownOutcome,
)
from amo_callback.events import connection_event
from amo_callback.model import Connection, IntrospectionResult, Reason, TokenPair, TokenState, fingerprint
from amo_callback.rate_limit import GOOD_FOR, Priority
from amo_callback.schedule import lives, retry_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from amo_callback.amo.client import AmoClient
    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.model import RefreshRules
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.failure_recorder import FailureRecorder
    from amo_callback.refresh.raw_answers import RawAnswers
    from amo_callback.refresh.stored_hosts import StoredHosts
    from amo_callback.store import Store


_SILENCE = timedelta(days=1)
"""How long after its access token has expired a connection in doubt still waits for AMO to answer a look-up."""


class Introspector:
    """Ask AMO, each question in a slot of its own."""

    def __init__(
        self,
        *,
        store: Store,
        amo: AmoClient,
        cipher: Cipher,
        clock: Clock,
        breaker: Breaker,
        failure_recorder: FailureRecorder,
        hosts: StoredHosts,
        raw_answers: RawAnswers,
        rules: RefreshRules,
        random: Callable[[], float],
    ) -> None:
        self._store = store
        self._amo = amo
        self._cipher = cipher
        self._clock = clock
        self._breaker = breaker
        self._failure_recorder = failure_recorder
        self._hosts = hosts
        self._raw_answers = raw_answers
        self._rules = rules
        self._random = random
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask nothing from now on."""
        self._stopping.set()

    async def slot(self, priority: Priority = Priority.BACKGROUND, *, limit: float | None = None) -> float:
        """Wait for a slot at the rate limit, and return the monotonic time at which it was granted.

        Raises `ShuttingDown` when the process ends, and `NotYet` after `limit` seconds.
        """
        slot = self._amo.slot(priority)
        had = await done_unless(slot, stop=self._stopping, grace=0, clock=self._clock, limit=limit)
        if self._stopping.is_set():
            raise ShuttingDown
        if not had:
            raise NotYet(1.0)
        return self._clock.monotonic()

    async def ensure_slot(self, *, granted_at: float, not_after: float) -> bool:
        """Take another slot where the one that was granted then is too old; tell whether to send the request.

        It is not sent after `not_after`, nor once the process ends. Both are monotonic times.
        """
        now = self._clock.monotonic()
        if now - granted_at > GOOD_FOR and now <= not_after:
            slot = self._amo.slot(Priority.BACKGROUND)
            if not await done_unless(slot, stop=self._stopping, grace=0, clock=self._clock, limit=not_after - now):
                return False
        return self._clock.monotonic() <= not_after and not self._stopping.is_set()

    def is_needed(self, connection: Connection) -> bool:
        """Tell whether the refresh token must not be presented unasked: it, or the whole fleet's, may be spent."""
        return connection.in_doubt or connection.suspended_token is not None or self._breaker.held

    async def before_refresh(self, connection: Connection) -> None:
        """Ask about a refresh token in doubt; raises where it is not to be presented now.

        One that AMO refuses is presented all the same, once: whether the look-up knows spent tokens is not
        known, and only the token endpoint's words are final. While verdicts are held it is not, nor while its access
        token lives and an answer is kept that may hold the next pair. One whose terminal answer was suspended is not
        presented again unless AMO accepts it: that answer is applied.
        """
        pair = self._cipher.pair_of(connection)
        if pair is None:
            return  # the attempt will tell
        try:
            sighting = await self.about_refresh_token(connection, pair)
        except HostNotAllowed as error:
            await self._hosts.put_off(connection, error)
            raise
        now = self._clock.now()
        later = now + timedelta(seconds=self._rules.retry_cap)
        if sighting.standing is TokenState.UNKNOWN and (self._breaker.held or not _is_long_dead(connection, now)):
            again = retry_at(
                now,
                failures=connection.failures + 1,
                expires_at=connection.access_expires_at,
                base=self._rules.retry_base,
                cap=self._rules.retry_cap,
                random=self._random,
            )
            await self._put_off(connection, IntrospectionUnavailable(), again=again)
        refused = sighting.standing is not TokenState.GOOD
        if refused and lives(pair, now=now) and await self._raw_answers.has(connection):
            await self._put_off(connection, UnknownOutcome("raw_answer"), again=min(later, pair.expires_at))
        suspended = connection.suspended_token == fingerprint(pair.refresh_token)
        if suspended and await self._is_accepted(connection, pair, sighting):
            await self._forget_answers(connection)
            return
        if suspended:
            applied = None if self._breaker.held else await self._failure_recorder.apply_suspended(connection)
            if applied is not None:
                raise applied
        elif sighting.standing is not TokenState.REFUSED or not self._breaker.held:
            return
        await self._put_off(connection, MassFailureSuspected(), again=later)

    async def _is_accepted(self, connection: Connection, pair: TokenPair, sighting: IntrospectionResult) -> bool:
        """Tell whether a token whose terminal answer was suspended may be presented again.

        AMO may accept spent tokens in introspection: of one that we may have spent, a rejected access token decides.
        """
        if sighting.standing is not TokenState.GOOD:
            return False
        if connection.suspended_reason is not Reason.IN_DOUBT or not lives(pair, now=self._clock.now()):
            return True
        return (await self.about_access_token(connection, pair)).standing is not TokenState.REFUSED

    async def _put_off(self, connection: Connection, error: AmoCallbackError, *, again: datetime) -> NoReturn:
        """Put a refresh off, and raise why; where only probes may go, this was one."""
        self._breaker.enter(connection.id)
        postponed = connection_event(
            "refresh.postponed", connection, told={"error": error.code, "next_refresh_at": again}
        )
        await self._store.postpone(connection, last_error=error.code, next_refresh_at=again, events=[postponed])
        raise error

    async def about_refresh_token(
        self, connection: Connection, pair: TokenPair, *, priority: Priority | None = Priority.BACKGROUND
    ) -> IntrospectionResult:
        """Ask whether AMO knows the refresh token; without a `priority` the caller has waited for the slot.

        Raises `HostNotAllowed`, also where that is the account's own host and not the one that is asked.
        """
        for host in filter(None, (connection.domain, connection.api_domain)):
            self._amo.base_url(host)
        if priority is not None:
            await self.slot(priority)
        self._breaker.address_block.check_question(connection.id)
        sighting = await self._amo.look_up(
            refresh_token=pair.refresh_token, api_domain=connection.api_domain, account_id=connection.account_id
        )
        await self._note(connection, sighting)
        return sighting

    async def about_access_token(
        self,
        connection: Connection,
        pair: TokenPair,
        *,
        priority: Priority = Priority.BACKGROUND,
        limit: float | None = None,
    ) -> IntrospectionResult:
        """Ask whether the access token is valid; raises `NotYet` where there was no slot for `limit` seconds.

        Raises `HostNotAllowed`.
        """
        self._hosts.base_url(connection)
        await self.slot(priority, limit=limit)
        self._breaker.address_block.check_question()
        return await self._amo.ask_about(
            access_token=pair.access_token, domain=connection.domain, account_id=connection.account_id
        )

    async def whereabouts(self, connection: Connection, pair: TokenPair) -> IntrospectionResult:
        """Ask where the account lives: by its refresh token, else by an access token that should still live.

        A rejected refresh token stays rejected, wherever the account lives. Where nobody can be asked about it, an
        expired access token counts as rejected.
        """
        first = await self.about_refresh_token(connection, pair)
        if first.standing is TokenState.GOOD:
            return first
        if not lives(pair, now=self._clock.now()):
            return IntrospectionResult(standing=TokenState.REFUSED) if first.standing is TokenState.UNASKED else first
        second = await self.about_access_token(connection, pair)
        if first.standing is TokenState.REFUSED:
            return dataclasses.replace(first, domain=second.domain)
        if second.standing is not TokenState.GOOD and first.standing is not TokenState.UNASKED:
            return first
        await self._note(connection, second)
        return second

    async def _note(self, connection: Connection, sighting: IntrospectionResult) -> None:
        """Forget refusals where AMO accepts the token after all; a suspended answer is judged before the refresh."""
        counted = connection.refused_since is not None and connection.suspended_token is None
        if counted and sighting.standing is TokenState.GOOD:
            await self._forget_answers(connection)

    async def _forget_answers(self, connection: Connection) -> None:
        with suppress(StoreUnavailable):  # the next accepted introspection does it
            await self._store.accept_token(connection)


def _is_long_dead(connection: Connection, now: datetime) -> bool:
    """Tell whether nobody has been served for so long that a silent look-up is no reason to wait any more."""
    expires = connection.access_expires_at
    return expires is None or now - expires > _SILENCE
