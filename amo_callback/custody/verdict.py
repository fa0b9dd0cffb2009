"""What a refresh without a pair means for its connection: whose fault it is, and when to try again. Pure."""

from __future__ import annotations

import dataclasses
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
    VerdictHeld,
)
from amo_callback.model import Connection, Reason, RefreshRules, Status, Verdict
from amo_callback.schedule import retry_at

if TYPE_CHECKING:
    from collections.abc import Callable


LOOK_UP_EVERY = timedelta(days=1)
"""How often the tokens of a connection that was given up are looked up: it may heal."""


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
    given_up = claimed.status is Status.NEEDS_REAUTH
    verdict = Verdict(
        connection_id=claimed.id,
        attempt=claimed.attempt or "",
        status=Status.ACTIVE if reason is None else Status.NEEDS_REAUTH,
        reason=reason,
        last_error=error.code,
        open_for=timedelta(seconds=rules.lease) if isinstance(error, OutcomeOpen) else None,
        next_refresh_at=_again(error, claimed, now, rules, random) if reason is None else None,
        died_at=None if reason is None else now,
        look_up_at=None if reason is None else now + look_again_in(reason, rules),
    )
    return _of_a_trial(verdict, claimed, now) if given_up else verdict


def look_again_in(reason: Reason | None, rules: RefreshRules) -> timedelta:
    """Return when a connection that was given up is looked at again: whether its key is back costs AMO nothing."""
    return timedelta(seconds=rules.retry_cap) if reason is Reason.UNREADABLE else LOOK_UP_EVERY


def _of_a_trial(verdict: Verdict, claimed: Connection, now: datetime) -> Verdict:
    """Leave a connection given up as it was; one that AMO has refused again is not tried a third time."""
    refused = verdict.status is Status.NEEDS_REAUTH
    return dataclasses.replace(
        verdict,
        status=Status.NEEDS_REAUTH,
        reason=Reason.IN_DOUBT if verdict.open_for or verdict.reason is Reason.IN_DOUBT else claimed.reason,
        next_refresh_at=None,
        died_at=None,
        look_up_at=claimed.refresh_expires_at if refused else now + LOOK_UP_EVERY,
    )


def is_final(error: AmoCallbackError) -> bool:
    """Tell whether only the person can mend it: AMO's listed refusals, and a pair that no key opens."""
    return isinstance(error, RefreshTokenDead | Unreadable)


def _reason(error: AmoCallbackError, claimed: Connection) -> Reason | None:
    """Tell why the person is needed, or `None` where it may pass."""
    if not is_final(error):
        return None
    if not isinstance(error, RefreshTokenDead):
        return Reason.UNREADABLE
    if claimed.doubtful == claimed.spending:
        # An attempt of ours ended without an answer: it may be what spent the token.
        return Reason.IN_DOUBT
    return Reason.EXPIRED if error.expired else Reason.REVOKED


def _again(
    error: AmoCallbackError, claimed: Connection, now: datetime, rules: RefreshRules, random: Callable[[], float]
) -> datetime:
    if isinstance(error, RateLimited):
        return now + timedelta(seconds=error.retry_after)
    if isinstance(error, AccountRefused | MustMend | VerdictHeld):
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
