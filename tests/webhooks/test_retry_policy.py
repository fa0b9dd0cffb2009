"""The rules for retries and dead-lettering of webhooks."""

from datetime import timedelta
from typing import Any

import pytest

from amo_callback.events import QueuedWebhook
from amo_callback.webhooks.retry_policy import BACKOFF, DeliveryResult, next_try
from tests.fakes import START

DAY = 86_400.0


def _webhook(tries: int) -> QueuedWebhook:
    return QueuedWebhook(
        number=1, id="n", at=START, type="connection.moved", connection_id="c", data={}, tries=tries, next_try_at=START
    )


def _wait(tries: int, *, age: float = 0, share: float = 0.5, **answer: Any) -> float | None:
    now = START + timedelta(seconds=age)
    again = next_try(_webhook(tries), DeliveryResult(**{"status": 500, **answer}), now=now, random=lambda: share)
    return None if again is None else (again - now).total_seconds()


def test_next_try_wait_grows_to_two_hours() -> None:
    """The wait grows from seconds to two hours and then stays at two hours."""
    assert [_wait(tries) for tries in range(1, 10)] == [*BACKOFF, BACKOFF[-1], BACKOFF[-1]]


def test_next_try_wait_varies_by_a_fifth() -> None:
    """Webhooks that failed together are not retried together, because the wait varies randomly."""
    assert (_wait(3, share=0), _wait(3, share=1)) == (96, 144)


def test_next_try_after_a_day_is_none() -> None:
    """A webhook is dead-lettered after a day and five tries, but not earlier."""
    assert _wait(30, age=DAY - BACKOFF[-1]) == BACKOFF[-1]
    assert _wait(30, age=DAY - BACKOFF[-1] + 1) is None
    assert _wait(5, age=9 * DAY) is None
    assert _wait(4, age=9 * DAY) is not None


def test_next_try_after_410_is_none() -> None:
    """410 Gone dead-letters at the first try."""
    assert _wait(1, status=410) is None


@pytest.mark.parametrize(
    ("status", "asked", "wait"),
    [
        (429, "120", 120), (503, "120", 120), (503, "1", 5), (429, "99999", 3600), (429, "9" * 30, 3600),
        (429, "Mon, 23 Nov 2026 12:02:00 GMT", 120), (503, "Mon, 23 Nov 2026 12:02:00 GMT", 120),
        (503, "Tue, 24 Nov 2026 12:00:00 GMT", 3600), (429, "Mon, 23 Nov 2026 11:00:00 GMT", 5),
        (500, "Mon, 23 Nov 2026 12:02:00 GMT", 5), (429, "-1", 5), (429, "soon", 5), (429, "٣٠", 5),
        (429, None, 5), (500, "120", 5),
    ],
)  # fmt: skip
def test_next_try_retry_after_of_429_and_503_is_bounded(status: int, asked: str | None, wait: float) -> None:
    """`Retry-After`, in seconds or as a date, counts for at most an hour and never less than the back-off."""
    assert _wait(1, status=status, retry_after=asked) == wait
