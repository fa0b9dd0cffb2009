"""How all connections do, taken together, and how the service does that keeps them: what monitoring is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from amo_callback.model import Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """What the store tells of all connections and webhooks in one look."""

    active: int
    fresh: int
    """Of these, those whose access tokens live."""
    needs_reauth: Mapping[Reason, int]
    disconnected: int
    mismatched: int
    """Connections that were granted to another client id."""
    hosts_not_allowed: int
    """Active ones to whose host nothing is sent: it is not on the allow list."""
    expired: int
    """Active ones whose access tokens have expired, though nobody has frozen them."""
    due: int
    """Refreshes that are due, and not frozen."""
    overdue: int
    """Of these, those that have been due for too long."""
    next_expiry: datetime | None
    """When the first access token ends, or ended, of an active connection that is not frozen."""
    next_deadline: datetime | None
    """When the first refresh token of an active connection ends, which only its person can mend.

    Of a connection without a refresh token it is the access token.
    """
    waiting: int
    """Webhooks that are to be delivered."""
    waiting_since: datetime | None
    """When the oldest of these was written."""
    dead_lettered: int
    """Webhooks that were given up, and kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceStatus:
    """The state of the service at this moment, for metrics; no account, domain or free text is in it."""

    checks: Mapping[str, bool]
    """The checks of `/readyz`, by their names."""
    survey: StoreStats | None
    """What the store told last; `None` before it told anything."""
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
