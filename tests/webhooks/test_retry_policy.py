"""When a webhook is tried again, and when it is given up."""

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


def test_waits_grow_to_two_hours() -> None:
    """From seconds on, and the longest over and over."""
    assert [_wait(tries) for tries in range(1, 10)] == [*BACKOFF, BACKOFF[-1], BACKOFF[-1]]


def test_what_failed_together_does_not_come_back_together() -> None:
    """A fifth more or less, by chance."""
    assert (_wait(3, share=0), _wait(3, share=1)) == (96, 144)


def test_a_webhook_is_given_up_after_a_day() -> None:
    """Not before, whatever was tried; and not without five tries, however old it is."""
    assert _wait(30, age=DAY - BACKOFF[-1]) == BACKOFF[-1]
    assert _wait(30, age=DAY - BACKOFF[-1] + 1) is None
    assert _wait(5, age=9 * DAY) is None
    assert _wait(4, age=9 * DAY) is not None


def test_gone_is_gone() -> None:
    """At the first word."""
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
def test_a_wish_for_patience_is_respected_within_reason(status: int, asked: str | None, wait: float) -> None:
    """Of those who may wish, in seconds or as a date, an hour at most, and never for less than the back-off."""
    assert _wait(1, status=status, retry_after=asked) == wait
