"""The state of all connections together, and of the service, for monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from amo_callback.model import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """Counts of all connections and webhooks, from one read."""

    active: int
    fresh: int
    """Of these, those with a valid access token."""
    needs_reauth: Mapping[Reason, int]
    disconnected: int
    mismatched: int
    """Connections that were granted to another client id."""
    hosts_not_allowed: int
    """Active ones to whose host nothing is sent: it is not on the allow list."""
    expired: int
    """Active ones whose access tokens have expired, though they are not frozen."""
    due: int
    """Refreshes that are due, and not frozen."""
    overdue: int
    """Of these, those that have been due for too long."""
    next_expiry: datetime | None
    """When the first access token ends, or ended, of an active connection that is not frozen."""
    next_deadline: datetime | None
    """When the first refresh token of an active connection ends, after which its user has to connect again.

    Of a connection without a refresh token it is the access token.
    """
    waiting: int
    """Webhooks that are to be delivered."""
    waiting_since: datetime | None
    """When the oldest of these was written."""
    dead_lettered: int
    """Webhooks that were given up, and kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionCounts:
    """Counts of the connections with a refresh token."""

    living: int
    fresh: int
    """Of these, those with a valid access token."""
    died: int
    """Of the others, those that were given up since the time that was asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Successes:
    """What AMO has accepted of all connections: a success is a refresh or a grant."""

    refreshable: int
    """Active connections with a refresh token that are not frozen."""
    latest: datetime | None
    """The latest success of any connection."""
    attempted: int
    """Connections whose refresh was attempted in the last day."""
    succeeded: int
    """Of these, those with a success in the last day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceStatus:
    """The state of the service at this moment, for metrics; no account, domain or free text is in it."""

    checks: Mapping[str, bool]
    """The checks of `/readyz`, by their names."""
    survey: StoreStats | None
    """The last counts of the store; `None` before the first."""
    survey_age: float | None
    """Seconds since then."""
    survey_seconds: float | None
    """How long it took."""
    beat_age: float
    """Seconds since the refresher last came round."""
    in_flight: int
    """Refreshes that are under way in this process."""
    pending_writes: int
    """Pairs that the store does not accept."""
    webhooks_delivered: bool
    """Whether a receiver is configured: without one waiting webhooks mean nothing."""
