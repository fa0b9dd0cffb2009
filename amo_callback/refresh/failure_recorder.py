"""Recording of refresh attempts that yield no pair, and of their consequences for the connection.

A failed attempt is terminal, and the connection then needs reauthorization, in three cases: AMO rejects the refresh
token with a documented hint; AMO refuses the connection for a day while it accepts others (for three days, if there is
no other connection); no key decrypts the pair. During a mass failure, terminal failures are suspended: they are
recorded, but not applied until the mass failure ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.core import record_event
from amo_callback.errors import (
    AmoCallbackError,
    InvalidClient,
    MassFailureSuspected,
    NeedsReauth,
    NotYet,
    OperatorError,
    RefreshRefused,
    StoreUnavailable,
    Superseded,
    UnauthorizedWithoutHint,
)
from amo_callback.events import Event, Level, connection_event
from amo_callback.model import Connection, Reason, Status, abbreviated
from amo_callback.refresh.failure_policy import (
    RECHECK_EVERY,
    failure_for,
    is_refused_alone,
    is_refused_long,
    is_terminal,
    last_error_of,
)
from amo_callback.refresh.raw_answers import file_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.core import Core
    from amo_callback.model import RefreshFailure, RefreshTrigger
    from amo_callback.refresh.breaker import Breaker
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.raw_answers import RawAnswers


class FailureRecorder:
    def __init__(self, core: Core, *, breaker: Breaker, leases: Leases, raw_answers: RawAnswers) -> None:
        self._core = core
        self._breaker = breaker
        self._leases = leases
        self._raw_answers = raw_answers
        self._lock = asyncio.Lock()

    async def record(
        self, claimed: Connection, error: AmoCallbackError, *, trigger: RefreshTrigger, seconds: float | None = None
    ) -> AmoCallbackError:
        """Record a failed attempt, and return the error for the caller.

        The claim ends, unless the outcome is unknown or the store cannot be written. `trigger` and `seconds` are the
        trigger and duration of the attempt.
        """
        await self._raw_answers.keep(
            file_name(claimed), error, domain=claimed.domain, presented=claimed.presented_token or ""
        )
        made = {
            "trigger": trigger,
            "seconds": seconds,
            "token": abbreviated(claimed.presented_token) if claimed.presented_token else None,
            **error.fields,
        }
        try:
            async with self._lock:  # one failure at a time, so that a mass failure is counted correctly
                error = await self._classify(claimed, error)
                failure = self._failure(claimed, error)
                event = _event(claimed, failure, error, made)
                stored = await self._save(failure, claimed, event)
        except StoreUnavailable as failed:
            # The claim stays in the store. This process treats the token as in doubt immediately, other processes after
            # the lease has expired.
            self._leases.mark_ended(claimed)
            fields = {"error": error.code, "store": failed.detail}
            self._core.observer(connection_event("refresh.result_not_stored", claimed, Level.ERROR, fields=fields))
            return NeedsReauth(self._failure(claimed, error).reason) if is_terminal(error) else error
        if stored is None:
            superseded = connection_event("refresh.superseded", claimed, Level.WARNING, fields=made)
            await record_event(superseded, self._core)
            return Superseded()
        self._leases.remaining(stored)  # if the outcome is unknown, this starts timing the renewed lease
        return NeedsReauth(failure.reason) if is_terminal(error) else error

    async def _save(self, failure: RefreshFailure, claimed: Connection, event: Event) -> Connection | None:
        """Store a failure and return the row; `None` if another attempt has replaced this one.

        If the COMMIT response was lost, read the row to find out whether the failure was stored.
        """
        try:
            return await self._core.store.save_failure(failure, events=[event])
        except StoreUnavailable:
            stored = await self._core.store.connection(claimed.id)
            if stored is None or (stored.attempt, stored.failures) == (claimed.attempt, claimed.failures):
                raise
            if stored.pair_version != claimed.pair_version:
                return None
            self._core.observer(event)  # the failure was committed
            return stored

    def _failure(self, claimed: Connection, error: AmoCallbackError) -> RefreshFailure:
        return failure_for(
            error, claimed=claimed, now=self._core.clock.now(), rules=self._core.rules, random=self._core.random
        )

    async def _classify(self, claimed: Connection, error: AmoCallbackError) -> AmoCallbackError:
        """Return the error to record: `MassFailureSuspected` for a terminal error during a mass failure."""
        await self._breaker.address_block.failed(claimed, error)
        if claimed.status is not Status.ACTIVE:
            return error
        if isinstance(error, InvalidClient):
            await self._breaker.suspect(claimed.id, error.hint)
        elif isinstance(error, UnauthorizedWithoutHint):
            error = await self._classify_unauthorized(claimed, error)
        if is_terminal(error) and not await self._breaker.allows_terminal_failure():
            return MassFailureSuspected(error)
        return error

    async def _classify_unauthorized(self, claimed: Connection, error: UnauthorizedWithoutHint) -> AmoCallbackError:
        """Return the error to record for a refusal without a hint.

        If introspection accepts the token and returns the same host, the circuit breaker counts the refusal. If
        introspection rejects the token, and the connection has been refused for so long that the failure is terminal
        (see `is_refused_long` and `is_refused_alone`), the result is `RefreshRefused`.
        """
        if error.accepted and error.same_host:
            title = error.title or 'and no "hint"'
            words = f"AMO answers a refresh with {error.status} {title}, although introspection accepts the token"
            await self._breaker.suspect(claimed.id, words)
        now = self._core.clock.now()
        if error.accepted is not False or not is_refused_long(claimed, now=now):
            return error
        if not is_refused_alone(claimed, await self._core.store.successes(now=now), now=now, rules=self._core.rules):
            return error
        refused = RefreshRefused()
        refused.status, refused.request_id = error.status, error.request_id
        return refused

    async def apply_suspended(self, connection: Connection) -> AmoCallbackError | None:
        """Apply a suspended failure and return the error for the caller; `None` if it stays suspended."""
        reason = connection.suspended_reason
        async with self._lock:
            if reason is None or not await self._breaker.allows_terminal_failure():
                return None
            now, error = self._core.clock.now(), last_error_of(reason)
            fields = {"token": abbreviated(connection.suspended_token or ""), "reason": reason, "error": error}
            fields["spent_by"] = _SPENT_BY[reason]
            event = connection_event("connection.needs_reauth", connection, Level.WARNING, fields=fields)
            applied = await self._core.store.give_up(
                connection, last_error=error, now=now, recheck_at=now + RECHECK_EVERY, events=[event]
            )
        if not applied:
            return NotYet(1.0)  # the row has changed: the caller has to retry
        return NeedsReauth(reason)


_SPENT_BY = {
    Reason.REVOKED: "no earlier use of the token is recorded in this database; possible causes of the rejection: "
    "another system used the token, an older backup was restored, or access was revoked",
    Reason.EXPIRED: "not spent: the token expired after three months without use",
    Reason.IN_DOUBT: "possibly a refresh attempt of this service with an unknown outcome: see the earlier events",
    Reason.REFUSED: "unknown: for at least a day, AMO refused refreshes and gave no reason, and introspection rejected "
    "the token",
    Reason.UNREADABLE: "not spent: no encryption key decrypts the pair, or the account or user in the row does not "
    "match the connection's id",
}
"""For each reason for a terminal failure, the possible causes of a spent token, as shown to the operator."""


def _event(claimed: Connection, failure: RefreshFailure, error: AmoCallbackError, made: Mapping[str, object]) -> Event:
    """Return the event for a failed attempt."""
    if is_terminal(error) and claimed.status is not failure.status and failure.reason is not None:
        fields = {**made, "reason": failure.reason, "error": error.code, "spent_by": _SPENT_BY[failure.reason]}
        name, level = "connection.needs_reauth", Level.WARNING
    else:
        again = {"failures": claimed.failures + 1, "next_refresh_at": failure.next_refresh_at}
        fields = {**made, **again, **error.fields}
        name, level = "refresh.failed", Level.ERROR if isinstance(error, OperatorError) else Level.WARNING
    return connection_event(name, claimed, level, fields=fields)
