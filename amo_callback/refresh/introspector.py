"""Introspection, which returns a token's validity and its account's host without spending the token."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from amo_callback.errors import (
    AmoCallbackError,
    HostNotAllowed,
    IntrospectionUnavailable,
    MassFailureSuspected,
    StoreUnavailable,
    UnknownOutcome,
)
from amo_callback.events import connection_event
from amo_callback.model import Connection, IntrospectionResult, Reason, TokenPair, TokenState, fingerprint
from amo_callback.rate_limit import Priority
from amo_callback.refresh.slots import acquire_slot
from amo_callback.schedule import is_unexpired, retry_at

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.core import Core
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.failure_recorder import FailureRecorder
    from amo_callback.refresh.raw_answers import RawAnswers
    from amo_callback.refresh.stored_hosts import StoredHosts


_SILENCE = timedelta(days=1)
"""The time after access-token expiry for which a missing introspection response delays a refresh."""


class Introspector:
    """Introspects tokens; each request uses its own rate-limit slot."""

    def __init__(
        self,
        core: Core,
        *,
        breaker: Breaker,
        failures: FailureRecorder,
        hosts: StoredHosts,
        raw_answers: RawAnswers,
    ) -> None:
        self._core = core
        self._breaker = breaker
        self._failures = failures
        self._hosts = hosts
        self._raw_answers = raw_answers

    async def before_refresh(self, connection: Connection) -> None:
        """Introspect a refresh token in doubt; raise an error if it must not be presented now.

        Only the token endpoint's response is final, because it is unknown whether introspection recognizes spent
        tokens. A token that introspection rejects is therefore still presented once, but not during a mass failure, and
        not while the access token is valid and a raw answer may contain the next pair. A token whose terminal failure
        was suspended is presented again only if introspection accepts it; otherwise the failure is applied once the
        mass failure has ended.
        """
        pair = self._core.cipher.decrypt_pair(connection)
        if pair is None:
            return  # the attempt records that the pair cannot be decrypted
        try:
            introspection = await self.introspect_refresh_token(connection, pair)
        except HostNotAllowed as error:
            await self._hosts.put_off(connection, error)
            raise
        now = self._core.clock.now()
        later = now + timedelta(seconds=self._core.rules.retry_cap)
        if introspection.state is TokenState.UNKNOWN and (
            self._breaker.terminal_suspended or not _is_long_expired(connection, now)
        ):
            again = retry_at(
                now,
                failures=connection.failures + 1,
                expires_at=connection.access_expires_at,
                base=self._core.rules.retry_base,
                cap=self._core.rules.retry_cap,
                random=self._core.random,
            )
            await self._put_off(connection, IntrospectionUnavailable(), again=again)
        refused = introspection.state is not TokenState.VALID
        if refused and is_unexpired(pair, now=now) and await self._raw_answers.has(connection):
            await self._put_off(connection, UnknownOutcome("raw_answer"), again=min(later, pair.expires_at))
        suspended = connection.suspended_token == fingerprint(pair.refresh_token)
        if suspended and await self._is_accepted(connection, pair, introspection):
            await self._forget_answers(connection)
            return
        if suspended:
            applied = None if self._breaker.terminal_suspended else await self._failures.apply_suspended(connection)
            if applied is not None:
                raise applied
        elif introspection.state is not TokenState.REJECTED or not self._breaker.terminal_suspended:
            return
        await self._put_off(connection, MassFailureSuspected(), again=later)

    async def _is_accepted(self, connection: Connection, pair: TokenPair, introspection: IntrospectionResult) -> bool:
        """Return whether a token whose terminal failure was suspended may be presented again.

        Introspection may accept a spent refresh token. If this service may have spent the token, an unexpired access
        token is therefore introspected, too, and must not be rejected.
        """
        if introspection.state is not TokenState.VALID:
            return False
        if connection.suspended_reason is not Reason.IN_DOUBT or not is_unexpired(pair, now=self._core.clock.now()):
            return True
        return (await self.introspect_access_token(connection, pair.access_token)).state is not TokenState.REJECTED

    async def _put_off(self, connection: Connection, error: AmoCallbackError, *, again: datetime) -> NoReturn:
        """Postpone the refresh and raise `error`; while the breaker is open, the connection counts as the probe."""
        self._breaker.mark_probe(connection.id)
        postponed = connection_event(
            "refresh.postponed", connection, fields={"error": error.code, "next_refresh_at": again}
        )
        await self._core.store.postpone(connection, last_error=error.code, next_refresh_at=again, events=[postponed])
        raise error

    async def introspect_refresh_token(
        self, connection: Connection, pair: TokenPair, *, priority: Priority | None = Priority.BACKGROUND
    ) -> IntrospectionResult:
        """Introspect the refresh token; with `priority=None`, the caller must already have acquired a slot.

        Raises `HostNotAllowed` if the account's host or the API host is not allowed, although only the API host is
        contacted.
        """
        for host in filter(None, (connection.domain, connection.api_domain)):
            self._core.amo.base_url(host)
        if priority is not None:
            await acquire_slot(self._core, priority)
        self._breaker.address_block.check_introspection(connection.id)
        introspection = await self._core.amo.introspect_refresh_token(
            refresh_token=pair.refresh_token, api_domain=connection.api_domain, account_id=connection.account_id
        )
        await self._note(connection, introspection)
        return introspection

    async def introspect_access_token(
        self,
        connection: Connection,
        access_token: str,
        *,
        priority: Priority = Priority.BACKGROUND,
        limit: float | None = None,
    ) -> IntrospectionResult:
        """Introspect the access token.

        Raises `NotYet` if no slot is granted within `limit` seconds, and `HostNotAllowed` if the account's host is not
        allowed.
        """
        self._hosts.base_url(connection)
        await acquire_slot(self._core, priority, limit=limit)
        self._breaker.address_block.check_introspection()
        return await self._core.amo.introspect_access_token(
            access_token=access_token, domain=connection.domain, account_id=connection.account_id
        )

    async def locate_account(self, connection: Connection, pair: TokenPair) -> IntrospectionResult:
        """Find the account's host by introspecting the refresh token, and if necessary an unexpired access token.

        If AMO rejects the refresh token, the result is `REJECTED`, even if the access token yields the host. The result
        is also `REJECTED` if the refresh token cannot be introspected and the access token has expired.
        """
        first = await self.introspect_refresh_token(connection, pair)
        if first.state is TokenState.VALID:
            return first
        if not is_unexpired(pair, now=self._core.clock.now()):
            return IntrospectionResult(state=TokenState.REJECTED) if first.state is TokenState.NOT_CHECKED else first
        second = await self.introspect_access_token(connection, pair.access_token)
        if first.state is TokenState.REJECTED:
            return dataclasses.replace(first, domain=second.domain)
        if second.state is not TokenState.VALID and first.state is not TokenState.NOT_CHECKED:
            return first
        await self._note(connection, second)
        return second

    async def _note(self, connection: Connection, introspection: IntrospectionResult) -> None:
        """Clear recorded refusals if introspection accepts the token and no terminal failure is suspended."""
        counted = connection.refused_since is not None and connection.suspended_token is None
        if counted and introspection.state is TokenState.VALID:
            await self._forget_answers(connection)

    async def _forget_answers(self, connection: Connection) -> None:
        with suppress(StoreUnavailable):  # retried at the next introspection that accepts the token
            await self._core.store.accept_token(connection)


def _is_long_expired(connection: Connection, now: datetime) -> bool:
    """Return whether a missing introspection response no longer delays the refresh."""
    expires = connection.access_expires_at
    return expires is None or now - expires > _SILENCE
