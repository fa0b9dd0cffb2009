"""Whether a connection may be refreshed now, decided from its row and from what this process knows. Pure."""

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

_LOOK_AGAIN = 0.25
"""Seconds between two reads of a connection that another process refreshes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What this process knows beside the row."""

    now: datetime
    satisfied: bool = False
    """Whether the stored pair is what the caller wants."""
    stopping: bool = False
    unsaved: bool = False
    """Whether the stored pair was spent for one that is still a pending write."""
    closed: NotYet | None = None
    """Why neither the circuit breaker nor the block of our address lets this connection through."""
    lease_left: float = 0.0
    """Seconds for which an open attempt is left alone."""
    host_error: HostNotAllowed | None = None
    terminal_suspended: bool = False
    introspected: bool = False
    """Whether the refresh token was introspected for this very doubt."""


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
    """Read the row again after some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Return the connection as it is stored."""

    row: Connection


@dataclass(frozen=True, slots=True)
class Refuse:
    """Raise an error: nothing is presented."""

    error: AmoCallbackError


Decision = Present | Introspect | Wait | Done | Refuse


def decide(row: Connection | None, demand: RefreshTrigger, facts: Facts) -> Decision:
    """Return what to do next for a connection that is to be refreshed."""
    if row is None or row.status is Status.DISCONNECTED:
        return Refuse(NotFound())
    if row.status is Status.NEEDS_REAUTH and demand is not RefreshTrigger.TRIAL:
        return Refuse(NeedsReauth(row.reason))
    if not row.has_refresh_token:
        return Refuse(NeedsReauth(Reason.MISSING))
    if facts.satisfied:
        return Done(row)
    if error := _obstacle(row, demand, facts):
        return Refuse(error)
    if facts.lease_left:
        return Wait(min(facts.lease_left, _LOOK_AGAIN))
    if facts.host_error is not None:
        return Refuse(facts.host_error)
    # The token, or those of all connections, may be spent: AMO is asked before it is presented.
    in_doubt = row.in_doubt or row.suspended_token is not None or facts.terminal_suspended
    return Introspect(row) if in_doubt and not facts.introspected else Present(row)


def _obstacle(row: Connection, demand: RefreshTrigger, facts: Facts) -> AmoCallbackError | None:
    if facts.stopping:
        return ShuttingDown()
    if row.frozen:
        return Frozen()
    if facts.unsaved:
        return StoreUnavailable("the pair before this one is unsaved")
    return facts.closed or _back_off(row, demand, facts.now)


def _back_off(row: Connection, demand: RefreshTrigger, now: datetime) -> NotYet | None:
    due = row.next_refresh_at
    if demand is RefreshTrigger.PROBE or not row.failures or due is None or due <= now:
        return None
    if demand is RefreshTrigger.FORCED and row.last_error == RequestNotSent.code:
        return None  # the last request never reached AMO
    if row.last_error == HostNotAllowed.code:
        return None  # nothing was sent, and the host is checked next
    return NotYet((due - now).total_seconds(), cause_code=row.last_error)


def doubt_of(row: Connection) -> Hashable:
    """Identify the doubt about a refresh token, so that another doubt is introspected again.

    The same answer may be suspended twice for one token: each is one failure more.
    """
    doubt = row.attempt, row.lease_until, row.doubtful, row.suspended_token
    return row.pair_version, row.failures, *doubt
