"""The rules that decide whether a connection may be refreshed now, as pure functions of its row and `Facts`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import (
    AmoCallbackError,
    Frozen,
    HostNotAllowed,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    StoreUnavailable,
)
from amo_callback.model import Connection, Reason, RefreshTrigger, Status

if TYPE_CHECKING:
    from collections.abc import Hashable
    from datetime import datetime

_POLL_EVERY = 0.25
"""Seconds between two reads of a connection that another process is refreshing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What this process knows beyond the row."""

    now: datetime
    is_fresh_enough: bool = False
    """Whether the stored pair is fresh enough for the caller."""
    stopping: bool = False
    """Whether the process is shutting down."""
    has_pending_write: bool = False
    """Whether the stored refresh token was spent for a pair that is still being written."""
    refusal: NotYet | None = None
    """The error of the circuit breaker or the address block, if one of them excludes this connection."""
    lease_left: float = 0.0
    """Seconds until an attempt in progress may be taken over."""
    host_error: HostNotAllowed | None = None
    """The error if the stored host is not allowed."""
    terminal_suspended: bool = False
    """Whether terminal failures are suspended because of a mass failure."""
    introspected: bool = False
    """Whether the refresh token was already introspected for its current doubt (`doubt_key`)."""


@dataclass(frozen=True, slots=True)
class Present:
    """Present the refresh token."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Introspect:
    """Introspect the refresh token first."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait and read the row again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Return the stored connection."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Refuse:
    """Raise an error and present nothing."""

    error: AmoCallbackError


Decision = Present | Introspect | Wait | Done | Refuse


def decide(row: Connection | None, trigger: RefreshTrigger, facts: Facts) -> Decision:
    """Return the next step toward refreshing a connection."""
    if row is None or row.status is Status.DISCONNECTED:
        return Refuse(NotFound())
    if row.status is Status.NEEDS_REAUTH and trigger is not RefreshTrigger.TRIAL:
        return Refuse(NeedsReauth(row.reason))
    if not row.has_refresh_token:
        return Refuse(NeedsReauth(Reason.MISSING))
    if facts.is_fresh_enough:
        return Done(row)
    if error := _obstacle(row, trigger, facts):
        return Refuse(error)
    if facts.lease_left:
        return Wait(min(facts.lease_left, _POLL_EVERY))
    if facts.host_error is not None:
        return Refuse(facts.host_error)
    # During a mass failure, any connection's token may have been spent, for example after a backup was restored.
    in_doubt = row.in_doubt or row.suspended_token is not None or facts.terminal_suspended
    return Introspect(row) if in_doubt and not facts.introspected else Present(row)


def _obstacle(row: Connection, trigger: RefreshTrigger, facts: Facts) -> AmoCallbackError | None:
    if facts.stopping:
        return ShuttingDown()
    if row.frozen:
        return Frozen()
    if facts.has_pending_write:
        return StoreUnavailable("a newer pair is a pending write")
    return facts.refusal or _back_off(row, trigger, facts.now)


def _back_off(row: Connection, trigger: RefreshTrigger, now: datetime) -> NotYet | None:
    due = row.next_refresh_at
    if trigger is RefreshTrigger.PROBE or not row.failures or due is None or due <= now:
        return None
    if trigger is RefreshTrigger.FORCED and row.last_error == RequestNotSent.code:
        return None  # the last request did not reach AMO
    if row.last_error == HostNotAllowed.code:
        return None  # nothing was sent, and the stored host is checked next
    return NotYet((due - now).total_seconds(), cause_code=row.last_error)


def doubt_key(row: Connection) -> Hashable:
    """Return a key for the doubt about a refresh token, which is introspected once per key.

    It includes `failures`, so that a token is introspected again if its terminal failure is suspended again.
    """
    doubt = row.attempt, row.lease_until, row.possibly_spent_token, row.suspended_token
    return row.pair_version, row.failures, *doubt
