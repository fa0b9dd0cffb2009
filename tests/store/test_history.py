"""Events and webhooks in the store."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.events import WEBHOOK_EVENTS, Event, FailedDelivery, connection_event
from amo_callback.model import RefreshTrigger
from tests.builders import DAY, a_claim, a_connection, a_failure, an_event, now, present, save
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.events import QueuedWebhook, StoredEvent
    from amo_callback.store import Store
    from tests.fakes import FakeClock

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=60)
OVER = timedelta(0)
"""The length of a lease that ends immediately."""


async def _write(store: Store, *accounts: int) -> list[str]:
    """Write a webhook for a connection of each account."""
    for account in accounts:
        connection = a_connection(account)
        if await store.connection(connection.id) is None:
            await save(store, connection)
        stored = await now(store, connection)
        await store.schedule_recheck(stored, at=START, events=[connection_event("connection.moved", stored)])
    return [webhook.id for webhook in await store.webhooks(limit=99)]


async def _claim(
    store: Store, *, at: datetime = START, lease: str = "lease-1", limit: int = 9, length: timedelta = LEASE
) -> list[str]:
    found = await store.claim_webhooks(now=at, length=length, lease=lease, limit=limit)
    return sorted(webhook.id for webhook in found)


async def _fail(store: Store, webhook: str, *, lease: str = "lease-1", again: datetime | None = None) -> bool:
    failed = FailedDelivery(id=webhook, lease=lease, error="status_500", next_try_at=again)
    return await store.webhook_failed(failed, events=[Event(name="webhook.dead_lettered")] if again is None else [])


async def _next(store: Store, at: datetime = START) -> datetime | None:
    return await store.next_webhook(now=at, length=LEASE)


async def _all(store: Store) -> Sequence[QueuedWebhook]:
    return await store.webhooks(limit=99)


async def test_webhooks_are_listed_in_order_by_page(store: Store) -> None:
    """Webhooks, including those with equal times, are listed in order, page by page."""
    ids = await _write(store, 1, 2, 1)
    first = await store.webhooks(limit=2)
    assert [webhook.id for webhook in first] == ids[:2]
    assert [webhook.id for webhook in await store.webhooks(limit=2, after=first[-1].number)] == ids[2:]


async def test_claim_webhooks_excludes_leased_webhooks(store: Store) -> None:
    """A leased webhook is not claimed by another process, and the next due time is the end of the lease."""
    ids = await _write(store, 1, 2)
    assert await _next(store) == START
    assert await _claim(store, limit=1) == ids[:1]
    assert await _claim(store, lease="lease-2") == ids[1:]
    assert await _claim(store) == []
    upcoming = present(await _next(store))
    assert upcoming > START
    assert {webhook.tries for webhook in await _all(store)} == {1}


async def test_claim_webhooks_after_lease_reclaims_webhook(store: Store) -> None:
    """Another process claims a webhook after its lease, because its claimant has ended or is stopped."""
    ids = await _write(store, 1, 2)
    assert await _claim(store, length=OVER) == sorted(ids)
    assert await _claim(store, lease="lease-2") == sorted(ids)
    assert {webhook.tries for webhook in await _all(store)} == {2}


async def test_claim_webhooks_with_lease_in_far_future_reclaims_webhook(store: Store) -> None:
    """A lease longer than usual, set by a wrong clock, counts as ended."""
    ids = await _write(store, 1)
    assert await _claim(store, length=DAY) == ids
    assert await _claim(store, length=LEASE) == ids


async def test_claim_webhooks_returns_first_pending_per_connection(store: Store) -> None:
    """A connection's next webhook is claimed only after the previous one was delivered or dead-lettered."""
    one, two, three = await _write(store, 1, 1, 1)
    assert await _claim(store) == [one]
    assert await _fail(store, one, again=START + 5 * SECOND)
    assert await _claim(store) == []
    assert await _next(store) == START + 5 * SECOND
    assert await _claim(store, at=START + 5 * SECOND) == [one]
    assert await _fail(store, one)
    assert await _claim(store) == [two]
    assert await store.webhook_delivered(two)
    assert await _claim(store) == [three]
    assert await store.webhook_delivered(three)
    assert await _next(store) is None


async def test_webhook_result_of_earlier_claimant_is_refused_unless_delivered(store: Store) -> None:
    """A failure is stored only for the latest claim, but a delivery for any claim, once."""
    [webhook] = await _write(store, 1)
    await _claim(store, length=OVER)
    await _claim(store, lease="lease-2")
    assert not await _fail(store, webhook)
    assert await store.webhook_delivered(webhook, events=[Event(name="webhook.delivered")])
    assert not await store.webhook_delivered(webhook, events=[Event(name="webhook.delivered")])
    assert not await _fail(store, webhook, lease="lease-2")
    assert [event.name for event in await store.events(limit=9)].count("webhook.delivered") == 1
    assert "webhook.dead_lettered" not in {event.name for event in await store.events(limit=9)}


async def test_retry_webhooks_requeues_dead_lettered_and_waiting(store: Store) -> None:
    """A retry by id, or of all dead-lettered webhooks, resets their tries; a waiting webhook keeps its count."""
    one, two, three = await _write(store, 1, 2, 3)
    await _claim(store)
    assert await _fail(store, one)
    assert await _fail(store, two)
    assert await _fail(store, three, again=START + DAY)
    assert await _next(store) == START + DAY
    assert await store.retry_webhooks("unknown") == []
    assert await store.retry_webhooks(one) == [one]
    assert await store.retry_webhooks(None) == [two]
    assert await store.retry_webhooks(None) == []
    assert await _claim(store) == sorted([one, two])
    assert await store.retry_webhooks(three) == [three]
    assert await _claim(store) == [three]
    assert {webhook.id: webhook.tries for webhook in await _all(store)} == {one: 1, two: 1, three: 2}


async def test_on_webhook_runs_after_commit_with_webhook(store: Store) -> None:
    """The callback runs after a commit of a webhook and after a retry, and not if nothing was written."""
    result: list[int] = []
    await _write(store, 1)
    store.on_webhook(lambda: result.append(1))
    stored = await now(store, a_connection(1))
    event = connection_event("connection.moved", stored)
    assert await store.schedule_recheck(stored, at=START, events=[event])
    assert len(result) == 1
    assert not await store.schedule_recheck(stored, at=START, events=[event])
    await store.record(connection_event("refresh.failed", stored))
    assert len(result) == 1
    await store.retry_webhooks(None)
    assert len(result) == 2


async def test_forget_webhooks_after_month(store: Store, clock: FakeClock) -> None:
    """A webhook is deleted 30 days after its creation, or after its dead-lettering."""
    dead_lettered, waiting = await _write(store, 1, 2)
    clock.advance(DAY.total_seconds())
    await _claim(store, limit=1)
    assert await _fail(store, dead_lettered)

    async def left(days: int) -> list[str]:
        await store.forget(now=START + days * DAY + SECOND)
        return [webhook.id for webhook in await _all(store)]

    assert await left(29) == [dead_lettered, waiting]
    assert await left(30) == [dead_lettered]
    assert await left(31) == []
    [other] = await _write(store, 3)
    assert await left(6) == [other]


async def test_history_without_receiver_stores_no_webhooks(store: Store) -> None:
    """The event is recorded, but no webhook is stored."""
    store.stores_webhooks = False
    assert await _write(store, 1) == []
    assert [event.name for event in await store.events(limit=1)] == ["connection.moved"]


async def test_clock_moved_back_keeps_webhook_due(store: Store) -> None:
    """If the clock is moved back, a webhook's times are moved with it and its next try is due."""
    if store.has_shared_clock:
        pytest.skip("one instance's clock must not shift the others' times")
    [webhook] = await _write(store, 1)
    await _claim(store)
    await _fail(store, webhook, again=START + 5 * SECOND)
    await store.record_time(now=lambda: START)
    await store.record_time(now=lambda: START - DAY)
    [shifted] = await _all(store)
    assert (shifted.at, shifted.next_try_at) == (START - DAY, START - DAY)


# --- events ------------------------------------------------------------


async def test_event_is_stored_with_its_change(store: Store) -> None:
    """An event is stored in the transaction of its change, and not if nothing has changed."""
    stored = await save(store, a_connection())
    event = an_event(stored, "refresh.failed", status=503, at=START, trigger=RefreshTrigger.SCHEDULE)
    assert await store.save_failure(a_failure(stored), events=[event]) is None
    assert await store.events(limit=10) == []
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored), events=[event])
    [result] = await store.events(limit=10)
    assert (result.name, result.connection_id, result.process) == ("refresh.failed", stored.id, "one")
    assert result.details == {"status": 503, "at": "2026-11-23T12:00:00Z", "trigger": "schedule"}


async def test_events_are_listed_newest_first_by_page(store: Store) -> None:
    """Events of all connections or of one are listed newest first, page by page."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    for number in range(6):
        await store.record(an_event(other if number % 3 == 0 else one, number=number))

    async def pages(connection_id: str | None) -> list[object]:
        found: list[StoredEvent] = []
        while page := await store.events(connection_id=connection_id, before=found[-1].id if found else None, limit=2):
            found += page
        return [event.details["number"] for event in found]

    assert await pages(None) == [5, 4, 3, 2, 1, 0]
    assert await pages(one.id) == [5, 4, 2, 1]
    assert await pages("unknown") == []


async def test_forget_deletes_old_events_in_batches(store: Store, clock: FakeClock) -> None:
    """Events older than ninety days are deleted, a thousand per call."""
    stored = await save(store, a_connection())
    for number in range(1002):
        await store.record(an_event(stored, number=number))
    clock.advance(DAY.total_seconds())
    await store.record(an_event(stored, number=-1))
    for left in (1003, 3, 1, 1):
        assert len(await store.events(limit=2000)) == left
        assert await store.forget(now=START + 90 * DAY + SECOND) is (left == 1003)


@pytest.mark.parametrize("name", sorted(WEBHOOK_EVENTS))
async def test_webhook_is_stored_with_its_change(store: Store, name: str) -> None:
    """A webhook is stored in the transaction of its change, with its own id and without secrets."""
    stored = await save(store, a_connection())
    for _ in range(2):
        stored = await now(store, stored)
        assert await store.schedule_recheck(stored, at=START, events=[an_event(stored, name, reason="x")])
        assert not await store.schedule_recheck(stored, at=START, events=[an_event(stored, name)])
    one, other = await store.webhooks(limit=10)
    assert one.id != other.id
    assert (one.type, one.at) == (name, START)
    assert one.data == {
        "connection_id": stored.id, "account_id": stored.account_id, "domain": stored.domain,
        "owners": [], "reason": "x",
    }  # fmt: skip
