"""The loop that delivers webhooks.

Webhooks are delivered concurrently, but the webhooks of one connection are delivered in order.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_or_stop
from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event, FailedDelivery, Level, Outage, failure_event
from amo_callback.webhooks.retry_policy import DeliveryResult, EndpointHealth, next_try

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.events import QueuedWebhook
    from amo_callback.webhooks.sender import Sender

AT_ONCE = 8
POLL = 5.0
"""Seconds between two queries for webhooks, because other processes also store webhooks."""
LEASE = timedelta(seconds=60)
"""The duration of a webhook's lease, which is much longer than the timeouts of a request and of the store.

The lease is compared with the wall clock. If the wall clock is moved forward during another process's delivery, or if
that process is suspended for a minute, the webhook is sent twice with the same id. Receivers must expect duplicates.
"""


class WebhookDispatcher:
    def __init__(self, core: Core, send: Sender) -> None:
        self._core = core
        self._send = send
        self._receiver = EndpointHealth(clock=core.clock, observer=core.observer)
        self._outage = Outage("webhooks", clock=core.clock, observer=core.observer)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Query for webhooks immediately, because a webhook was stored or a delivery has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver webhooks until shutdown; a failed round is logged, and the loop continues."""
        while not self._core.stop.is_set():
            self._wake.clear()
            try:
                pause = await self._start_due()
            except Exception as error:  # noqa: BLE001 -- a bug in one round must not end the loop
                self._outage.failed(error)
                pause = POLL
            else:
                self._outage.worked()
            await wait_or_stop(self._wake.wait(), stop=self._core.stop, grace=0, clock=self._core.clock, limit=pause)
        await asyncio.gather(*self._running.values())  # each request has a timeout

    async def _start_due(self) -> float:
        """Start due deliveries, at most `AT_ONCE` concurrently; return the seconds until the next query."""
        while (places := AT_ONCE - len(self._running)) > 0 and not self._core.stop.is_set():
            if pause := self._receiver.pause_left:
                return min(pause, POLL)
            now = self._core.clock.now()
            apart = tuple(self._running)  # deliveries in progress in this process, even if their leases have expired
            upcoming = await self._core.store.next_webhook(now=now, length=LEASE, exclude=apart)
            if upcoming is None or self._core.stop.is_set():
                return POLL
            if upcoming > now:  # no webhook is due, so a claim would be a useless write
                return min((upcoming - now).total_seconds(), POLL)
            lease = uuid.uuid4().hex
            claimed = await self._core.store.claim_webhooks(
                now=now, length=LEASE, lease=lease, limit=places, exclude=apart
            )
            for webhook in claimed:
                self._start(webhook, lease=lease)
        return POLL  # the end of a delivery wakes the loop

    def _start(self, webhook: QueuedWebhook, *, lease: str) -> None:
        def ended(_: object) -> None:
            self._running.pop(webhook.id, None)
            self.wake()

        task = asyncio.create_task(self._deliver(webhook, lease=lease), name=f"webhook:{webhook.id}")
        self._running[webhook.id] = task
        task.add_done_callback(ended)

    async def _deliver(self, webhook: QueuedWebhook, *, lease: str) -> None:
        """Try to deliver a webhook.

        If the result cannot be stored, the webhook is sent again after its lease expires.
        """
        try:
            answer = await self._post(webhook)
            self._receiver.note(webhook, answer)
            if answer.good:
                await self._end(webhook)
            else:
                await self._put_off(webhook, answer, lease=lease)
        except StoreUnavailable as error:
            self._outage.failed(error)
        except Exception as error:  # noqa: BLE001 -- a bug in one delivery must not stop the others
            self._core.observer(failure_event("webhooks.failed", error))

    async def _post(self, webhook: QueuedWebhook) -> DeliveryResult:
        try:
            return await self._send(webhook, self._core.clock.now())
        except Exception as bug:  # noqa: BLE001 -- a bug counts as a failed try, so that the webhook is eventually dead-lettered
            self._core.observer(failure_event("webhooks.failed", bug))
            return DeliveryResult(why="bug")

    async def _end(self, webhook: QueuedWebhook) -> None:
        late = webhook.tries > 1
        event = self._event("webhook.delivered", webhook, Level.INFO if late else Level.DEBUG)
        delivered = await self._core.store.webhook_delivered(webhook.id, events=[event] if late else [])
        if delivered and not late:
            self._core.observer(event)

    async def _put_off(self, webhook: QueuedWebhook, answer: DeliveryResult, *, lease: str) -> None:
        again = next_try(webhook, answer, now=self._core.clock.now(), random=self._core.random)
        if again is None:
            self._receiver.forget(webhook)
        name, level = ("webhook.dead_lettered", Level.ERROR) if again is None else ("webhook.failed", Level.DEBUG)
        event = self._event(name, webhook, level, error=answer.error)
        failed = FailedDelivery(id=webhook.id, lease=lease, error=answer.error, next_try_at=again)
        noted = await self._core.store.webhook_failed(failed, events=[event] if again is None else [])
        if noted and again is not None:
            self._core.observer(event)

    def _event(self, name: str, webhook: QueuedWebhook, level: Level, **more: object) -> Event:
        fields = {"webhook": webhook.id, "type": webhook.type, "tries": webhook.tries, **more}
        return Event(name=name, level=level, connection_id=webhook.connection_id, fields=fields)
