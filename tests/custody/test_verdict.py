"""What a refresh without a pair means for its connection."""

from __future__ import annotations

from datetime import timedelta

import pytest

from amo_callback.custody.verdict import verdict_of
from amo_callback.errors import (
    AccountRefused,
    AmoCallbackError,
    ClientRefused,
    NotSent,
    OutcomeOpen,
    RateLimited,
    RefreshTokenDead,
    UnexplainedRefusal,
    UnknownRefusal,
    Unreadable,
)
from amo_callback.model import Reason, RefreshRules, Status, Verdict
from tests.builders import a_connection
from tests.fakes import START


def _judged(error: AmoCallbackError, *, doubtful: str | None = None) -> Verdict:
    claimed = a_connection(attempt="mine", spending="this", doubtful=doubtful)
    return verdict_of(error, claimed=claimed, now=START, rules=RefreshRules(), random=lambda: 1.0)


@pytest.mark.parametrize(
    ("error", "doubtful", "reason"),
    [
        (RefreshTokenDead(), None, Reason.REVOKED),
        (RefreshTokenDead(expired=True), None, Reason.EXPIRED),
        (RefreshTokenDead(), "this", Reason.IN_DOUBT),
        (RefreshTokenDead(), "one before", Reason.REVOKED),
        (Unreadable(), "this", Reason.UNREADABLE),
    ],
)
def test_only_listed_refusals_need_the_person(error: AmoCallbackError, doubtful: str | None, reason: Reason) -> None:
    """A dead token is revoked or expired, and in doubt only where this very token may have been spent by us."""
    verdict = _judged(error, doubtful=doubtful)
    assert (verdict.status, verdict.reason, verdict.next_refresh_at) == (Status.NEEDS_REAUTH, reason, None)
    assert (verdict.attempt, verdict.last_error) == ("mine", error.code)


@pytest.mark.parametrize(
    ("error", "seconds", "doubtful"),
    [
        (NotSent(), 30, False),
        (UnknownRefusal(status=400, hint=""), 30, False),
        (UnexplainedRefusal(401), 30, False),
        (RateLimited(7), 7, False),
        (AccountRefused(402), 900, False),
        (ClientRefused("hint"), 900, False),
        (OutcomeOpen("timeout"), 60, True),
    ],
)
def test_whatever_else_is_waited_out(error: AmoCallbackError, seconds: float, doubtful: bool) -> None:  # noqa: FBT001 -- because it is a column of the table above
    """The connection stays active; an open outcome marks the token as doubtful and waits for a lease's length."""
    verdict = _judged(error)
    assert (verdict.status, verdict.reason, verdict.open_for is not None) == (Status.ACTIVE, None, doubtful)
    assert verdict.next_refresh_at == START + timedelta(seconds=seconds)
