"""The rules for refreshing a connection now: pure functions of its row and `Facts`."""

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
    """The input of a decision, in addition to the connection's row."""

    now: datetime
    is_fresh_enough: bool = False
    """Whether the stored pair is fresh enough for the caller."""
    stopping: bool = False
    """Whether the process is shutting down."""
    has_pending_write: bool = False
    """Whether a pending write prevents refreshing the connection."""
    refusal: NotYet | None = None
    """The error if the circuit breaker or the address block forbids refreshing this connection now."""
    lease_left: float = 0.0
    """Seconds until the connection's attempt may be taken over; 0 without an attempt."""
    host_error: HostNotAllowed | None = None
    """The error if the connection's stored host is not allowed."""
    terminal_suspended: bool = False
    """Whether a mass failure has suspended terminal failures."""
    introspected: bool = False
    """Whether the refresh token has already been introspected because of its current doubt (see `doubt_key`)."""


@dataclass(frozen=True, slots=True)
class Present:
    """The decision to present the refresh token."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Introspect:
    """The decision to introspect the refresh token before it is presented."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Wait:
    """The decision to wait and then read the row again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """The decision to return the stored connection unchanged."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Refuse:
    """The decision to raise an error instead of presenting the refresh token."""

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
        return StoreUnavailable("the connection has a pending write: its latest pair is not stored yet")
    return facts.refusal or _back_off(row, trigger, facts.now)


def _back_off(row: Connection, trigger: RefreshTrigger, now: datetime) -> NotYet | None:
    due = row.next_refresh_at
    if trigger is RefreshTrigger.PROBE or not row.failures or due is None or due <= now:
        return None
    if trigger is RefreshTrigger.FORCED and row.last_error == RequestNotSent.code:
        return None  # the last request did not reach AMO
    if row.last_error == HostNotAllowed.code:
        return None  # nothing was sent, and `decide` checks the stored host again
    return NotYet((due - now).total_seconds(), cause_code=row.last_error)


def doubt_key(row: Connection) -> Hashable:
    """Return a key that identifies the doubt about a refresh token; the token is introspected once per key.

    The key includes `failures`, so that a token is introspected again if its terminal failure is suspended again.
    """
    doubt = row.attempt, row.lease_until, row.possibly_spent_token, row.suspended_token
    return row.pair_version, row.failures, *doubt
