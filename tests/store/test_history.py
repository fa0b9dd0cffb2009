"""What every store promises of events and webhooks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.events import WEBHOOK_EVENTS, Event, FailedDelivery, connection_event
from amo_callback.model import RefreshTrigger
from tests.builders import DAY, a_claim, a_connection, a_failure, now, present, save
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.events import QueuedWebhook, StoredEvent
    from amo_callback.model import Connection
    from amo_callback.store import Store
    from tests.fakes import FakeClock

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=60)
OVER = timedelta(0)
"""The length of a lease that has ended as it began."""


async def _write(store: Store, *accounts: int) -> list[str]:
    """Write a webhook of each of these accounts' connections."""
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


async def test_webhooks_are_read_in_their_order_page_by_page(store: Store) -> None:
    """Also those of the same moment."""
    ids = await _write(store, 1, 2, 1)
    first = await store.webhooks(limit=2)
    assert [webhook.id for webhook in first] == ids[:2]
    assert [webhook.id for webhook in await store.webhooks(limit=2, after=first[-1].number)] == ids[2:]


async def test_a_webhook_is_one_claimants_until_its_lease_ends(store: Store) -> None:
    """Whoever looks meanwhile is told when that is."""
    ids = await _write(store, 1, 2)
    assert await _next(store) == START
    assert await _claim(store, limit=1) == ids[:1]
    assert await _claim(store, lease="lease-2") == ids[1:]
    assert await _claim(store) == []
    upcoming = present(await _next(store))
    assert upcoming > START
    assert {webhook.tries for webhook in await _all(store)} == {1}


async def test_a_webhook_is_anybodys_after_its_lease(store: Store) -> None:
    """The process that was at it has died, or was stopped for long."""
    ids = await _write(store, 1, 2)
    assert await _claim(store, length=OVER) == sorted(ids)
    assert await _claim(store, lease="lease-2") == sorted(ids)
    assert {webhook.tries for webhook in await _all(store)} == {2}


async def test_a_lease_of_a_clock_that_was_ahead_is_over(store: Store) -> None:
    """Nobody waits for days because somebody's clock was wrong."""
    ids = await _write(store, 1)
    assert await _claim(store, length=DAY) == ids
    assert await _claim(store, length=LEASE) == ids


async def test_the_first_of_a_connection_that_is_not_dead_lettered_is_due(store: Store) -> None:
    """The next waits for its delivery, or for its end."""
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


async def test_only_the_latest_claimant_says_what_became_of_it(store: Store) -> None:
    """But whoever has delivered it, has."""
    [webhook] = await _write(store, 1)
    await _claim(store, length=OVER)
    await _claim(store, lease="lease-2")
    assert not await _fail(store, webhook)
    assert await store.webhook_delivered(webhook, events=[Event(name="webhook.delivered")])
    assert not await store.webhook_delivered(webhook, events=[Event(name="webhook.delivered")])
    assert not await _fail(store, webhook, lease="lease-2")
    assert [event.name for event in await store.events(limit=9)].count("webhook.delivered") == 1
    assert "webhook.dead_lettered" not in {event.name for event in await store.events(limit=9)}


async def test_what_is_dead_lettered_begins_anew_where_it_is_asked_for(store: Store) -> None:
    """One by its id, or all that are dead-lettered; what waits can be hurried, and keeps its count."""
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


async def test_whoever_delivers_is_told_of_what_is_committed(store: Store) -> None:
    """Of a webhook, and of one that is to be tried again; of nothing that was not written."""
    told: list[int] = []
    await _write(store, 1)
    store.on_webhook(lambda: told.append(1))
    stored = await now(store, a_connection(1))
    event = connection_event("connection.moved", stored)
    assert await store.schedule_recheck(stored, at=START, events=[event])
    assert len(told) == 1
    assert not await store.schedule_recheck(stored, at=START, events=[event])
    await store.record(connection_event("refresh.failed", stored))
    assert len(told) == 1
    await store.retry_webhooks(None)
    assert len(told) == 2


async def test_webhooks_are_kept_for_a_week_and_for_a_month_where_somebody_delivers_them(
    store: Store, clock: FakeClock
) -> None:
    """Those that were given up always for a month, from then on."""
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


async def test_a_clock_that_went_back_puts_no_webhook_off(store: Store) -> None:
    """What was to be tried later is due, and is not older than it was."""
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


def _happened(connection: Connection, name: str = "connection.moved", **fields: object) -> Event:
    return Event(name=name, connection_id=connection.id, fields={"reason": None, **fields})


async def test_a_change_and_its_events_are_one(store: Store) -> None:
    """Whoever finds the change finds what it was; what was not changed was not told."""
    stored = await save(store, a_connection())
    event = _happened(stored, "refresh.failed", status=503, at=START, trigger=RefreshTrigger.SCHEDULE)
    assert await store.save_failure(a_failure(stored), events=[event]) is None
    assert await store.events(limit=10) == []
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored), events=[event])
    [told] = await store.events(limit=10)
    assert (told.name, told.connection_id, told.process) == ("refresh.failed", stored.id, "one")
    assert told.details == {"status": 503, "at": "2026-11-23T12:00:00Z", "trigger": "schedule"}


async def test_events_are_read_newest_first_page_by_page(store: Store) -> None:
    """Of all, or of one connection, each once."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    for number in range(6):
        await store.record(_happened(other if number % 3 == 0 else one, number=number))

    async def pages(connection_id: str | None) -> list[object]:
        found: list[StoredEvent] = []
        while page := await store.events(connection_id=connection_id, before=found[-1].id if found else None, limit=2):
            found += page
        return [event.details["number"] for event in found]

    assert await pages(None) == [5, 4, 3, 2, 1, 0]
    assert await pages(one.id) == [5, 4, 2, 1]
    assert await pages("unknown") == []


async def test_old_events_are_forgotten_in_steps(store: Store, clock: FakeClock) -> None:
    """After ninety days, a thousand at once; younger ones stay."""
    stored = await save(store, a_connection())
    for number in range(1002):
        await store.record(_happened(stored, number=number))
    clock.advance(DAY.total_seconds())
    await store.record(_happened(stored, number=-1))
    for left in (1003, 3, 1, 1):
        assert len(await store.events(limit=2000)) == left
        assert await store.forget(now=START + 90 * DAY + SECOND) is (left == 1003)


@pytest.mark.parametrize("name", sorted(WEBHOOK_EVENTS))
async def test_a_change_that_others_are_notified_of_is_stored_with_its_webhook(store: Store, name: str) -> None:
    """Committed with the change, or not at all, each under a name of its own, and without a secret."""
    stored = await save(store, a_connection())
    for _ in range(2):
        stored = await now(store, stored)
        assert await store.schedule_recheck(stored, at=START, events=[_happened(stored, name, reason="x")])
        assert not await store.schedule_recheck(stored, at=START, events=[_happened(stored, name)])
    one, other = await store.webhooks(limit=10)
    assert one.id != other.id
    assert (one.type, one.at) == (name, START)
    assert one.data == {
        "connection_id": stored.id, "account_id": stored.account_id, "domain": stored.domain,
        "owners": [], "reason": "x",
    }  # fmt: skip
