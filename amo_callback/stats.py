"""Statistics about all connections and the service, for monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from amo_callback.model import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """Counts of all connections and webhooks, from one query."""

    active: int
    """The number of active connections."""
    fresh: int
    """Active connections with a valid access token."""
    needs_reauth: Mapping[Reason, int]
    disconnected: int
    mismatched: int
    """Connections that were granted to another client id."""
    hosts_not_allowed: int
    """Active connections whose host is not on the allow list."""
    expired: int
    """Active connections that are not frozen and have an expired access token."""
    due: int
    """Due refreshes of connections that are not frozen."""
    overdue: int
    """Refreshes that have been due for too long."""
    next_expiry: datetime | None
    """The earliest expiry of an access token among active connections that are not frozen; may be in the past."""
    next_deadline: datetime | None
    """The earliest expiry of a refresh token among active connections, after which its user has to connect again.

    A connection without a refresh token counts with its access token.
    """
    waiting: int
    """Webhooks to be delivered."""
    waiting_since: datetime | None
    """When the oldest of them was stored."""
    dead_lettered: int
    """Webhooks whose delivery was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionCounts:
    """Counts of the connections with a refresh token."""

    active: int
    fresh: int
    """Of these, those with a valid access token."""
    failed: int
    """Of the others, those that were given up since the given time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Successes:
    """Recent successes of all connections: refreshes and grants."""

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
    """The status of the service for metrics, without accounts, domains or free text."""

    checks: Mapping[str, bool]
    """The results of the checks of `/readyz`, by name."""
    stats: StoreStats | None
    """The last statistics of the store; `None` before the first."""
    stats_age: float | None
    """Their age in seconds."""
    stats_seconds: float | None
    """How long the query took."""
    heartbeat_age: float
    """Seconds since the scheduler's current round began."""
    in_flight: int
    """Refreshes in progress in this process."""
    pending_writes: int
    """The number of pending writes."""
    webhooks_delivered: bool
    """Whether `webhook.url` is set; without it, waiting webhooks mean nothing."""
