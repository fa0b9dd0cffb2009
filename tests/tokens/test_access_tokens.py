"""Handing out access tokens, and forced refreshes."""

import asyncio

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import NotFound
from tests.refresh.harness import API_DOMAIN, DAY, QueueingClient, RefreshHarness


async def test_forced_refreshes_in_a_row_make_one_refresh(harness: RefreshHarness) -> None:
    """A pair younger than ten seconds is returned as it is: a caller in a loop does not rotate tokens."""
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


async def test_a_forced_refresh_of_a_young_pair_that_is_rejected_or_in_doubt_is_made(harness: RefreshHarness) -> None:
    """A backend that names the stored token as rejected gets a new one, and so does one whose token is in doubt."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    access_tokens = harness.lifecycle.access_tokens
    given = await access_tokens.refresh(connection.id, rejected=harness.pair(connection).access_token)
    assert given.connection.pair_version == 2
    harness.lifecycle.access_token_check.mark_rejected(given.connection)
    assert (await access_tokens.refresh(connection.id)).connection.pair_version == 3


async def test_a_caller_waits_for_the_lease_of_another_process_and_takes_its_pair(harness: RefreshHarness) -> None:
    """Two processes at once make one refresh."""
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


async def test_what_another_process_has_stored_meanwhile_is_handed_out_as_fresh(harness: RefreshHarness) -> None:
    """This process waits for its slot in vain; the pair that another one has brought is no stale one."""
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


async def test_an_unsaved_pair_of_one_that_was_disconnected_is_nobodys(harness: RefreshHarness) -> None:
    """A person has erased the connection while its new pair waits for the store: it is not handed out any more."""
    connection = await harness.connect()
    refreshing = await harness.begin_unsaved(connection)
    assert await harness.store.disconnect(await harness.now(connection), on_request=True)
    for selector in (connection.id, f"account:{connection.account_id}"):
        with pytest.raises(NotFound):
            await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    await harness.bring_store_back()
    with pytest.raises(NotFound):
        await refreshing
