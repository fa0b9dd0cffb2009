"""The loop that delivers: what is due, some at once, each connection's in their order."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from amo_callback.concurrency import done_unless
from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event, FailedDelivery, Level, failure_event
from amo_callback.outage import Outage
from amo_callback.webhooks.endpoint_health import EndpointHealth
from amo_callback.webhooks.retry_policy import Answer, next_try

if TYPE_CHECKING:
    from amo_callback.core import Core
    from amo_callback.events import Notice
    from amo_callback.webhook import Signer
    from amo_callback.webhooks.sender import Sender

AT_ONCE = 8
LEASE = timedelta(seconds=60)
"""For how long a notice is one process's alone: well over a request's time, and the store's patience after it.

It is told by the wall clock: where that is put forward under another process's delivery, or that one is stopped for a
minute, the notice is sent twice under its one id, which costs nobody anything.
"""


class WebhookDispatcher:
    """Deliver what is in the outbox, for as long as the process lives."""

    def __init__(self, core: Core, *, sender: Sender, signer: Signer) -> None:
        self._core = core
        self._sender = sender
        self._signer = signer
        self._receiver = EndpointHealth(clock=core.clock, observer=core.observer)
        self._outage = Outage("courier", clock=core.clock, observer=core.observer)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look again now: a notice was written, or a delivery has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until stopped; an iteration that fails is told, and the loop goes on."""
        while not self._core.stop.is_set():
            self._wake.clear()
            try:
                pause = await self._start_due()
            except Exception as error:  # noqa: BLE001 -- because the loop must outlive any bug in one round
                self._outage.failed(error)
                pause = self._core.rules.poll_interval
            else:
                self._outage.worked()
            await done_unless(self._wake.wait(), stop=self._core.stop, grace=0, clock=self._core.clock, limit=pause)
        await asyncio.gather(*self._running.values())  # each has its own end to its patience

    async def _start_due(self) -> float:
        """Start what is due, as far as there are places; return how long nothing more can be."""
        while (places := AT_ONCE - len(self._running)) > 0 and not self._core.stop.is_set():
            if pause := self._receiver.pause_left:
                return min(pause, self._core.rules.poll_interval)
            now = self._core.clock.now()
            apart = tuple(self._running)  # our own, whatever the clock says of their leases
            upcoming = await self._core.store.next_notice(now=now, length=LEASE, apart_from=apart)
            if upcoming is None or upcoming > now:  # and nothing is written
                return self._until(upcoming, now)
            lease = uuid.uuid4().hex
            claimed = await self._core.store.claim_notices(
                now=now, length=LEASE, lease=lease, limit=places, apart_from=apart
            )
            for notice in claimed:
                self._start(notice, lease=lease)
        return self._core.rules.poll_interval  # the end of one wakes us

    def _start(self, notice: Notice, *, lease: str) -> None:
        def ended(_: object) -> None:
            self._running.pop(notice.id, None)
            self.wake()

        task = asyncio.create_task(self._deliver(notice, lease=lease), name=f"notice:{notice.id}")
        self._running[notice.id] = task
        task.add_done_callback(ended)

    def _until(self, upcoming: datetime | None, now: datetime) -> float:
        left = self._core.rules.poll_interval if upcoming is None else (upcoming - now).total_seconds()
        return min(left, self._core.rules.poll_interval)

    async def _deliver(self, notice: Notice, *, lease: str) -> None:
        """Try once; where the store does not take what came of it, the lease ends, and it is tried again."""
        try:
            answer = await self._post(notice)
            self._receiver.note(notice, answer)
            if answer.good:
                await self._end(notice)
            else:
                await self._put_off(notice, answer, lease=lease)
        except StoreUnavailable as error:
            self._outage.failed(error)
        except Exception as error:  # noqa: BLE001 -- because one notice is not the others' end
            self._tell_failed(error)

    async def _post(self, notice: Notice) -> Answer:
        try:
            return await self._sender.post(self._signer.message(notice, now=self._core.clock.now()))
        except Exception as bug:  # noqa: BLE001 -- because a notice that no bug lets go is put off, and parked, as others
            self._tell_failed(bug)
            return Answer(why="bug")

    async def _end(self, notice: Notice) -> None:
        late = notice.tries > 1
        event = self._event("notice.delivered", notice, Level.INFO if late else Level.DEBUG)
        delivered = await self._core.store.notice_delivered(notice.id, events=[event] if late else [])
        if delivered and not late:
            self._core.observer(event)

    async def _put_off(self, notice: Notice, answer: Answer, *, lease: str) -> None:
        again = next_try(notice, answer, now=self._core.clock.now(), random=self._core.random)
        if again is None:
            self._receiver.forget(notice)
        name, level = ("notice.parked", Level.ERROR) if again is None else ("notice.failed", Level.DEBUG)
        event = self._event(name, notice, level, error=answer.error)
        failure_event = FailedDelivery(id=notice.id, lease=lease, error=answer.error, next_try_at=again)
        noted = await self._core.store.notice_failed(failure_event, events=[event] if again is None else [])
        if noted and again is not None:
            self._core.observer(event)

    def _event(self, name: str, notice: Notice, level: Level, **more: object) -> Event:
        fields = {"notice": notice.id, "type": notice.type, "tries": notice.tries, **more}
        return Event(name=name, level=level, connection_id=notice.connection_id, fields=fields)

    def _tell_failed(self, error: Exception) -> None:
        self._core.observer(failure_event("courier.failed", error))
