"""Each rule that decides about a refresh, as one row of a table."""

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
        # nothing is in the way
        (DUE, SCHEDULE, {}, Present),
        # there is nothing to refresh, whatever else holds
        (None, FORCED, {"stopping": True}, NotFound),
        (_row(status=Status.DISCONNECTED), FORCED, {"is_fresh_enough": True}, NotFound),
        (_row(status=Status.NEEDS_REAUTH, reason=Reason.REVOKED), FORCED, {"is_fresh_enough": True}, NeedsReauth),
        (_row(status=Status.NEEDS_REAUTH, reason=Reason.REFUSED), TRIAL, {}, Present),
        (_row(refresh_expires_at=None), FORCED, {"is_fresh_enough": True}, NeedsReauth),
        # another caller or process has refreshed it: returned even where nothing could be refreshed now
        (DUE, FORCED, {"is_fresh_enough": True, "stopping": True, "has_pending_write": True}, Done),
        # the process, a freeze, a pending write, the breaker
        (DUE, SCHEDULE, {"stopping": True}, ShuttingDown),
        (_row(frozen=True), FORCED, {}, Frozen),
        (DUE, FORCED, {"has_pending_write": True}, StoreUnavailable),
        (DUE, SCHEDULE, {"refusal": AddressBlocked(60)}, AddressBlocked),
        # back-off: it holds back all but a probe, and a forced refresh whose last request never left
        (BACKED_OFF, SCHEDULE, {}, NotYet),
        (BACKED_OFF, SCHEDULE, {"stopping": True}, ShuttingDown),
        (BACKED_OFF, FORCED, {}, NotYet),
        (BACKED_OFF, PROBE, {}, Present),
        (BACKED_OFF, SCHEDULE, {"now": START + HOUR}, Present),
        (dataclasses.replace(BACKED_OFF, failures=0), SCHEDULE, {}, Present),
        (dataclasses.replace(BACKED_OFF, last_error=RequestNotSent.code), FORCED, {}, Present),
        (dataclasses.replace(BACKED_OFF, last_error=RequestNotSent.code), SCHEDULE, {}, NotYet),
        (dataclasses.replace(BACKED_OFF, last_error=HostNotAllowed.code), SCHEDULE, {}, Present),
        # another process's lease is waited for, also where the host is no longer allowed
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
def test_decide_returns_the_first_rule_that_applies(
    row: Any, trigger: RefreshTrigger, facts: dict[str, Any], expected: type
) -> None:
    """The rows stand in the order in which the rules are asked."""
    decision = decide(row, trigger, Facts(**{"now": START, **facts}))
    assert isinstance(decision.error if isinstance(decision, Refuse) else decision, expected)


def test_decide_names_the_reason_and_the_time_to_wait() -> None:
    """A caller learns why the user has to connect again, and how long the back-off takes and because of what."""
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
def test_decide_waits_for_a_lease_no_longer_than_it_lasts(left: float, seconds: float) -> None:
    """The row is read again every quarter of a second: it may be fresh by then."""
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
def test_another_doubt_is_introspected_again(changes: dict[str, Any]) -> None:
    """The same answer may be suspended twice for one token: each is one failure more."""
    assert doubt_key(dataclasses.replace(OPEN, **changes)) != doubt_key(OPEN)
    assert doubt_key(dataclasses.replace(OPEN, row_version=9)) == doubt_key(OPEN)
