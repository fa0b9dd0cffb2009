"""The failure policy: the result of a failed refresh for its connection."""

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


def _failure(error: AmoCallbackError, *, drawn: float = 1.0, **more: Any) -> RefreshFailure:
    claimed = a_connection(**{"attempt": "mine", "presented_token": "this", **more})
    return failure_for(error, claimed=claimed, now=START, rules=RefreshRules(), random=lambda: drawn)


@pytest.mark.parametrize(
    ("error", "possibly_spent_token", "reason"),
    [
        (InvalidRefreshToken(), None, Reason.REVOKED),
        (InvalidRefreshToken(expired=True), None, Reason.EXPIRED),
        (InvalidRefreshToken(), "".join("this"), Reason.IN_DOUBT),  # equal but not identical, as from the store
        (InvalidRefreshToken(), "one before", Reason.REVOKED),
        (RefreshRefused(), "this", Reason.REFUSED),
        (DecryptionFailed(), "this", Reason.UNREADABLE),
    ],
)
def test_failure_terminal_error_gives_needs_reauth_with_reason(
    error: AmoCallbackError, possibly_spent_token: str | None, reason: Reason
) -> None:
    """A terminal error gives `needs_reauth`, with `in_doubt` only if this token may have been spent."""
    failure = _failure(error, possibly_spent_token=possibly_spent_token)
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
def test_failure_other_error_keeps_active_and_delays_retry(
    error: AmoCallbackError, seconds: float, *, possibly_spent_token: bool
) -> None:
    """Any other error keeps the connection active; an unknown outcome marks the token as possibly spent."""
    failure = _failure(error)
    assert (failure.status, failure.reason, failure.in_doubt_for is not None) == (
        Status.ACTIVE,
        None,
        possibly_spent_token,
    )
    assert failure.next_refresh_at == START + timedelta(seconds=seconds)


def test_failure_terminal_error_schedules_recheck() -> None:
    """A terminal failure schedules a recheck after a day, or after 15 minutes if the pair is unreadable."""
    for error, wait in ((InvalidRefreshToken(), timedelta(days=1)), (DecryptionFailed(), timedelta(minutes=15))):
        failure = _failure(error)
        assert (failure.needs_reauth_since, failure.recheck_at) == (START, START + wait)
    passing = _failure(RequestNotSent())
    assert (passing.needs_reauth_since, passing.recheck_at) == (None, None)


def test_failure_unknown_outcome_stays_open_for_a_lease() -> None:
    """An unknown outcome stays open for a lease and is not retried earlier; any other error is closed."""
    assert _failure(UnknownOutcome("timeout")).in_doubt_for == timedelta(seconds=60)
    assert _failure(UnknownOutcome("timeout"), failures=5).next_refresh_at == START + timedelta(seconds=900)
    for error in (RequestNotSent(), InvalidRefreshToken(), DecryptionFailed()):
        assert _failure(error).in_doubt_for is None


def test_failure_back_off_includes_this_failure_and_respects_expiry() -> None:
    """The back-off counts this failure, uses the configured rules and leaves retries before the expiry."""
    waits = [_failure(RequestNotSent(), failures=failures).next_refresh_at for failures in (0, 1, 3, 4, 5)]
    assert waits == [START + timedelta(seconds=seconds) for seconds in (30, 60, 240, 480, 900)]
    soon = START + timedelta(seconds=40)
    assert _failure(RequestNotSent(), access_expires_at=soon).next_refresh_at == START + timedelta(seconds=10)
    half = _failure(RequestNotSent(), failures=1, drawn=0.5)
    assert half.next_refresh_at == START + timedelta(seconds=30)


@pytest.mark.parametrize(
    "error", [AccountBlocked(403), InvalidClient("hint"), ClientMismatch(), MassFailureSuspected()]
)
def test_failure_requiring_operator_waits_retry_cap(error: AmoCallbackError) -> None:
    """An error that needs the operator waits for `retry_cap`, even if the access token expires earlier."""
    soon = START + timedelta(seconds=40)
    assert _failure(error, access_expires_at=soon).next_refresh_at == START + timedelta(seconds=900)


def test_failure_eight_rejected_refusals_wait_retry_cap() -> None:
    """After eight refusals with a rejected introspection the delay is `retry_cap`."""
    for accepted, refusals, seconds in ((False, 7, 30), (False, 8, 900), (True, 8, 30), (None, 8, 30)):
        error = UnauthorizedWithoutHint(401)
        error.accepted = accepted
        failure = _failure(error, refusals=refusals)
        assert failure.next_refresh_at == START + timedelta(seconds=seconds)
        assert failure.refused_at == (START if accepted is False else None)


def test_failure_suspended_answer_keeps_its_reason() -> None:
    """A suspended answer keeps its reason if a token was presented and an answer received."""
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
            _failure(error, possibly_spent_token=possibly_spent_token, presented_token=presented_token).suspended_reason
            is reason
        )


def test_failure_contains_connection_and_attempt() -> None:
    """A failure contains the ids of its connection and its attempt."""
    failure = _failure(RequestNotSent())
    assert (failure.connection_id, failure.attempt, failure.last_error) == (a_connection().id, "mine", "not_sent")
    assert _failure(RequestNotSent(), attempt=None).attempt == ""


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
def test_failure_of_recheck_keeps_needs_reauth_and_reason(
    error: AmoCallbackError, possibly_spent_token: str | None, reason: Reason, recheck_at: datetime
) -> None:
    """A failed recheck keeps the reason, except for a doubt, and a refusal stops rechecks until the expiry."""
    failure = _failure(
        error, possibly_spent_token=possibly_spent_token, status=Status.NEEDS_REAUTH, reason=Reason.EXPIRED
    )
    assert (failure.status, failure.reason) == (Status.NEEDS_REAUTH, reason)
    assert (failure.next_refresh_at, failure.needs_reauth_since, failure.recheck_at) == (None, None, recheck_at)
    assert (failure.in_doubt_for is not None) == isinstance(error, UnknownOutcome)


def test_is_terminal_only_for_invalid_token_and_unreadable_pair() -> None:
    """Only an invalid refresh token and an unreadable pair are terminal."""
    assert [is_terminal(error) for error in (InvalidRefreshToken(), DecryptionFailed())] == [True, True]
    assert not any(
        is_terminal(error) for error in (RequestNotSent(), UnknownOutcome("x"), AccountBlocked(402), ClientMismatch())
    )


def test_recheck_delay_is_a_day_except_for_unreadable() -> None:
    """The delay between rechecks is 15 minutes for an unreadable pair and a day for any other reason."""
    again = {reason: recheck_delay(reason, RefreshRules()) for reason in (None, *Reason)}
    assert again.pop(Reason.UNREADABLE) == timedelta(minutes=15)
    assert set(again.values()) == {DAY}
