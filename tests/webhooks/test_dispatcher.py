"""Webhooks reach the receiver: in order, once where nothing goes wrong, and not lost where something does."""

import asyncio
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from amo_callback.events import Level
from amo_callback.store import open_store
from amo_callback.webhooks.dispatcher import AT_ONCE, LEASE
from tests.builders import DAY
from tests.fakes import START, FaultyStore
from tests.webhooks.conftest import CONNECT, Office
from tests.webhooks.receiver import HANG_UP

HOUR = 3600.0


def _nobody() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/hook"


async def test_a_change_is_delivered_when_it_is_committed(office: Office) -> None:
    """The dispatcher is woken by the write itself: no time passes."""
    async with office.dispatcher():
        await office.clock.until_sleeping()
        webhook = await office.write("connection.connected")
        await office.witness.until("webhook.delivered")
    [delivery] = office.receiver.deliveries
    assert delivery.id == webhook.id
    assert delivery.content == {
        "type": "connection.connected",
        "timestamp": "2026-11-23T12:00:00Z",
        "data": {
            "connection_id": webhook.connection_id, "account_id": "1", "domain": "a1.amocrm.ru", "owners": [],
        },
    }  # fmt: skip
    assert await office.waiting() == []
    assert await office.store.events(connection_id=webhook.connection_id, limit=1) != []
    assert "webhook.delivered" not in {event.name for event in await office.store.events(limit=9)}


@pytest.mark.parametrize("name", ["connection.needs_reauth", "connection.expiring"])
async def test_what_a_person_can_mend_says_where(office: Office, name: str) -> None:
    """The address where he connects again; and the reason, where one is known."""
    async with office.dispatcher():
        await office.write(name, reason="revoked")
        await office.witness.until("webhook.delivered")
    data = office.receiver.deliveries[0].content["data"]
    assert (data["reason"], data["reconnect_url"]) == ("revoked", CONNECT)


@pytest.mark.parametrize("status", [500, 404, 400, 301, 307, HANG_UP])
async def test_whatever_is_not_taken_is_tried_again_under_the_same_id(office: Office, status: int) -> None:
    """Only 2xx means taken: errors, hang-ups, and redirects, which are not followed; the body stays the same."""
    office.receiver.statuses = [status]
    office.receiver.headers = {"Location": "/elsewhere"}
    webhook = await office.write()
    async with office.dispatcher():
        failed = await office.witness.until("webhook.failed")
        assert failed.fields["error"] == (f"status_{status}" if status else "connection_lost")
        [waiting] = await office.waiting()
        assert (waiting.tries, waiting.last_error) == (1, failed.fields["error"])
        assert waiting.next_try_at == START + timedelta(seconds=5)
        await office.after(4.9)
        await office.clock.until_sleeping()
        assert len(office.receiver.deliveries) == 1
        await office.after(0.2)
        await office.witness.until("webhook.delivered")
    first, second = office.receiver.deliveries
    assert (
        (first.id, first.body, first.path) == (second.id, second.body, second.path) == (webhook.id, first.body, "/hook")
    )
    assert int(second.headers["webhook-timestamp"]) == int(first.headers["webhook-timestamp"]) + 5
    assert await office.waiting() == []
    [told, *_] = await office.store.events(limit=1)
    assert (told.name, told.details["tries"]) == ("webhook.delivered", 2)


async def test_a_body_is_not_read_however_long_it_is(office: Office) -> None:
    """What counts is the answer's head: a receiver that never stops talking has taken the webhook."""
    office.receiver.body = b"x" * 2**24
    await office.write()
    async with office.dispatcher():
        await office.witness.until("webhook.delivered")


async def test_a_receiver_that_does_not_answer_is_given_up_in_time(office: Office) -> None:
    """A request has an end, and is tried again like any other failure."""
    office.receiver.open.clear()
    await office.write()
    async with office.dispatcher(wait_limit=0.1):
        assert (await office.witness.until("webhook.failed")).fields["error"] == "timeout"
    office.receiver.open.set()
    async with office.dispatcher():
        await office.after(5)
        await office.witness.until("webhook.delivered")
    assert len(set(office.receiver.ids)) == 1


async def test_a_receiver_that_wants_no_more_is_obeyed(office: Office) -> None:
    """410 Gone dead-letters at once, and the next webhook of the connection has its turn."""
    office.receiver.statuses = [410]
    first, second = await office.write(), await office.write()
    async with office.dispatcher():
        dead_lettered = await office.witness.until("webhook.dead_lettered")
        await office.witness.until("webhook.delivered")
    assert (dead_lettered.level, dead_lettered.fields["webhook"], dead_lettered.fields["error"]) == (
        Level.ERROR,
        first.id,
        "status_410",
    )
    assert office.receiver.ids == [first.id, second.id]
    [kept] = await office.waiting()
    assert (kept.id, kept.dead_lettered_at, kept.last_error) == (first.id, START, "status_410")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_receiver_that_asks_for_time_gets_it(office: Office, status: int) -> None:
    """`Retry-After` holds up every webhook, not only the one that was answered."""
    office.receiver.statuses = [status]
    office.receiver.headers = {"Retry-After": "120"}
    await office.write()
    async with office.dispatcher():
        await office.witness.until("webhook.failed")
        await office.write(account=2)
        await office.after(119)
        await office.clock.until_sleeping()
        assert len(office.receiver.deliveries) == 1
        await office.after(2)
        await office.witness.until("webhook.delivered", times=2)


async def test_a_connections_webhooks_keep_their_order(office: Office) -> None:
    """The next one waits for the one before, while those of others go on."""
    office.receiver.statuses = [500]
    first = await office.write()
    async with office.dispatcher():
        await office.witness.until("webhook.failed")
        second, third = await office.write(), await office.write()
        other = await office.write(account=2)
        await office.witness.until("webhook.delivered")
        await office.after(5)
        await office.witness.until("webhook.delivered", times=4)
    assert office.receiver.ids == [first.id, other.id, first.id, second.id, third.id]


async def test_a_slow_receiver_gets_a_few_at_once(office: Office) -> None:
    """Never more than the fixed number is under way; the end of one lets the next go."""
    office.receiver.open.clear()
    for account in range(AT_ONCE + 3):
        await office.write(account=account)
    async with office.dispatcher():
        await office.receiver.until_came(AT_ONCE)
        await office.clock.until_sleeping()
        assert len(office.receiver.deliveries) == AT_ONCE
        office.receiver.open.set()
        await office.witness.until("webhook.delivered", times=AT_ONCE + 3)
    assert len(set(office.receiver.ids)) == AT_ONCE + 3


async def test_a_receiver_that_is_dead_for_two_days_dead_letters_webhooks(office: Office) -> None:
    """It is told once that it fails, once of each that is given up, once that it is well; `retry` delivers them."""
    one, other = await office.write(), await office.write(account=2)
    async with office.dispatcher(url=_nobody()):
        for tries in range(1, 40):
            await office.witness.until_either(("webhook.failed", "webhook.dead_lettered"), times=2 * tries)
            if len(office.witness.named("webhook.dead_lettered")) == 2:
                break
            await office.after(2 * HOUR)
        assert (DAY - timedelta(hours=2)).total_seconds() < (office.clock.now() - START).total_seconds() <= 2 * 86400
        await office.after(DAY.total_seconds())
        await office.clock.until_sleeping()
    assert [event.fields["error"] for event in office.witness.named("webhook.failing")] == ["unreachable"]
    dead_lettered = [event for event in await office.store.events(limit=9) if event.name == "webhook.dead_lettered"]
    assert {event.details["webhook"] for event in dead_lettered} == {one.id, other.id}
    async with office.dispatcher():
        await office.clock.until_sleeping()
        assert office.receiver.deliveries == []
        assert set(await office.store.retry_webhooks(None)) == {one.id, other.id}
        await office.witness.until("webhook.delivered", times=2)
    assert set(office.receiver.ids) == {one.id, other.id}
    assert await office.waiting() == []


async def test_a_receiver_that_recovers_is_told_once(office: Office) -> None:
    """Of each change one line, however many tries there were."""
    office.receiver.statuses = [500, 502]
    await office.write()
    async with office.dispatcher():
        await office.witness.until("webhook.failed")
        await office.after(5)
        await office.witness.until("webhook.failed", times=2)
        await office.after(30)
        await office.witness.until("webhook.delivered")
        await office.write()
        await office.witness.until("webhook.delivered", times=2)
    told = [event for event in office.witness.events if event.name in {"webhook.failing", "webhook.recovered"}]
    assert [(event.name, dict(event.fields)) for event in told] == [
        ("webhook.failing", {"error": "status_500"}), ("webhook.recovered", {}),
    ]  # fmt: skip


async def test_one_webhook_that_is_never_taken_makes_no_noise(office: Office) -> None:
    """While the others are, nobody is told of a recovery that is none."""
    async with office.dispatcher():
        office.receiver.statuses = [500]
        await office.write()
        await office.witness.until("webhook.failed")
        for number in range(3):
            await office.write(account=2)
            await office.witness.until("webhook.delivered", times=number + 1)
        assert "webhook.recovered" not in office.witness.names()
        await office.after(5)
        await office.witness.until("webhook.recovered")
    assert len(office.witness.named("webhook.failing")) == 1


async def test_two_processes_deliver_each_webhook_once(office: Office, tmp_path: Path) -> None:
    """Both look at one table `webhooks` at the same time, and a connection's order holds across them."""
    written = [await office.write(account=account) for _ in range(4) for account in range(10)]
    async with (
        open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=office.clock) as store,
        office.dispatcher(),
        office.dispatcher(store=store),
    ):
        await office.witness.until("webhook.delivered", times=len(written))
    assert sorted(office.receiver.ids) == sorted(webhook.id for webhook in written)
    for account in {webhook.connection_id for webhook in written}:
        expected = [webhook.id for webhook in written if webhook.connection_id == account]
        assert [name for name in office.receiver.ids if name in expected] == expected


async def test_what_a_killed_process_was_at_is_delivered_after_its_lease(office: Office) -> None:
    """It may have been delivered already: better twice under one id than never."""
    webhook = await office.write()
    now = office.clock.now()
    [claimed] = await office.store.claim_webhooks(now=now, length=LEASE, lease="killed", limit=9)
    assert claimed.id == webhook.id
    async with office.dispatcher():
        await office.after(LEASE.total_seconds() - 1)
        await office.clock.until_sleeping()
        assert office.receiver.deliveries == []
        await office.after(1)
        await office.witness.until("webhook.delivered")
    assert office.receiver.ids == [webhook.id]


async def test_a_clock_that_is_put_forward_has_nothing_sent_twice_at_once(office: Office) -> None:
    """A process knows what it is at itself, also where the lease looks over."""
    office.receiver.open.clear()
    webhook = await office.write()
    async with office.dispatcher():
        await office.receiver.until_came(1)
        await office.after(HOUR)
        await office.clock.until_sleeping()
        assert office.receiver.ids == [webhook.id]
        office.receiver.open.set()
        await office.witness.until("webhook.delivered")
    assert office.receiver.ids == [webhook.id]


async def test_a_stop_begins_nothing_new_and_awaits_what_is_in_flight(office: Office) -> None:
    """What the receiver takes at that moment is noted; the next one is delivered by whoever comes after."""
    office.receiver.open.clear()
    first, second = await office.write(), await office.write()
    async with office.dispatcher():
        await office.receiver.until_came(1)
        office.stop.set()
        asyncio.get_running_loop().call_soon(office.receiver.open.set)
    assert office.receiver.ids == [first.id]
    assert [webhook.id for webhook in await office.waiting()] == [second.id]
    async with office.dispatcher():
        await office.witness.until("webhook.delivered", times=2)
    assert office.receiver.ids == [first.id, second.id]


async def test_a_stop_waits_for_a_dead_receiver_no_longer_than_a_request_may_take(office: Office) -> None:
    """The webhook waits for the next start."""
    office.receiver.open.clear()
    webhook = await office.write()
    async with office.dispatcher(wait_limit=1):
        await office.receiver.until_came(1)
    office.receiver.open.set()
    [waiting] = await office.waiting()
    assert (waiting.id, waiting.last_error, waiting.dead_lettered_at) == (webhook.id, "timeout", None)


async def test_an_answer_that_cannot_be_written_down_is_delivered_again(office: Office) -> None:
    """With the disk full after the receiver's answer, the webhook comes twice, under its one id."""
    failing: Any = FaultyStore(office.store, office.clock, away=["webhook_delivered"])
    webhook = await office.write()
    async with office.dispatcher(store=failing):
        told = await office.witness.until("webhooks.failed")
        assert dict(told.fields) == {"error": "store_unavailable", "detail": "SQLITE_FULL"}
        failing.away = set()
        await office.after(LEASE.total_seconds())
        await office.witness.until("webhook.delivered")
    assert office.receiver.ids == [webhook.id, webhook.id]


async def test_a_round_that_fails_is_told_and_the_loop_goes_on(office: Office) -> None:
    """Neither a store that is away nor a bug ends it."""
    failing: Any = FaultyStore(office.store, office.clock, away=["next_webhook"])
    failing.before["claim_webhooks"] = ValueError("a bug")
    await office.write()
    async with office.dispatcher(store=failing):
        await office.witness.until("webhooks.failed")
        failing.away = set()
        await office.after(5)
        assert isinstance((await office.witness.until("webhooks.failed", times=2)).error, ValueError)
        failing.before.clear()
        await office.after(5)
        await office.witness.until("webhook.delivered")


async def test_a_store_that_stays_away_is_logged_once_and_once_more_when_it_is_back(office: Office) -> None:
    """However many rounds fail meanwhile."""
    failing: Any = FaultyStore(office.store, office.clock, away=["next_webhook"])
    async with office.dispatcher(store=failing):
        await office.witness.until("webhooks.failed")
        for _ in range(24):
            await office.after(5)
        failing.away = set()
        await office.after(5)
        recovered = await office.witness.until("webhooks.recovered")
    assert len(office.witness.named("webhooks.failed")) == 1
    assert recovered.fields["failed_for_seconds"] in {120, 125}


@pytest.mark.parametrize(("may_be_copy", "delivered"), [(True, False), (False, True)])
async def test_a_copy_of_the_database_delivers_nothing(office: Office, *, may_be_copy: bool, delivered: bool) -> None:
    """What waits in it waits in the original, too; a store that was only asked to spend nothing still tells."""
    await office.write()
    await office.store.freeze_all(why="a test", may_be_copy=may_be_copy)
    async with office.dispatcher():
        if delivered:
            await office.witness.until("webhook.delivered")
        await office.after(5)
        await office.clock.until_sleeping()
        assert len(office.receiver.deliveries) == int(delivered)
        await office.store.thaw_all(machine="here")
        await office.after(5)
        await office.witness.until("webhook.delivered")
