"""What is counted, and how it is told to Prometheus."""

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


def _told(name: str, **fields: object) -> dict[str, float]:
    """Return what an event counts up."""
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
    ids=["succeeded", "superseded", "failed", "unknown", "untold", "unsaved", "given-up", "another"],
)
def test_attempts_are_counted_by_outcome_and_reason(
    name: str, fields: dict[str, object], counted: dict[str, float]
) -> None:
    """Reasons come from a list; what is on none is `other`."""
    assert _told(name, **fields) == counted


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
def test_requests_are_counted_by_the_class_of_their_answer(fields: dict[str, object], counted: str) -> None:
    """429 is told apart, for AMO bans who goes on; and so is whether a request without an answer was sent."""
    assert _told("amo.request", **fields) == {f"{ASKED} {counted}": 1}


def test_words_of_the_apis_that_are_on_no_list_are_other() -> None:
    """Nothing that comes from outside makes a series."""
    metrics = Metrics()
    metrics.called_back("a word of somebody's")
    metrics.handed_out("another")
    found = _samples(metrics)
    assert found["amo_callback_callbacks_total other"] == found["amo_callback_hand_outs_total other"] == 1
    assert not any("somebody" in name or "another" in name for name in found)


def test_each_word_of_the_apis_has_its_series() -> None:
    """What an API may answer is on the list of what is counted."""
    assert {error.api_code for error in HAND_OUT_ERRORS} <= set(TOKEN_RESULTS)
    app_alone = {"unauthorized", "forbidden", "not_found", "method_not_allowed", "store_unavailable", "internal_error"}
    assert set(error_actions()) - app_alone <= set(CALLBACKS)


def test_what_can_rise_is_there_from_the_start() -> None:
    """At zero: else the first failure of its kind would be no rise to Prometheus."""
    found = _samples(Metrics())
    for name in (
        f"{REFRESHES} failed not_sent",
        f"{REFRESHES} given_up revoked",
        "amo_callback_callbacks_total other",
        f"{CLOSED} public idle",
    ):
        assert found[name] == 0
    assert not any(name.endswith("_created") for name in found)


def test_what_is_not_known_has_no_sample() -> None:
    """Before the store told anything, and of moments that there are none of."""
    unknown = _samples(Metrics(), stats=None, stats_age=None, stats_seconds=None)
    assert not any("amo_callback_connections" in name or "stats" in name for name in unknown)
    empty = _samples(Metrics(), stats=some_stats(active=0, next_expiry=None, next_deadline=None))
    assert empty["amo_callback_connections active"] == 0
    assert not any(name.endswith("timestamp_seconds") for name in empty if name.startswith("amo_callback"))


def test_webhooks_are_told_where_somebody_receives_them() -> None:
    """Where nobody does, they wait for ever, and that is no reason for an alarm."""
    stats = some_stats(waiting=3, dead_lettered=1, waiting_since=START)
    found = _samples(Metrics(), stats=stats)
    assert (found["amo_callback_webhooks waiting"], found["amo_callback_webhooks dead_lettered"]) == (3, 1)
    assert found["amo_callback_webhooks_oldest_timestamp_seconds"] == START.timestamp()
    assert not any("webhooks" in name for name in _samples(Metrics(), stats=stats, webhooks_delivered=False))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend() -> None:
    """Names, units and help texts are as Prometheus's own rules want them."""
    text = Metrics().text(a_service_status(stats=some_stats(waiting_since=START)))
    done = subprocess.run(  # noqa: S603 -- because it is the tool that a test asks
        [str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
