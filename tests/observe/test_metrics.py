"""Counters and gauges, and their Prometheus format."""

import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from amo_callback.events import Event
from amo_callback.observe.metrics import CALLBACKS, TOKEN_RESULTS, Metrics
from amo_callback.web.private.tokens import HAND_OUT_ERRORS
from amo_callback.web.public.api import error_actions
from tests.builders import a_service_status, some_stats
from tests.fakes import START

PROMTOOL = shutil.which("promtool")


def _samples(metrics: Metrics, **more: Any) -> dict[str, float]:
    return {
        " ".join([sample.name, *sample.labels.values()]).strip(): sample.value
        for family in text_string_to_metric_families(metrics.text(a_service_status(**more)).decode())
        for sample in family.samples
    }


def _counted(name: str, **fields: object) -> dict[str, float]:
    """Return the counters that an event increments."""
    metrics = Metrics()
    before = _samples(metrics)
    metrics(Event(name=name, connection_id="c-1", fields=fields))
    return {
        key: value - before.get(key, 0)
        for key, value in _samples(metrics).items()
        if value != before.get(key, 0) and key.startswith("amo_callback") and "_bucket" not in key
    }


REFRESHES = "amo_callback_refreshes_total"
CLOSED = "amo_callback_client_connections_closed_total"
ASKED = "amo_callback_amo_requests_total"
TOOK = "amo_callback_refresh_duration_seconds"


@pytest.mark.parametrize(
    ("name", "fields", "counted"),
    [
        ("refresh.succeeded", {"seconds": 0.5}, {f"{REFRESHES} succeeded": 1, f"{TOOK}_count": 1, f"{TOOK}_sum": 0.5}),
        ("refresh.superseded", {}, {f"{REFRESHES} superseded": 1}),
        ("refresh.failed", {"error": "not_sent"}, {f"{REFRESHES} failed not_sent": 1}),
        ("refresh.failed", {"error": "secret words"}, {f"{REFRESHES} failed other": 1}),
        ("refresh.failed", {}, {f"{REFRESHES} failed other": 1}),
        ("refresh.result_not_stored", {"error": "outcome_open"}, {f"{REFRESHES} failed outcome_open": 1}),
        ("connection.needs_reauth", {"reason": "revoked", "error": "x"}, {f"{REFRESHES} given_up revoked": 1}),
        ("connection.connected", {"domain": "a.amocrm.ru"}, {}),
    ],
    ids=["succeeded", "superseded", "failed", "unknown-error", "no-error", "not-stored", "given-up", "other-event"],
)
def test_metrics_refreshes_are_counted_by_result_and_reason(
    name: str, fields: dict[str, object], counted: dict[str, float]
) -> None:
    """Reasons are from a list; any other is `other`."""
    assert _counted(name, **fields) == counted


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({"kind": "refresh", "status": 200}, "refresh 2xx"),
        ({"kind": "refresh", "status": 429}, "refresh 429"),
        ({"kind": "exchange", "status": 401}, "exchange 4xx"),
        ({"kind": "introspection", "status": 502}, "introspection 5xx"),
        ({"kind": "introspection", "status": 999}, "introspection other"),
        ({"kind": "refresh", "error": "not_sent"}, "refresh not_sent"),
        ({"kind": "refresh", "error": "outcome_open", "detail": "timeout"}, "refresh no_answer"),
        ({"kind": "something new"}, "other other"),
    ],
    ids=["2xx", "429", "4xx", "5xx", "odd", "not-sent", "no-answer", "unknown"],
)
def test_metrics_amo_requests_are_counted_by_status_class(fields: dict[str, object], counted: str) -> None:
    """429 is separate, because AMO bans clients that continue, and so are unsent and unanswered requests."""
    assert _counted("amo.request", **fields) == {f"{ASKED} {counted}": 1}


def test_metrics_unlisted_api_result_is_other() -> None:
    """No value from outside creates a series."""
    metrics = Metrics()
    metrics.called_back("a word of somebody's")
    metrics.handed_out("another")
    found = _samples(metrics)
    assert found["amo_callback_callbacks_total other"] == found["amo_callback_hand_outs_total other"] == 1
    assert not any("somebody" in name or "another" in name for name in found)


def test_metrics_have_a_series_for_each_api_result() -> None:
    """Every result that an API may return is listed."""
    assert {error.api_code for error in HAND_OUT_ERRORS} <= set(TOKEN_RESULTS)
    app_alone = {"unauthorized", "forbidden", "not_found", "pending", "method_not_allowed"}
    app_alone |= {"store_unavailable", "internal_error"}
    assert set(error_actions()) - app_alone <= set(CALLBACKS)


def test_metrics_counters_start_at_zero() -> None:
    """Otherwise Prometheus would not see the first failure of its kind as an increase."""
    found = _samples(Metrics())
    for name in (
        f"{REFRESHES} failed not_sent",
        f"{REFRESHES} given_up revoked",
        "amo_callback_callbacks_total other",
        f"{CLOSED} public idle",
    ):
        assert found[name] == 0
    assert not any(name.endswith("_created") for name in found)


def test_metrics_unknown_values_have_no_sample() -> None:
    """Stats have no samples before the first poll, and a time that does not exist has none."""
    unknown = _samples(Metrics(), stats=None, stats_age=None, stats_seconds=None)
    assert not any("amo_callback_connections" in name or "stats" in name for name in unknown)
    empty = _samples(Metrics(), stats=some_stats(active=0, next_expiry=None, next_deadline=None))
    assert empty["amo_callback_connections active"] == 0
    assert not any(name.endswith("timestamp_seconds") for name in empty if name.startswith("amo_callback"))


def test_metrics_report_webhooks_only_with_receiver() -> None:
    """Without a receiver webhooks wait forever, which is no reason for an alert."""
    stats = some_stats(waiting=3, dead_lettered=1, waiting_since=START)
    found = _samples(Metrics(), stats=stats)
    assert (found["amo_callback_webhooks waiting"], found["amo_callback_webhooks dead_lettered"]) == (3, 1)
    assert found["amo_callback_webhooks_oldest_timestamp_seconds"] == START.timestamp()
    assert not any("webhooks" in name for name in _samples(Metrics(), stats=stats, webhooks_delivered=False))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_metrics_pass_promtool_check() -> None:
    """Names, units and help texts follow Prometheus's own rules."""
    text = Metrics().text(a_service_status(stats=some_stats(waiting_since=START)))
    done = subprocess.run(  # noqa: S603 -- because the test runs this tool
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
