"""What a refresh without a pair means for its connection."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from amo_callback.errors import (
    AccountBlocked,
    AmoCallbackError,
    ClientMismatch,
    DecryptionFailed,
    InvalidClient,
    InvalidRefreshToken,
    MassFailureSuspected,
    RefreshRefused,
    RequestNotSent,
    UnauthorizedWithoutHint,
    UnknownOutcome,
    UnrecognizedError,
    VendorRateLimited,
)
from amo_callback.model import Reason, RefreshFailure, RefreshRules, Status
from amo_callback.refresh.failure_policy import failure_for, is_terminal, recheck_delay
from tests.builders import DAY, a_connection
from tests.fakes import START


def _judged(error: AmoCallbackError, *, drawn: float = 1.0, **more: Any) -> RefreshFailure:
    claimed = a_connection(**{"attempt": "mine", "presented_token": "this", **more})
    return failure_for(error, claimed=claimed, now=START, rules=RefreshRules(), random=lambda: drawn)


@pytest.mark.parametrize(
    ("error", "possibly_spent_token", "reason"),
    [
        (InvalidRefreshToken(), None, Reason.REVOKED),
        (InvalidRefreshToken(expired=True), None, Reason.EXPIRED),
        (InvalidRefreshToken(), "".join("this"), Reason.IN_DOUBT),  # equal, and another object, as from the store
        (InvalidRefreshToken(), "one before", Reason.REVOKED),
        (RefreshRefused(), "this", Reason.REFUSED),
        (DecryptionFailed(), "this", Reason.UNREADABLE),
    ],
)
def test_only_listed_refusals_need_the_person(
    error: AmoCallbackError, possibly_spent_token: str | None, reason: Reason
) -> None:
    """A dead token is revoked or expired, and in doubt only where this very token may have been spent by us."""
    failure = _judged(error, possibly_spent_token=possibly_spent_token)
    assert (failure.status, failure.reason, failure.next_refresh_at) == (Status.NEEDS_REAUTH, reason, None)
    assert (failure.attempt, failure.last_error) == ("mine", error.code)


@pytest.mark.parametrize(
    ("error", "seconds", "possibly_spent_token"),
    [
        (RequestNotSent(), 30, False),
        (UnrecognizedError(status=400, hint=""), 30, False),
        (UnauthorizedWithoutHint(401), 30, False),
        (VendorRateLimited(7), 7, False),
        (AccountBlocked(402), 900, False),
        (InvalidClient("hint"), 900, False),
        (UnknownOutcome("timeout"), 60, True),
    ],
)
def test_whatever_else_is_waited_out(error: AmoCallbackError, seconds: float, *, possibly_spent_token: bool) -> None:
    """The connection stays active; an open outcome marks the token as doubtful and waits for a lease's length."""
    failure = _judged(error)
    assert (failure.status, failure.reason, failure.in_doubt_for is not None) == (
        Status.ACTIVE,
        None,
        possibly_spent_token,
    )
    assert failure.next_refresh_at == START + timedelta(seconds=seconds)


def test_what_is_final_is_looked_at_again_in_a_day() -> None:
    """It may heal; whether a lost key is back costs AMO nothing, and is looked at every quarter of an hour."""
    for error, wait in ((InvalidRefreshToken(), timedelta(days=1)), (DecryptionFailed(), timedelta(minutes=15))):
        failure = _judged(error)
        assert (failure.needs_reauth_since, failure.recheck_at) == (START, START + wait)
    passing = _judged(RequestNotSent())
    assert (passing.needs_reauth_since, passing.recheck_at) == (None, None)


def test_an_open_outcome_is_open_for_a_lease() -> None:
    """Nobody judges it before, and it is no sooner tried again; whatever else ends is closed."""
    assert _judged(UnknownOutcome("timeout")).in_doubt_for == timedelta(seconds=60)
    assert _judged(UnknownOutcome("timeout"), failures=5).next_refresh_at == START + timedelta(seconds=900)
    for error in (RequestNotSent(), InvalidRefreshToken(), DecryptionFailed()):
        assert _judged(error).in_doubt_for is None


def test_back_off_counts_this_failure_too_and_leaves_tries_while_the_access_token_lives() -> None:
    """As `schedule` says, by the configured rules."""
    waits = [_judged(RequestNotSent(), failures=failures).next_refresh_at for failures in (0, 1, 3, 4, 5)]
    assert waits == [START + timedelta(seconds=seconds) for seconds in (30, 60, 240, 480, 900)]
    soon = START + timedelta(seconds=40)
    assert _judged(RequestNotSent(), access_expires_at=soon).next_refresh_at == START + timedelta(seconds=10)
    half = _judged(RequestNotSent(), failures=1, drawn=0.5)
    assert half.next_refresh_at == START + timedelta(seconds=30)


@pytest.mark.parametrize(
    "error", [AccountBlocked(403), InvalidClient("hint"), ClientMismatch(), MassFailureSuspected()]
)
def test_what_somebody_has_to_mend_waits_the_longest(error: AmoCallbackError) -> None:
    """However little is left of the access token: trying again mends nothing."""
    soon = START + timedelta(seconds=40)
    assert _judged(error, access_expires_at=soon).next_refresh_at == START + timedelta(seconds=900)


def test_a_rejected_connection_is_asked_each_retry_cap_after_eight_refusals() -> None:
    """The first tries are quick, for AMO may be ill; where introspection accepts the token, or is silent, all are."""
    for accepted, refusals, seconds in ((False, 7, 30), (False, 8, 900), (True, 8, 30), (None, 8, 30)):
        error = UnauthorizedWithoutHint(401)
        error.accepted = accepted
        failure = _judged(error, refusals=refusals)
        assert failure.next_refresh_at == START + timedelta(seconds=seconds)
        assert failure.refused_at == (START if accepted is False else None)


def test_a_suspended_answer_is_kept_with_what_it_means() -> None:
    """Its connection stays active; where no token was presented, or nothing was answered, there is none."""
    for error, possibly_spent_token, presented_token, reason in (
        (MassFailureSuspected(InvalidRefreshToken()), None, "this", Reason.REVOKED),
        (MassFailureSuspected(InvalidRefreshToken(expired=True)), None, "this", Reason.EXPIRED),
        (MassFailureSuspected(InvalidRefreshToken()), "this", "this", Reason.IN_DOUBT),
        (MassFailureSuspected(RefreshRefused()), None, "this", Reason.REFUSED),
        (MassFailureSuspected(DecryptionFailed()), None, "", None),
        (MassFailureSuspected(), None, "this", None),
        (InvalidRefreshToken(), None, "this", None),
    ):
        assert (
            _judged(error, possibly_spent_token=possibly_spent_token, presented_token=presented_token).suspended_reason
            is reason
        )


def test_the_verdict_is_the_attempts_and_of_no_other() -> None:
    """It names the connection and the attempt that ended."""
    failure = _judged(RequestNotSent())
    assert (failure.connection_id, failure.attempt, failure.last_error) == (a_connection().id, "mine", "not_sent")
    assert _judged(RequestNotSent(), attempt=None).attempt == ""


@pytest.mark.parametrize(
    ("error", "possibly_spent_token", "reason", "recheck_at"),
    [
        (InvalidRefreshToken(), None, Reason.EXPIRED, START + 90 * DAY),
        (InvalidRefreshToken(), "this", Reason.IN_DOUBT, START + 90 * DAY),
        (DecryptionFailed(), None, Reason.EXPIRED, START + 90 * DAY),
        (UnknownOutcome("timeout"), None, Reason.IN_DOUBT, START + DAY),
        (RequestNotSent(), None, Reason.EXPIRED, START + DAY),
        (VendorRateLimited(7), None, Reason.EXPIRED, START + DAY),
    ],
)
def test_a_trial_leaves_a_connection_given_up_as_it_was(
    error: AmoCallbackError, possibly_spent_token: str | None, reason: Reason, recheck_at: datetime
) -> None:
    """It died long ago and of what it died, but for a doubt; refused again, it is let be until its token would end."""
    failure = _judged(
        error, possibly_spent_token=possibly_spent_token, status=Status.NEEDS_REAUTH, reason=Reason.EXPIRED
    )
    assert (failure.status, failure.reason) == (Status.NEEDS_REAUTH, reason)
    assert (failure.next_refresh_at, failure.needs_reauth_since, failure.recheck_at) == (None, None, recheck_at)
    assert (failure.in_doubt_for is not None) == isinstance(error, UnknownOutcome)


def test_only_a_dead_token_and_a_lost_key_are_final() -> None:
    """Whatever else goes wrong may pass."""
    assert [is_terminal(error) for error in (InvalidRefreshToken(), DecryptionFailed())] == [True, True]
    assert not any(
        is_terminal(error) for error in (RequestNotSent(), UnknownOutcome("x"), AccountBlocked(402), ClientMismatch())
    )


def test_nothing_else_than_a_lost_key_is_looked_at_often() -> None:
    """Look-ups of AMO's are a day apart, whatever a connection was given up for."""
    again = {reason: recheck_delay(reason, RefreshRules()) for reason in (None, *Reason)}
    assert again.pop(Reason.UNREADABLE) == timedelta(minutes=15)
    assert set(again.values()) == {DAY}
