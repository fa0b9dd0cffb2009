"""What a refresh without a pair means for its connection: whose fault it is, and when to try again. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import (
    AccountRefused,
    AmoCallbackError,
    MustMend,
    OutcomeOpen,
    RateLimited,
    RefreshTokenDead,
    Unreadable,
)
from amo_callback.model import Connection, Reason, RefreshRules, Status, Verdict
from amo_callback.schedule import retry_at

if TYPE_CHECKING:
    from collections.abc import Callable


def verdict_of(
    error: AmoCallbackError,
    *,
    claimed: Connection,
    now: datetime,
    rules: RefreshRules,
    random: Callable[[], float],
) -> Verdict:
    """Return what to write down about an attempt that ended with `error`."""
    reason = _reason(error, claimed)
    return Verdict(
        connection_id=claimed.id,
        attempt=claimed.attempt or "",
        status=Status.ACTIVE if reason is None else Status.NEEDS_REAUTH,
        reason=reason,
        last_error=error.code,
        doubtful=isinstance(error, OutcomeOpen),
        next_refresh_at=_again(error, claimed, now, rules, random) if reason is None else None,
    )


def _reason(error: AmoCallbackError, claimed: Connection) -> Reason | None:
    """Tell why the person is needed, or `None` where it may pass: only AMO's listed refusals are final."""
    if isinstance(error, Unreadable):
        return Reason.UNREADABLE
    if not isinstance(error, RefreshTokenDead):
        return None
    if claimed.doubtful == claimed.spending:
        # An attempt of ours ended without an answer: it may be what spent the token.
        return Reason.IN_DOUBT
    return Reason.EXPIRED if error.expired else Reason.REVOKED


def _again(
    error: AmoCallbackError, claimed: Connection, now: datetime, rules: RefreshRules, random: Callable[[], float]
) -> datetime:
    if isinstance(error, RateLimited):
        return now + timedelta(seconds=error.retry_after)
    if isinstance(error, AccountRefused | MustMend):
        return now + timedelta(seconds=rules.retry_cap)
    retry = retry_at(
        now,
        failures=claimed.failures + 1,
        expires_at=claimed.access_expires_at,
        base=rules.retry_base,
        cap=rules.retry_cap,
        random=random,
    )
    if isinstance(error, OutcomeOpen):
        # AMO may be at work on it still: not before a lease's length has passed.
        return max(retry, now + timedelta(seconds=rules.lease))
    return retry
