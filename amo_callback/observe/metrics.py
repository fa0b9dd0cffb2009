"""The counters of the service, in their own Prometheus registry.

The values of every label are listed here; no value depends on accounts. Each series therefore exists from the start, at
zero. Any other value is counted as `other`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily

from amo_callback import __version__
from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.errors import (
    AccountBlocked,
    ClientMismatch,
    DecryptionFailed,
    HostNotAllowed,
    IntrospectionUnavailable,
    InvalidClient,
    InvalidRefreshToken,
    MassFailureSuspected,
    RequestNotSent,
    UnauthorizedWithoutHint,
    UnknownOutcome,
    UnrecognizedError,
    VendorRateLimited,
)
from amo_callback.model import Reason
from amo_callback.observe.gauges import Gauges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    from amo_callback.events import Event
    from amo_callback.stats import ServiceStatus

OTHER = "other"
LISTENERS = ("public", "private")
CLOSINGS = ("max_connections", "incomplete_request", "idle", "unread_answer")
TOKEN_RESULTS = (
    "fresh",
    "stale",
    "forbidden",
    "not_found",
    "needs_reauth",
    "amo_refused",
    "amo_unavailable",
    "amo_credentials",
    "frozen",
    "host_not_allowed",
    "store_unavailable",
    OTHER,
)
CALLBACKS = ("connected", "exchanging", *DEEP_LINK_ERRORS, OTHER)
_FAILURES = (
    *(
        error.code
        for error in (
            AccountBlocked,
            InvalidClient,
            HostNotAllowed,
            IntrospectionUnavailable,
            RequestNotSent,
            ClientMismatch,
            UnknownOutcome,
            VendorRateLimited,
            InvalidRefreshToken,
            UnauthorizedWithoutHint,
            UnrecognizedError,
            DecryptionFailed,
            MassFailureSuspected,
        )
    ),
    OTHER,
)
_REFRESHES = {
    "succeeded": ("",),
    "superseded": ("",),
    "failed": _FAILURES,
    "given_up": (*Reason, OTHER),
}
"""The reasons for each outcome of a refresh."""
_OUTCOMES = {
    "refresh.succeeded": "succeeded",
    "refresh.superseded": "superseded",
    "refresh.failed": "failed",
    "refresh.result_not_stored": "failed",
    "connection.needs_reauth": "given_up",
}
"""The outcome of a refresh attempt, by the event that ends the attempt."""
_KINDS = ("exchange", "refresh", "introspection", OTHER)
_STATUSES = ("2xx", "3xx", "4xx", "429", "5xx", "not_sent", "no_answer", OTHER)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)


class Metrics:
    """The counters, updated by events and by the two APIs."""

    def __init__(self, *, lost_lines: Callable[[], int] = lambda: 0) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("amo_callback_build", "The running version of amo-callback.", registry=registry).info(
            {"version": __version__}
        )

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"amo_callback_{name}", about, labels, registry=registry)

        def duration(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(
                f"amo_callback_{name}_duration_seconds", about, labels, registry=registry, buckets=_SECONDS
            )

        self._refreshes = counter(
            "refreshes",
            "Finished refresh attempts by outcome: succeeded, superseded (by a newer pair), failed (retried) or "
            "given_up (the user must connect again). The outcomes failed and given_up have a reason.",
            "outcome",
            "reason",
        )
        self._refresh_seconds = duration("refresh", "Duration of refresh attempts.")
        self._asked = counter(
            "amo_requests",
            "Requests to AMO by kind and status: 2xx to 5xx (429 is counted separately), not_sent or no_answer.",
            "kind",
            "status",
        )
        self._asked_seconds = duration("amo_request", "Duration of requests to AMO, including failed ones.", "kind")
        self._callbacks = counter(
            "callbacks",
            "Callbacks by result: connected, exchanging (not finished yet) or the error in the deep link.",
            "outcome",
        )
        self._hand_outs = counter(
            "hand_outs",
            'Requests for access tokens by result: "fresh", "stale" or an error code.',
            "outcome",
        )
        self._refused = counter("api_keys_refused", "Requests with a missing or unknown API key.")
        self._clients = Gauge(
            "amo_callback_client_connections",
            "Open client connections by listener.",
            ["listener"],
            registry=registry,
        )
        self._clients_closed = counter(
            "client_connections_closed",
            "Client connections closed because of a limit: max_connections (too many connections), "
            "incomplete_request (no complete request in time), idle (no next request in time) or unread_answer "
            "(response not read in time).",
            "listener",
            "reason",
        )
        registry.register(_LostLines(lost_lines))
        self._begin()

    def _begin(self) -> None:
        """Create every series at zero, so that its first event appears as an increase."""
        for outcome, reasons in _REFRESHES.items():
            for reason in reasons:
                self._refreshes.labels(outcome, reason)
        for kind in _KINDS[:-1]:
            self._asked_seconds.labels(kind)
            for status in _STATUSES[:-1]:
                self._asked.labels(kind, status)
        for listener in LISTENERS:
            self._clients.labels(listener)
            for reason in CLOSINGS:
                self._clients_closed.labels(listener, reason)
        # Cached, because looking up a series by its labels takes longer than counting.
        self._called_back = {outcome: self._callbacks.labels(outcome) for outcome in CALLBACKS}
        self._handed_out = {outcome: self._hand_outs.labels(outcome) for outcome in TOKEN_RESULTS}

    def __call__(self, event: Event) -> None:
        if event.name == "amo.request":
            self._count_asked(event)
        elif event.name in _OUTCOMES:
            self._count_refresh(event, _OUTCOMES[event.name])

    def _count_refresh(self, event: Event, outcome: str) -> None:
        reasons = _REFRESHES[outcome]
        reason = str(event.fields.get("reason" if outcome == "given_up" else "error", ""))
        self._refreshes.labels(outcome, reasons[0] if len(reasons) == 1 else _among(reasons, reason)).inc()
        seconds = event.fields.get("seconds")
        if isinstance(seconds, float):
            self._refresh_seconds.observe(seconds)

    def _count_asked(self, event: Event) -> None:
        kind = _among(_KINDS, str(event.fields.get("kind")))
        self._asked.labels(kind, _class_of(event.fields.get("status"), str(event.fields.get("error")))).inc()
        seconds = event.fields.get("seconds")
        if isinstance(seconds, float):
            self._asked_seconds.labels(kind).observe(seconds)

    def key_refused(self) -> None:
        self._refused.inc()

    def watch_clients(self, listener: str, count: Callable[[], int]) -> None:
        """Call `count` at each scrape for the number of a listener's client connections."""
        self._clients.labels(listener).set_function(count)

    def client_closed(self, listener: str, reason: str) -> None:
        self._clients_closed.labels(listener, reason).inc()

    def handed_out(self, outcome: str) -> None:
        """Count a request for an access token by its result or error code."""
        (self._handed_out.get(outcome) or self._handed_out[OTHER]).inc()

    def called_back(self, outcome: str) -> None:
        """Count a callback by the error in its deep link or, without an error, by the status of its grant."""
        (self._called_back.get(outcome) or self._called_back[OTHER]).inc()

    def text(self, status: ServiceStatus) -> bytes:
        return generate_latest(_Exposed(self._registry, Gauges(status)))


class _LostLines:
    """The counter of lost log lines."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        text = "Log lines lost because the process that reads the log was too slow, or the log could not be written."
        yield CounterMetricFamily("amo_callback_log_lines_lost", text, value=self._count())


class _Exposed(CollectorRegistry):
    """The metrics of a scrape, without the creation times of counters, which would double its size."""

    def __init__(self, *collectors: Collector) -> None:
        super().__init__()
        self._parts = collectors

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            for metric in part.collect():
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric


def _among(values: Iterable[str], value: str) -> str:
    return value if value in values else OTHER


def _class_of(status: object, error: str) -> str:
    """Return the class of an HTTP status, or `429`; without a response, `not_sent` or `no_answer`."""
    if not isinstance(status, int):
        return {RequestNotSent.code: "not_sent", UnknownOutcome.code: "no_answer"}.get(error, OTHER)
    return "429" if status == 429 else _among(_STATUSES, f"{status // 100}xx")
