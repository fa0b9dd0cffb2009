"""Webhook delivery: in order, at least once, and once if nothing fails."""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from amo_callback.events import Level
from amo_callback.store import Store, open_store
from amo_callback.webhooks.dispatcher import AT_ONCE, LEASE
from tests.builders import DAY
from tests.fakes import START, FaultyStore, Override
from tests.webhooks.conftest import CONNECT, DispatcherHarness
from tests.webhooks.receiver import HANG_UP

HOUR = 3600.0


def _unused_url() -> str:
    """Return a URL without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/hook"


async def test_dispatcher_committed_webhook_is_delivered_immediately(harness: DispatcherHarness) -> None:
    """The write itself wakes the dispatcher, so no time passes."""
    async with harness.dispatcher():
        await harness.clock.until_sleeping()
        webhook = await harness.write("connection.connected")
        await harness.witness.until("webhook.delivered")
    [delivery] = harness.receiver.deliveries
    assert delivery.id == webhook.id
    assert delivery.content == {
        "type": "connection.connected",
        "timestamp": "2026-11-23T12:00:00Z",
        "data": {
            "connection_id": webhook.connection_id, "account_id": "1", "domain": "a1.amocrm.ru", "owners": [],
        },
    }  # fmt: skip
    assert await harness.waiting() == []
    assert await harness.store.events(connection_id=webhook.connection_id, limit=1) != []
    assert "webhook.delivered" not in {event.name for event in await harness.store.events(limit=9)}


@pytest.mark.parametrize("name", ["connection.needs_reauth", "connection.expiring"])
async def test_webhook_for_user_action_has_reconnect_url(harness: DispatcherHarness, name: str) -> None:
    """The webhook has the reconnect address, and the reason if it is known."""
    async with harness.dispatcher():
        await harness.write(name, reason="revoked")
        await harness.witness.until("webhook.delivered")
    data = harness.receiver.deliveries[0].content["data"]
    assert (data["reason"], data["reconnect_url"]) == ("revoked", CONNECT)


@pytest.mark.parametrize("status", [500, 404, 400, 301, 307, HANG_UP])
async def test_dispatcher_answer_other_than_2xx_is_retried_with_same_id(
    harness: DispatcherHarness, status: int
) -> None:
    """Errors, closed connections and redirects, which are not followed, are retried with the same body."""
    harness.receiver.statuses = [status]
    harness.receiver.headers = {"Location": "/elsewhere"}
    webhook = await harness.write()
    async with harness.dispatcher():
        failed = await harness.witness.until("webhook.failed")
        assert failed.fields["error"] == (f"status_{status}" if status else "connection_lost")
        [waiting] = await harness.waiting()
        assert (waiting.tries, waiting.last_error) == (1, failed.fields["error"])
        assert waiting.next_try_at == START + timedelta(seconds=5)
        await harness.after(4.9)
        await harness.clock.until_sleeping()
        assert len(harness.receiver.deliveries) == 1
        await harness.after(0.2)
        await harness.witness.until("webhook.delivered")
    first, second = harness.receiver.deliveries
    assert (
        (first.id, first.body, first.path) == (second.id, second.body, second.path) == (webhook.id, first.body, "/hook")
    )
    assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + 5
    assert await harness.waiting() == []
    [delivered, *_] = await harness.store.events(limit=1)
    assert (delivered.name, delivered.details["tries"]) == ("webhook.delivered", 2)


async def test_dispatcher_response_body_is_not_read(harness: DispatcherHarness) -> None:
    """The answer's head decides, so an endless body does not prevent the delivery."""
    harness.receiver.body = b"x" * 2**24
    await harness.write()
    async with harness.dispatcher():
        await harness.witness.until("webhook.delivered")


async def test_dispatcher_request_without_answer_times_out_and_is_retried(harness: DispatcherHarness) -> None:
    """A timeout is retried like any other failure."""
    harness.receiver.open.clear()
    await harness.write()
    async with harness.dispatcher(wait_limit=0.1):
        assert (await harness.witness.until("webhook.failed")).fields["error"] == "timeout"
    harness.receiver.open.set()
    async with harness.dispatcher():
        await harness.after(5)
        await harness.witness.until("webhook.delivered")
    assert len(set(harness.receiver.ids)) == 1


async def test_dispatcher_410_dead_letters_immediately(harness: DispatcherHarness) -> None:
    """410 Gone dead-letters the webhook, and the connection's next one is delivered."""
    harness.receiver.statuses = [410]
    first, second = await harness.write(), await harness.write()
    async with harness.dispatcher():
        dead_lettered = await harness.witness.until("webhook.dead_lettered")
        await harness.witness.until("webhook.delivered")
    assert (dead_lettered.level, dead_lettered.fields["webhook"], dead_lettered.fields["error"]) == (
        Level.ERROR,
        first.id,
        "status_410",
    )
    assert harness.receiver.ids == [first.id, second.id]
    [kept] = await harness.waiting()
    assert (kept.id, kept.dead_lettered_at, kept.last_error) == (first.id, START, "status_410")


@pytest.mark.parametrize("status", [429, 503])
async def test_dispatcher_retry_after_pauses_every_webhook(harness: DispatcherHarness, status: int) -> None:
    """`Retry-After` delays every webhook, not only the one that was answered."""
    harness.receiver.statuses = [status]
    harness.receiver.headers = {"Retry-After": "120"}
    await harness.write()
    async with harness.dispatcher():
        await harness.witness.until("webhook.failed")
        await harness.write(account=2)
        await harness.after(119)
        await harness.clock.until_sleeping()
        assert len(harness.receiver.deliveries) == 1
        await harness.after(2)
        await harness.witness.until("webhook.delivered", times=2)


async def test_dispatcher_keeps_order_per_connection(harness: DispatcherHarness) -> None:
    """A webhook waits for the connection's previous one, while those of other connections continue."""
    harness.receiver.statuses = [500]
    first = await harness.write()
    async with harness.dispatcher():
        await harness.witness.until("webhook.failed")
        second, third = await harness.write(), await harness.write()
        other = await harness.write(account=2)
        await harness.witness.until("webhook.delivered")
        await harness.after(5)
        await harness.witness.until("webhook.delivered", times=4)
    assert harness.receiver.ids == [first.id, other.id, first.id, second.id, third.id]


async def test_dispatcher_limits_concurrent_deliveries(harness: DispatcherHarness) -> None:
    """At most a fixed number of deliveries is in flight; the end of one starts the next."""
    harness.receiver.open.clear()
    for account in range(AT_ONCE + 3):
        await harness.write(account=account)
    async with harness.dispatcher():
        await harness.receiver.until_came(AT_ONCE)
        await harness.clock.until_sleeping()
        assert len(harness.receiver.deliveries) == AT_ONCE
        harness.receiver.open.set()
        await harness.witness.until("webhook.delivered", times=AT_ONCE + 3)
    assert len(set(harness.receiver.ids)) == AT_ONCE + 3


async def test_dispatcher_receiver_down_for_two_days_dead_letters_webhooks(harness: DispatcherHarness) -> None:
    """The failure is logged once and each dead-lettered webhook once; `retry` delivers them."""
    one, other = await harness.write(), await harness.write(account=2)
    async with harness.dispatcher(url=_unused_url()):
        for tries in range(1, 40):
            await harness.witness.until_either(("webhook.failed", "webhook.dead_lettered"), times=2 * tries)
            if len(harness.witness.named("webhook.dead_lettered")) == 2:
                break
            await harness.after(2 * HOUR)
        assert (DAY - timedelta(hours=2)).total_seconds() < (harness.clock.now() - START).total_seconds() <= 2 * 86400
        await harness.after(DAY.total_seconds())
        await harness.clock.until_sleeping()
    assert [event.fields["error"] for event in harness.witness.named("webhook.failing")] == ["unreachable"]
    dead_lettered = [event for event in await harness.store.events(limit=9) if event.name == "webhook.dead_lettered"]
    assert {event.details["webhook"] for event in dead_lettered} == {one.id, other.id}
    async with harness.dispatcher():
        await harness.clock.until_sleeping()
        assert harness.receiver.deliveries == []
        assert set(await harness.store.retry_webhooks(None)) == {one.id, other.id}
        await harness.witness.until("webhook.delivered", times=2)
    assert set(harness.receiver.ids) == {one.id, other.id}
    assert await harness.waiting() == []


async def test_dispatcher_failure_and_recovery_are_logged_once(harness: DispatcherHarness) -> None:
    """Each change is one event, however many tries there were."""
    harness.receiver.statuses = [500, 502]
    await harness.write()
    async with harness.dispatcher():
        await harness.witness.until("webhook.failed")
        await harness.after(5)
        await harness.witness.until("webhook.failed", times=2)
        await harness.after(30)
        await harness.witness.until("webhook.delivered")
        await harness.write()
        await harness.witness.until("webhook.delivered", times=2)
    changes = [event for event in harness.witness.events if event.name in {"webhook.failing", "webhook.recovered"}]
    assert [(event.name, dict(event.fields)) for event in changes] == [
        ("webhook.failing", {"error": "status_500"}), ("webhook.recovered", {}),
    ]  # fmt: skip


async def test_dispatcher_one_failing_webhook_logs_no_recovery(harness: DispatcherHarness) -> None:
    """While other webhooks are delivered, a failing one is not logged as recovered."""
    async with harness.dispatcher():
        harness.receiver.statuses = [500]
        await harness.write()
        await harness.witness.until("webhook.failed")
        for number in range(3):
            await harness.write(account=2)
            await harness.witness.until("webhook.delivered", times=number + 1)
        assert "webhook.recovered" not in harness.witness.names()
        await harness.after(5)
        await harness.witness.until("webhook.recovered")
    assert len(harness.witness.named("webhook.failing")) == 1


async def test_dispatchers_of_two_processes_deliver_each_webhook_once(
    harness: DispatcherHarness, tmp_path: Path
) -> None:
    """Both read one table `webhooks` concurrently, and a connection's order holds across them."""
    written = [await harness.write(account=account) for _ in range(4) for account in range(10)]
    async with (
        open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=harness.clock) as store,
        harness.dispatcher(),
        harness.dispatcher(store=store),
    ):
        await harness.witness.until("webhook.delivered", times=len(written))
    assert sorted(harness.receiver.ids) == sorted(webhook.id for webhook in written)
    for account in {webhook.connection_id for webhook in written}:
        expected = [webhook.id for webhook in written if webhook.connection_id == account]
        assert [name for name in harness.receiver.ids if name in expected] == expected


async def test_dispatcher_delivers_webhook_of_killed_process_after_lease(harness: DispatcherHarness) -> None:
    """The webhook may have been delivered already: two deliveries under one id are better than none."""
    webhook = await harness.write()
    now = harness.clock.now()
    [claimed] = await harness.store.claim_webhooks(now=now, length=LEASE, lease="killed", limit=9)
    assert claimed.id == webhook.id
    async with harness.dispatcher():
        await harness.after(LEASE.total_seconds() - 1)
        await harness.clock.until_sleeping()
        assert harness.receiver.deliveries == []
        await harness.after(1)
        await harness.witness.until("webhook.delivered")
    assert harness.receiver.ids == [webhook.id]


async def test_dispatcher_clock_moved_forward_repeats_no_delivery_in_flight(harness: DispatcherHarness) -> None:
    """A process does not repeat its own deliveries in flight, even if their lease appears to have expired."""
    harness.receiver.open.clear()
    webhook = await harness.write()
    async with harness.dispatcher():
        await harness.receiver.until_came(1)
        await harness.after(HOUR)
        await harness.clock.until_sleeping()
        assert harness.receiver.ids == [webhook.id]
        harness.receiver.open.set()
        await harness.witness.until("webhook.delivered")
    assert harness.receiver.ids == [webhook.id]


async def test_dispatcher_stop_finishes_delivery_in_flight_only(harness: DispatcherHarness) -> None:
    """The receiver's answer is stored, and the next webhook is left for the next dispatcher."""
    harness.receiver.open.clear()
    first, second = await harness.write(), await harness.write()
    async with harness.dispatcher():
        await harness.receiver.until_came(1)
        harness.stop.set()
        asyncio.get_running_loop().call_soon(harness.receiver.open.set)
    assert harness.receiver.ids == [first.id]
    assert [webhook.id for webhook in await harness.waiting()] == [second.id]
    async with harness.dispatcher():
        await harness.witness.until("webhook.delivered", times=2)
    assert harness.receiver.ids == [first.id, second.id]


async def test_dispatcher_stop_during_query_claims_no_webhook(harness: DispatcherHarness) -> None:
    """A webhook that a query finds due during shutdown waits for the next start."""
    webhook = await harness.write()

    async def next_webhook(**query: Any) -> Any:
        harness.stop.set()
        return await harness.store.next_webhook(**query)

    async with harness.dispatcher(store=cast("Store", Override(harness.store, next_webhook=next_webhook))):
        await harness.stop.wait()
    assert harness.receiver.ids == []
    assert [waiting.id for waiting in await harness.waiting()] == [webhook.id]


async def test_dispatcher_stop_waits_at_most_one_request_timeout(harness: DispatcherHarness) -> None:
    """A webhook that the receiver does not answer waits for the next start."""
    harness.receiver.open.clear()
    webhook = await harness.write()
    async with harness.dispatcher(wait_limit=1):
        await harness.receiver.until_came(1)
    harness.receiver.open.set()
    [waiting] = await harness.waiting()
    assert (waiting.id, waiting.last_error, waiting.dead_lettered_at) == (webhook.id, "timeout", None)


async def test_dispatcher_delivery_not_stored_is_repeated_with_same_id(harness: DispatcherHarness) -> None:
    """If the disk is full after the receiver's answer, the webhook is delivered twice under one id."""
    failing: Any = FaultyStore(harness.store, harness.clock, away=["webhook_delivered"])
    webhook = await harness.write()
    async with harness.dispatcher(store=failing):
        failed = await harness.witness.until("webhooks.failed")
        assert dict(failed.fields) == {"error": "store_unavailable", "detail": "SQLITE_FULL"}
        failing.away = set()
        await harness.after(LEASE.total_seconds())
        await harness.witness.until("webhook.delivered")
    assert harness.receiver.ids == [webhook.id, webhook.id]


async def test_dispatcher_failed_round_is_logged_and_loop_continues(harness: DispatcherHarness) -> None:
    """Neither an unavailable store nor a bug ends the loop."""
    failing: Any = FaultyStore(harness.store, harness.clock, away=["next_webhook"])
    failing.before["claim_webhooks"] = ValueError("a bug")
    await harness.write()
    async with harness.dispatcher(store=failing):
        await harness.witness.until("webhooks.failed")
        failing.away = set()
        await harness.after(5)
        assert isinstance((await harness.witness.until("webhooks.failed", times=2)).error, ValueError)
        failing.before.clear()
        await harness.after(5)
        await harness.witness.until("webhook.delivered")


async def test_dispatcher_store_outage_is_logged_at_start_and_end(harness: DispatcherHarness) -> None:
    """A store outage is logged once at its start and once at its end, however many rounds fail."""
    failing: Any = FaultyStore(harness.store, harness.clock, away=["next_webhook"])
    async with harness.dispatcher(store=failing):
        await harness.witness.until("webhooks.failed")
        for _ in range(24):
            await harness.after(5)
        failing.away = set()
        await harness.after(5)
        recovered = await harness.witness.until("webhooks.recovered")
    assert len(harness.witness.named("webhooks.failed")) == 1
    assert recovered.fields["failed_for_seconds"] in {120, 125}


@pytest.mark.parametrize(("may_be_copy", "delivered"), [(True, False), (False, True)])
async def test_dispatcher_of_possible_copy_delivers_nothing_until_thaw(
    harness: DispatcherHarness, *, may_be_copy: bool, delivered: bool
) -> None:
    """The original delivers the same webhooks; a store that is only frozen by request still delivers."""
    await harness.write()
    await harness.store.freeze_all(why="a test", may_be_copy=may_be_copy)
    async with harness.dispatcher():
        if delivered:
            await harness.witness.until("webhook.delivered")
        await harness.after(5)
        await harness.clock.until_sleeping()
        assert len(harness.receiver.deliveries) == int(delivered)
        await harness.store.thaw_all(machine="here")
        await harness.after(5)
        await harness.witness.until("webhook.delivered")
