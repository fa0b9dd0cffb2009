"""The health of the operator's receiver: whether it accepts webhooks, and until when it wants none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.events import Event, Level
from amo_callback.webhooks.retry_policy import WAITS

if TYPE_CHECKING:
    from amo_callback.clock import Clock
    from amo_callback.events import Observer, QueuedWebhook
    from amo_callback.webhooks.retry_policy import DeliveryResult

_OLD = 2 * WAITS[-1]
"""Seconds after which a webhook that failed here has ended elsewhere, or it would have been tried again."""


class EndpointHealth:
    """The state of the receiver: its failure and its recovery are logged once, not each try."""

    def __init__(self, *, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._failing: dict[str, float] = {}
        """When each webhook that has not gone through failed last."""
        self._works = True
        self._paused_until = clock.monotonic()

    @property
    def pause_left(self) -> float:
        """Seconds for which the receiver wants nothing, as it says."""
        return max(self._paused_until - self._clock.monotonic(), 0.0)

    def forget(self, webhook: QueuedWebhook) -> None:
        """Forget a dead-lettered webhook: the others show whether the receiver works."""
        self._failing.pop(webhook.id, None)

    def note(self, webhook: QueuedWebhook, answer: DeliveryResult) -> None:
        """Record the result of a try."""
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
