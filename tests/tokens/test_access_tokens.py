"""Handing out access tokens, and forced refreshes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.amo.sandbox.faults import Fault
from tests.refresh.harness import API_DOMAIN, PATIENCE

if TYPE_CHECKING:
    from tests.refresh.harness import RefreshHarness


async def test_a_forced_refresh_is_satisfied_by_any_pair_stored_after_it_came(harness: RefreshHarness) -> None:
    """A hundred backends that met 401 at once make one refresh, also those who come as it ends."""
    connection = await harness.connect()
    harness.clock.advance(10)
    access_tokens = harness.make_lifecycle().access_tokens
    harness.amo.sandbox.faults.add(Fault.SLOW)
    first = [asyncio.create_task(access_tokens.refresh(connection.id)) for _ in range(100)]
    await harness.amo.sandbox.until_asked(2)
    while harness.clock.sleeping().count(PATIENCE) < 100:  # noqa: ASYNC110 -- because a clock does not tell of all
        await asyncio.sleep(0)
    harness.amo.sandbox.go_on.set()
    given = await asyncio.gather(*first)
    assert {one.connection.pair_version for one in given} == {2}
    rejected = harness.pair(connection).access_token
    assert (await access_tokens.refresh(connection.id, rejected=rejected)).connection.pair_version == 2
    assert len(harness.amo.fake.ledger.refreshes()) == 1


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
    assert len(harness.amo.fake.ledger.refreshes()) == 2


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
    assert len(harness.amo.fake.ledger.refreshes()) == 1
