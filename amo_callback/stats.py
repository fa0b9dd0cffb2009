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
    """The number of active connections with a valid access token."""
    needs_reauth: Mapping[Reason, int]
    disconnected: int
    mismatched: int
    """The number of connections that were granted to another client id."""
    hosts_not_allowed: int
    """The number of active connections whose host is not on the allow list."""
    expired: int
    """The number of active connections that are not frozen and have an expired access token."""
    due: int
    """The number of due refreshes of connections that are not frozen."""
    overdue: int
    """The number of refreshes that have been due for more than five minutes."""
    next_expiry: datetime | None
    """The earliest expiry of an access token among active connections that are not frozen; may be in the past."""
    next_deadline: datetime | None
    """The earliest expiry of a refresh token among active connections, after which a user must connect again.

    For a connection without a refresh token, the expiry of its access token is used.
    """
    waiting: int
    """The number of webhooks that wait for delivery."""
    waiting_since: datetime | None
    """The time at which the oldest waiting webhook was stored."""
    dead_lettered: int
    """The number of dead-lettered webhooks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionCounts:
    """Counts of connections, for the detection of mass failures."""

    active: int
    """The number of active connections with a refresh token."""
    fresh: int
    """The number of active connections with a refresh token and a valid access token."""
    failed: int
    """The number of connections with a terminal failure since the time passed to the query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Successes:
    """Recent successes of all connections: refreshes and grants."""

    refreshable: int
    """The number of active connections that have a refresh token and are not frozen."""
    latest: datetime | None
    """The time of the latest success of any connection."""
    attempted: int
    """The number of connections whose refresh was attempted in the last day."""
    succeeded: int
    """The number of connections that had both an attempted refresh and a success in the last day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceStatus:
    """The status of the service for metrics, without accounts, domains or free text."""

    checks: Mapping[str, bool]
    """The results of the checks of `/readyz`, by name."""
    stats: StoreStats | None
    """The latest statistics of the store; `None` before the first query."""
    stats_age: float | None
    """The age of the statistics in seconds."""
    stats_seconds: float | None
    """The duration of the statistics query in seconds."""
    heartbeat_age: float
    """Seconds since the current round of the refresh scheduler began."""
    in_flight: int
    """The number of refreshes in progress in this process."""
    pending_writes: int
    """The number of pending writes."""
    webhooks_delivered: bool
    """Whether `webhook.url` is set; otherwise, the counts of webhooks have no meaning."""
