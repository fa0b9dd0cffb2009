"""Introspection at AMO, which spends nothing: whether AMO accepts a token, and which host its account has."""

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
"""How long after its access token has expired a connection in doubt waits for an introspection response."""


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
        """Introspect a refresh token in doubt; raise if it must not be presented now.

        A rejected token is still presented once, because only the token endpoint's response is final (it is unknown
        whether introspection recognizes spent tokens). Exceptions: a mass failure, and a raw answer that may contain
        the next pair while the access token is valid. A token whose terminal failure was suspended is presented again
        only if AMO accepts it; otherwise the failure is applied.
        """
        pair = self._core.cipher.decrypt_pair(connection)
        if pair is None:
            return  # the attempt records that it cannot be decrypted
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

        AMO may accept spent tokens in introspection. For a token that this service may have spent, a rejected access
        token decides.
        """
        if introspection.state is not TokenState.VALID:
            return False
        if connection.suspended_reason is not Reason.IN_DOUBT or not is_unexpired(pair, now=self._core.clock.now()):
            return True
        return (await self.introspect_access_token(connection, pair.access_token)).state is not TokenState.REJECTED

    async def _put_off(self, connection: Connection, error: AmoCallbackError, *, again: datetime) -> NoReturn:
        """Postpone the refresh and raise `error`; while only probes are allowed, this counts as the probe."""
        self._breaker.mark_probe(connection.id)
        postponed = connection_event(
            "refresh.postponed", connection, fields={"error": error.code, "next_refresh_at": again}
        )
        await self._core.store.postpone(connection, last_error=error.code, next_refresh_at=again, events=[postponed])
        raise error

    async def introspect_refresh_token(
        self, connection: Connection, pair: TokenPair, *, priority: Priority | None = Priority.BACKGROUND
    ) -> IntrospectionResult:
        """Introspect the refresh token; with `priority=None`, the caller has already waited for a slot.

        Raises `HostNotAllowed`, even if only the account's own host is not allowed.
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
        """Introspect the access token; raises `NotYet` without a slot after `limit` seconds, and `HostNotAllowed`."""
        self._hosts.base_url(connection)
        await acquire_slot(self._core, priority, limit=limit)
        self._breaker.address_block.check_introspection()
        return await self._core.amo.introspect_access_token(
            access_token=access_token, domain=connection.domain, account_id=connection.account_id
        )

    async def locate_account(self, connection: Connection, pair: TokenPair) -> IntrospectionResult:
        """Find the account's host by its refresh token, otherwise by an access token that should still be valid.

        A rejected refresh token stays rejected, whichever host the account has. If neither token can be introspected,
        an expired access token counts as rejected.
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
        """Clear recorded refusals if AMO accepts the token; a suspended failure is handled before the refresh."""
        counted = connection.refused_since is not None and connection.suspended_token is None
        if counted and introspection.state is TokenState.VALID:
            await self._forget_answers(connection)

    async def _forget_answers(self, connection: Connection) -> None:
        with suppress(StoreUnavailable):  # the next accepted introspection clears them
            await self._core.store.accept_token(connection)


def _is_long_expired(connection: Connection, now: datetime) -> bool:
    """Return whether the access token expired so long ago that a missing response is no reason to wait."""
    expires = connection.access_expires_at
    return expires is None or now - expires > _SILENCE
