"""The decision on a refresh, as a table of its rules."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.errors import (
    AddressBlocked,
    Frozen,
    HostNotAllowed,
    NeedsReauth,
    NotFound,
    NotYet,
    RequestNotSent,
    ShuttingDown,
    StoreUnavailable,
)
from amo_callback.model import Reason, RefreshTrigger, Status
from amo_callback.refresh.decision import Done, Facts, Introspect, Present, Refuse, Wait, decide, doubt_key
from tests.builders import a_connection
from tests.fakes import START

HOUR = timedelta(hours=1)
SCHEDULE, FORCED, PROBE, TRIAL = (
    RefreshTrigger.SCHEDULE,
    RefreshTrigger.FORCED,
    RefreshTrigger.PROBE,
    RefreshTrigger.TRIAL,
)
DUE = a_connection(next_refresh_at=START)
BACKED_OFF = dataclasses.replace(DUE, failures=1, next_refresh_at=START + HOUR, last_error="amo_unavailable")
OPEN = dataclasses.replace(DUE, attempt="attempt-1", presented_token="print-1")
FORBIDDEN_HOST = HostNotAllowed("elsewhere.example")


def _row(**changes: Any) -> Any:
    return dataclasses.replace(DUE, **changes)


@pytest.mark.parametrize(
    ("row", "trigger", "facts", "expected"),
    [
        # no rule prevents the refresh
        (DUE, SCHEDULE, {}, Present),
        # the connection cannot be refreshed
        (None, FORCED, {"stopping": True}, NotFound),
        (_row(status=Status.DISCONNECTED), FORCED, {"is_fresh_enough": True}, NotFound),
        (_row(status=Status.NEEDS_REAUTH, reason=Reason.REVOKED), FORCED, {"is_fresh_enough": True}, NeedsReauth),
        (_row(status=Status.NEEDS_REAUTH, reason=Reason.REFUSED), TRIAL, {}, Present),
        (_row(refresh_expires_at=None), FORCED, {"is_fresh_enough": True}, NeedsReauth),
        # another caller or process has refreshed it: returned even if a refresh is impossible now
        (DUE, FORCED, {"is_fresh_enough": True, "stopping": True, "has_pending_write": True}, Done),
        # shutdown, a freeze, a pending write, the circuit breaker
        (DUE, SCHEDULE, {"stopping": True}, ShuttingDown),
        (_row(frozen=True), FORCED, {}, Frozen),
        (DUE, FORCED, {"has_pending_write": True}, StoreUnavailable),
        (DUE, SCHEDULE, {"refusal": AddressBlocked(60)}, AddressBlocked),
        # back-off, except for a probe and for a forced refresh after a request that was not sent
        (BACKED_OFF, SCHEDULE, {}, NotYet),
        (BACKED_OFF, SCHEDULE, {"stopping": True}, ShuttingDown),
        (BACKED_OFF, FORCED, {}, NotYet),
        (BACKED_OFF, PROBE, {}, Present),
        (BACKED_OFF, SCHEDULE, {"now": START + HOUR}, Present),
        (dataclasses.replace(BACKED_OFF, failures=0), SCHEDULE, {}, Present),
        (dataclasses.replace(BACKED_OFF, last_error=RequestNotSent.code), FORCED, {}, Present),
        (dataclasses.replace(BACKED_OFF, last_error=RequestNotSent.code), SCHEDULE, {}, NotYet),
        (dataclasses.replace(BACKED_OFF, last_error=HostNotAllowed.code), SCHEDULE, {}, Present),
        # another process's lease, also if the host is no longer allowed
        (OPEN, SCHEDULE, {"lease_left": 30.0, "host_error": FORBIDDEN_HOST}, Wait),
        (DUE, SCHEDULE, {"host_error": FORBIDDEN_HOST}, HostNotAllowed),
        # a token that may have been spent is introspected before it is presented, once for each doubt
        (OPEN, SCHEDULE, {}, Introspect),
        (_row(possibly_spent_token="print-1"), SCHEDULE, {}, Introspect),
        (_row(suspended_token="print-1"), SCHEDULE, {}, Introspect),
        (DUE, PROBE, {"terminal_suspended": True}, Introspect),
        (OPEN, SCHEDULE, {"introspected": True}, Present),
    ],
)
def test_decide_returns_first_applicable_rule(
    row: Any, trigger: RefreshTrigger, facts: dict[str, Any], expected: type
) -> None:
    """The first applicable rule decides; the table is in the order of the rules."""
    decision = decide(row, trigger, Facts(**{"now": START, **facts}))
    assert isinstance(decision.error if isinstance(decision, Refuse) else decision, expected)


def test_decide_refusal_contains_reason_and_delay() -> None:
    """A refusal contains the reason of `needs_reauth`, or the delay and the cause of the back-off."""
    gone = decide(_row(status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT), FORCED, Facts(now=START))
    missing = decide(_row(refresh_expires_at=None), FORCED, Facts(now=START))
    backed_off = decide(BACKED_OFF, SCHEDULE, Facts(now=START))
    assert isinstance(gone, Refuse)
    assert isinstance(missing, Refuse)
    assert isinstance(backed_off, Refuse)
    assert isinstance(gone.error, NeedsReauth)
    assert isinstance(missing.error, NeedsReauth)
    assert (gone.error.reason, missing.error.reason) == (Reason.IN_DOUBT, Reason.MISSING)
    assert isinstance(backed_off.error, NotYet)
    assert (backed_off.error.retry_after, backed_off.error.cause_code) == (3600, "amo_unavailable")


@pytest.mark.parametrize(("left", "seconds"), [(30.0, 0.25), (0.1, 0.1)])
def test_decide_lease_of_another_process_waits_quarter_second_at_most(left: float, seconds: float) -> None:
    """The row is read again after a quarter of a second, or at the end of the lease."""
    assert decide(OPEN, SCHEDULE, Facts(now=START, lease_left=left)) == Wait(seconds)


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": "attempt-2"},
        {"lease_until": START},
        {"possibly_spent_token": "print-2"},
        {"suspended_token": "print-2"},
        {"failures": 2},
        {"pair_version": 7},
    ],
)
def test_doubt_key_changes_with_each_new_doubt(changes: dict[str, Any]) -> None:
    """Each attempt, extension, suspended answer or failure changes the doubt key."""
    assert doubt_key(dataclasses.replace(OPEN, **changes)) != doubt_key(OPEN)
    assert doubt_key(dataclasses.replace(OPEN, row_version=9)) == doubt_key(OPEN)
