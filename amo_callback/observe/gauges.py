"""How the service does at the moment of a scrape, as Prometheus's gauges.

What is not known has no sample: a zero would be a lie. Ages are told in seconds, by the service's own steady clock:
they are short, and a clock that is wrong must raise no alarm. Deadlines are told as moments: they are weeks away, and
come nearer also while the store is silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import GaugeMetricFamily

from amo_callback.model import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from amo_callback.survey import Condition, Survey


Label = TypeVar("Label", bound=str)


class Gauges:
    """The gauges of one moment, as Prometheus's library collects them."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return each gauge of which something is known."""
        now, survey = self._condition, self._condition.survey
        yield _each("check_ok", "Whether a check of /readyz is good.", "check", now.checks)
        yield _one("refresher_beat_age_seconds", "How long ago the refresher last came round.", now.beat_age)
        yield _one("refreshes_in_flight", "Refreshes under way in this process.", now.in_flight)
        yield _one("unsaved_pairs", "New token pairs that the database does not take.", now.unsaved)
        yield _one("frozen", "Whether nothing is spent, of all connections.", now.frozen)
        yield _one(
            "amo_credentials_refused",
            "Whether AMO refuses our client id, secret or redirect URI.",
            now.credentials_refused,
        )
        yield _one("amo_blocked", "Whether AMO blocks the address of this server.", now.amo_blocked)
        yield _one("verdicts_held", "Whether too many connections died at once to believe it.", now.verdicts_held)
        if survey is not None:
            yield _one("survey_age_seconds", "How old is what the database told of all connections.", now.survey_age)
            yield _one("survey_duration_seconds", "How long the database took to tell it.", now.survey_seconds)
            yield from _connections(survey)
            if now.notices_delivered:
                yield from _notices(survey)


def _connections(survey: Survey) -> Iterator[GaugeMetricFamily]:
    statuses = {
        Status.ACTIVE: survey.active,
        Status.NEEDS_REAUTH: sum(survey.needs_reauth.values()),
        Status.DISCONNECTED: survey.disconnected,
    }
    yield _each("connections", "All connections, by their status.", "status", statuses)
    yield _each(
        "connections_needing_reauth",
        "Connections whose person must connect again, by why.",
        "reason",
        survey.needs_reauth,
    )
    yield _one("refreshes_due", "Refreshes that are due in the database, frozen ones apart.", survey.due)
    yield _one("refreshes_overdue", "Refreshes that have been due for more than five minutes.", survey.overdue)
    yield _one(
        "access_tokens_expired", "Active connections, not frozen, whose access tokens have expired.", survey.expired
    )
    yield _at(
        "access_token_next_expiry_timestamp_seconds",
        "When the first access token ends of an active connection that is not frozen.",
        survey.next_expiry,
    )
    yield _at(
        "refresh_token_next_expiry_timestamp_seconds",
        "When the first refresh token ends of an active connection, or its access token where it has no refresh token.",
        survey.next_deadline,
    )


def _notices(survey: Survey) -> Iterator[GaugeMetricFamily]:
    states = {"waiting": survey.waiting, "parked": survey.parked}
    yield _each(
        "notices",
        "Where webhook.url is set: notices that are waiting to be delivered, or parked: given up.",
        "state",
        states,
    )
    yield _at(
        "notices_oldest_timestamp_seconds",
        "Where webhook.url is set: when the oldest notice was written that waits.",
        survey.waiting_since,
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
