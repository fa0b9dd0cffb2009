"""Pure functions for the consequences of a failed refresh, such as the time of the next attempt."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import (
    AccountBlocked,
    AmoCallbackError,
    DecryptionFailed,
    InvalidRefreshToken,
    MassFailureSuspected,
    OperatorError,
    RefreshRefused,
    UnauthorizedWithoutHint,
    UnknownOutcome,
    VendorRateLimited,
)
from amo_callback.model import Connection, Reason, RefreshFailure, RefreshRules, Status
from amo_callback.schedule import retry_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.stats import Successes


RECHECK_EVERY = timedelta(days=1)
"""The interval between introspections while a connection needs reauthorization: AMO may accept its token again."""
_REFUSED_FOR = timedelta(days=1)
_REFUSED_ALONE_FOR = timedelta(days=3)
_REFUSALS = 8


def failure_for(
    error: AmoCallbackError,
    *,
    claimed: Connection,
    now: datetime,
    rules: RefreshRules,
    random: Callable[[], float],
) -> RefreshFailure:
    """Return the failure to record for an attempt that ended with `error`."""
    reason = _reason(error, claimed)
    given_up = claimed.status is Status.NEEDS_REAUTH
    failure = RefreshFailure(
        connection_id=claimed.id,
        attempt=claimed.attempt or "",
        status=Status.ACTIVE if reason is None else Status.NEEDS_REAUTH,
        reason=reason,
        last_error=error.code,
        in_doubt_for=timedelta(seconds=rules.lease) if isinstance(error, UnknownOutcome) else None,
        next_refresh_at=_again(error, claimed, now, rules, random) if reason is None else None,
        needs_reauth_since=None if reason is None else now,
        recheck_at=None if reason is None else now + recheck_delay(reason, rules),
        refused_at=now if isinstance(error, UnauthorizedWithoutHint) and error.accepted is False else None,
        suspended_reason=_suspended(error, claimed),
    )
    return _after_trial(failure, claimed, now) if given_up else failure


def recheck_delay(reason: Reason | None, rules: RefreshRules) -> timedelta:
    """Return the time until the next check of a connection that needs reauthorization.

    The check for a missing key can be frequent, because it sends no request to AMO.
    """
    return timedelta(seconds=rules.retry_cap) if reason is Reason.UNREADABLE else RECHECK_EVERY


def _after_trial(failure: RefreshFailure, claimed: Connection, now: datetime) -> RefreshFailure:
    """Return the failure of a trial (a refresh in `needs_reauth`); the connection still needs reauthorization.

    The reason becomes `in_doubt` if this service may have spent the token. Otherwise, only the reason `refused` is
    replaced, by the reason for a terminal failure. If the reason was not `refused`, the next recheck after a terminal
    failure is scheduled for the refresh token's expiry.
    """
    explained = failure.reason is not None and claimed.reason is Reason.REFUSED
    refused = failure.status is Status.NEEDS_REAUTH and not explained
    in_doubt = failure.in_doubt_for or failure.reason is Reason.IN_DOUBT
    return dataclasses.replace(
        failure,
        status=Status.NEEDS_REAUTH,
        reason=Reason.IN_DOUBT if in_doubt else failure.reason if explained else claimed.reason,
        next_refresh_at=None,
        needs_reauth_since=None,
        recheck_at=claimed.refresh_expires_at if refused else now + RECHECK_EVERY,
    )


def is_refused_long(claimed: Connection, *, now: datetime) -> bool:
    """Return whether AMO has refused the connection for at least a day, and this is at least the eighth refusal."""
    since = claimed.refused_since
    return since is not None and now - since >= _REFUSED_FOR and claimed.refusals + 1 >= _REFUSALS


def is_refused_alone(claimed: Connection, successes: Successes, *, now: datetime, rules: RefreshRules) -> bool:
    """Return whether AMO refuses this connection while it accepts others.

    If there is no other connection to refresh, return whether AMO has refused this connection for three days.
    """
    since, latest = claimed.refused_since or now, successes.latest
    if successes.refreshable <= 1:
        return now - since >= _REFUSED_ALONE_FOR
    if latest is None or latest <= since:
        return False
    return now - latest < timedelta(seconds=rules.retry_cap) or 2 * successes.succeeded >= successes.attempted


def last_error_of(reason: Reason | None) -> str:
    """Return the error code to store when a failure that was suspended with `reason` is applied."""
    return RefreshRefused.code if reason is Reason.REFUSED else InvalidRefreshToken.code


def is_terminal(error: AmoCallbackError) -> bool:
    """Return whether an error is terminal: a documented hint, a refusal for at least a day, or a failed decryption."""
    return isinstance(error, InvalidRefreshToken | RefreshRefused | DecryptionFailed)


def _suspended(error: AmoCallbackError, claimed: Connection) -> Reason | None:
    """Return the reason for a suspended failure; `None` if no failure was suspended, or no token was presented."""
    if not isinstance(error, MassFailureSuspected) or error.answer is None or not claimed.presented_token:
        return None
    return _reason(error.answer, claimed)


def _reason(error: AmoCallbackError, claimed: Connection) -> Reason | None:
    """Return the reason for reauthorization; `None` if the failure may be temporary."""
    if not is_terminal(error):
        return None
    if isinstance(error, RefreshRefused):
        return Reason.REFUSED
    if not isinstance(error, InvalidRefreshToken):
        return Reason.UNREADABLE
    if claimed.possibly_spent_token == claimed.presented_token:
        # An attempt of this service with an unknown outcome may have spent the token.
        return Reason.IN_DOUBT
    return Reason.EXPIRED if error.expired else Reason.REVOKED


def _again(
    error: AmoCallbackError, claimed: Connection, now: datetime, rules: RefreshRules, random: Callable[[], float]
) -> datetime:
    if isinstance(error, VendorRateLimited):
        return now + timedelta(seconds=error.retry_after)
    rejected = isinstance(error, UnauthorizedWithoutHint) and error.accepted is False and claimed.refusals >= _REFUSALS
    if rejected or isinstance(error, AccountBlocked | OperatorError | MassFailureSuspected):
        return now + timedelta(seconds=rules.retry_cap)
    retry = retry_at(
        now,
        failures=claimed.failures + 1,
        expires_at=claimed.access_expires_at,
        base=rules.retry_base,
        cap=rules.retry_cap,
        random=random,
    )
    if isinstance(error, UnknownOutcome):
        # AMO may still be processing the request, so the next attempt waits for the length of a lease.
        return max(retry, now + timedelta(seconds=rules.lease))
    return retry
