"""Access-token hand-outs and forced refreshes."""

import asyncio

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import NotFound
from tests.refresh.harness import API_DOMAIN, DAY, QueueingClient, RefreshHarness


async def test_forced_refresh_pair_younger_than_ten_seconds_is_returned(harness: RefreshHarness) -> None:
    """Repeated forced refreshes return a pair younger than ten seconds without another request."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    access_tokens = harness.lifecycle.access_tokens
    harness.clock.advance(10)
    given = [await access_tokens.refresh(connection.id) for _ in range(5)]
    assert {one.connection.pair_version for one in given} == {2}
    assert {one.stale for one in given} == {False}
    harness.clock.advance(9.9)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 2
    harness.clock.advance(0.1)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 3
    assert harness.spent() == 2


async def test_forced_refresh_young_pair_rejected_or_in_doubt_is_refreshed(harness: RefreshHarness) -> None:
    """A young pair is refreshed if the caller names it as rejected or if it is in doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    access_tokens = harness.lifecycle.access_tokens
    given = await access_tokens.refresh(connection.id, rejected=harness.pair(connection).access_token)
    assert given.connection.pair_version == 2
    harness.lifecycle.access_token_check.mark_rejected(given.connection)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 3


async def test_forced_refresh_in_two_processes_sends_one_request(harness: RefreshHarness) -> None:
    """A caller waits for another process's lease and receives its pair."""
    connection = await harness.connect()
    harness.clock.advance(10)
    one, two = harness.make_lifecycle(), harness.make_lifecycle(process="process-2")
    harness.amo.sandbox.faults.add(Fault.SLOW)
    first = asyncio.create_task(one.access_tokens.refresh(connection.id))
    await harness.amo.sandbox.until_asked(2)
    second = asyncio.create_task(two.access_tokens.refresh(connection.id))
    await harness.clock.until_sleeping(0.25)
    harness.amo.sandbox.go_on.set()
    await first
    harness.clock.advance(0.25)
    assert (await second).connection.pair_version == 2
    assert harness.spent() == 1


async def test_hand_out_pair_of_another_process_during_slot_wait_is_fresh(harness: RefreshHarness) -> None:
    """A pair that another process stores during the slot wait is handed out as fresh."""
    connection = await harness.connect()
    harness.clock.advance(DAY - 100)
    queue = QueueingClient(harness.client)
    lifecycle = harness.make_lifecycle(amo=queue)
    handing_out = asyncio.create_task(lifecycle.access_tokens.token(connection.id, min_ttl=300))
    await queue.asked.wait()
    refreshed = await harness.refresh(connection, by=harness.make_coordinator(process="process-2"))
    harness.clock.advance(8)
    handed_out = await handing_out
    assert handed_out.token.value == harness.pair(refreshed).access_token
    assert (handed_out.stale, handed_out.reason) == (False, None)
    lifecycle.core.stop.set()
    await lifecycle.drain()


async def test_hand_out_pending_write_of_disconnected_connection_is_refused(harness: RefreshHarness) -> None:
    """The pending pair of a disconnected connection is not handed out."""
    connection = await harness.connect()
    refreshing = await harness.begin_pending_write(connection)
    assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    for selector in (connection.id, f"account:{connection.account_id}"):
        with pytest.raises(NotFound):
            await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    await harness.restore_store()
    with pytest.raises(NotFound):
        await refreshing
