"""The status of the service at the time of a scrape, as Prometheus gauges.

Unknown values have no sample, because a zero would be wrong. Ages are measured by the monotonic clock, so that a wrong
wall clock raises no alarm. Deadlines are timestamps, because they are weeks away and keep approaching while the store
is unreachable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import GaugeMetricFamily

from amo_callback.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from amo_callback.stats import ServiceStatus, StoreStats


Label = TypeVar("Label", bound=str)


_FAILED_CHECKS = (
    ("frozen", "frozen", "Whether all connections are frozen."),
    ("amo_credentials_refused", "amo_credentials", "Whether AMO rejects the client id, secret or redirect URI."),
    ("amo_blocked", "amo_blocked", "Whether AMO blocks the IP address of this server."),
    ("mass_failure", "mass_failure", "Whether refreshing is paused because too many connections failed at once."),
)
"""Gauges that are 1 if a check of `/readyz` fails, each with its name, check and help text."""


class Gauges:
    """A Prometheus collector of the current gauges."""

    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now, stats = self._status, self._status.stats
        yield _each("check_ok", "Whether each check of /readyz succeeds (1) or fails (0).", "check", now.checks)
        yield _one(
            "refresher_beat_age_seconds", "Seconds since the refresh scheduler's last heartbeat.", now.heartbeat_age
        )
        yield _one("refreshes_in_flight", "Refreshes in progress in this process.", now.in_flight)
        yield _one("unsaved_pairs", "Pending writes: token pairs that the database has not stored.", now.pending_writes)
        for name, check, about in _FAILED_CHECKS:
            yield _one(name, about, None if check not in now.checks else not now.checks[check])
        if stats is not None:
            yield _one("stats_age_seconds", "Seconds since the last query of the database statistics.", now.stats_age)
            yield _one(
                "stats_duration_seconds", "Duration of the last query of the database statistics.", now.stats_seconds
            )
            yield from _connections(stats)
            if now.webhooks_delivered:
                yield from _webhooks(stats)


def _connections(stats: StoreStats) -> Iterator[GaugeMetricFamily]:
    statuses = {
        Status.ACTIVE: stats.active,
        Status.NEEDS_REAUTH: sum(stats.needs_reauth.values()),
        Status.DISCONNECTED: stats.disconnected,
    }
    yield _each("connections", "Connections by status.", "status", statuses)
    yield _each(
        "connections_needing_reauth",
        "Connections that need reauthorization, by reason.",
        "reason",
        stats.needs_reauth,
    )
    yield _one("refreshes_due", "Due refreshes of connections that are not frozen.", stats.due)
    yield _one("refreshes_overdue", "Refreshes that have been due for more than five minutes.", stats.overdue)
    yield _one(
        "access_tokens_expired",
        "Active connections that are not frozen and have an expired access token.",
        stats.expired,
    )
    yield _at(
        "access_token_next_expiry_timestamp_seconds",
        "The earliest expiry of an access token among active connections that are not frozen.",
        stats.next_expiry,
    )
    yield _at(
        "refresh_token_next_expiry_timestamp_seconds",
        "The earliest expiry of a refresh token among active connections. For a connection without a refresh token, "
        "the expiry of its access token is used.",
        stats.next_deadline,
    )


def _webhooks(stats: StoreStats) -> Iterator[GaugeMetricFamily]:
    states = {"waiting": stats.waiting, "dead_lettered": stats.dead_lettered}
    yield _each(
        "webhooks",
        "Waiting and dead-lettered webhooks, if webhook.url is set.",
        "state",
        states,
    )
    yield _at(
        "webhooks_oldest_timestamp_seconds",
        "The time at which the oldest waiting webhook was stored, if webhook.url is set.",
        stats.waiting_since,
    )


def _family(name: str, about: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"amo_callback_{name}", about, labels=labels)


def _one(name: str, about: str, value: float | None) -> GaugeMetricFamily:
    family = _family(name, about)
    if value is not None:
        family.add_metric((), float(value))
    return family


def _at(name: str, about: str, moment: datetime | None) -> GaugeMetricFamily:
    return _one(name, about, None if moment is None else moment.timestamp())


def _each(name: str, about: str, label: str, values: Mapping[Label, float]) -> GaugeMetricFamily:
    family = _family(name, about, (label,))
    for value, number in values.items():
        family.add_metric((str(value),), float(number))
    return family
