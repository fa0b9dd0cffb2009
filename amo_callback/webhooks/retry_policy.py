"""The result of a delivery, the time of its next try, and the health of the receiver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from amo_callback.events import Event, Level
from amo_callback.schedule import retry_after

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.clock import Clock
    from amo_callback.events import Observer, QueuedWebhook

BACKOFF = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0)
"""Seconds to wait after each failed try; the last value repeats."""
_JITTER = 0.2
"""The random variation of a wait, as a fraction; it separates the retries of webhooks that failed together."""
MAX_AGE = timedelta(days=1)
"""The age after which a webhook is dead-lettered instead of retried, if it had at least `LEAST_TRIES` tries."""
LEAST_TRIES = 5
"""The minimum number of tries before an old webhook is dead-lettered, because the receiver may be restarting."""
MOST_PATIENCE = 3600.0
"""The longest pause that a receiver can request, in seconds; the back-off is sufficient for longer outages."""
_OLD = 2 * BACKOFF[-1]
"""The number of seconds for which a webhook counts as failing after its last failed try.

If this process has not retried the webhook within that time, another process has delivered or dead-lettered it.
"""
_PAUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryResult:
    status: int | None = None
    why: str | None = None
    """The cause of the failure if there is no status."""
    retry_after: str | None = None
    date: str | None = None

    @property
    def good(self) -> bool:
        """Whether the receiver accepted the webhook."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def error(self) -> str:
        """The cause of the failure, or the response's status; contains no text from the response."""
        return self.why or f"status_{self.status}"

    def pause(self, now: datetime) -> float:
        """Return the pause in seconds that the receiver requests; 0 if it requests none."""
        if self.status not in _PAUSES:
            return 0.0
        return min(retry_after(self.retry_after, date=self.date, now=now) or 0.0, MOST_PATIENCE)


def next_try(
    webhook: QueuedWebhook, answer: DeliveryResult, *, now: datetime, random: Callable[[], float]
) -> datetime | None:
    """Return the time of a failed webhook's next try; `None` if the webhook is to be dead-lettered."""
    if answer.status == HTTPStatus.GONE:  # the receiver has unsubscribed
        return None
    wait = BACKOFF[min(max(webhook.tries, 1), len(BACKOFF)) - 1] * (1 + _JITTER * (2 * random() - 1))
    again = now + timedelta(seconds=math.ceil(max(wait, answer.pause(now))))
    if again > webhook.at + MAX_AGE and webhook.tries >= LEAST_TRIES:
        return None
    return again


class EndpointHealth:
    """The health of the receiver; its failure and its recovery are each logged once, not for each try."""

    def __init__(self, *, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._failing: dict[str, float] = {}
        """The monotonic time of the last failed try, by the id of the undelivered webhook."""
        self._works = True
        self._paused_until = clock.monotonic()

    @property
    def pause_left(self) -> float:
        """The remaining seconds of the pause that the receiver requested."""
        return max(self._paused_until - self._clock.monotonic(), 0.0)

    def forget(self, webhook: QueuedWebhook) -> None:
        """Forget a dead-lettered webhook, so that only other webhooks determine whether the receiver has recovered."""
        self._failing.pop(webhook.id, None)

    def note(self, webhook: QueuedWebhook, answer: DeliveryResult) -> None:
        now = self._clock.monotonic()
        self._paused_until = max(self._paused_until, now + answer.pause(self._clock.now()))
        if not answer.good:
            self._failing[webhook.id] = now
            if self._works:
                self._works = False
                self._observer(Event(name="webhook.failing", level=Level.ERROR, fields={"error": answer.error}))
            return
        self._failing.pop(webhook.id, None)
        self._failing = {name: at for name, at in self._failing.items() if now - at < _OLD}
        if not self._works and not self._failing:
            self._works = True
            self._observer(Event(name="webhook.recovered"))
