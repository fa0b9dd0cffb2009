"""Introspections after AMO's disable hook: delay of a real hook, and cost of replayed hooks."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.model import Connection, IntrospectionResult, RefreshRules, RefreshTrigger, Status, TokenState
from amo_callback.rate_limit import Priority
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.fakes import Override
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness

HOUR = 3600.0
PAUSES = [5, 10, 20, 40, 80, 160, 320, 600, 600]


async def _receive_hook(harness: RefreshHarness) -> None:
    await harness.lifecycle.integration_disabled(str(harness.amo.account.id))


async def _seconds_until_recheck(harness: RefreshHarness, connection: Connection) -> float:
    """Return the seconds until a connection's pending introspection."""
    stored = await harness.now(connection)
    assert stored.recheck_at is not None
    return (stored.recheck_at - harness.clock.now()).total_seconds()


async def _lengthen_pause(harness: RefreshHarness, connection: Connection, *, introspections: int) -> None:
    """Receive a hook before each introspection, which accepts the token."""
    for _ in range(introspections):
        await _receive_hook(harness)
        harness.clock.advance(max(await _seconds_until_recheck(harness, connection), 0))
        await harness.run_due_rechecks()
        harness.clock.advance(1)


@pytest.mark.parametrize(("came_after", "noticed_after"), [(1, 5), (10, 10)])
async def test_disable_hook_real_after_replayed_is_checked_after_pause(
    harness: RefreshHarness, came_after: float, noticed_after: float
) -> None:
    """A real hook after a replayed one is checked when the 5 s pause since its introspection is over."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _receive_hook(harness)
    await harness.run_due_rechecks()
    harness.clock.advance(came_after)
    harness.amo.account.disabled = True
    await _receive_hook(harness)
    if came_after < noticed_after:
        harness.clock.advance(noticed_after - came_after - 0.5)
        await harness.run_due_rechecks()
        assert (await harness.now(connection)).status is Status.ACTIVE
        assert harness.amo.sandbox.introspections == 1
        harness.clock.advance(0.5)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_scheduler_checks_pending_hook_after_pause(harness: RefreshHarness) -> None:
    """The scheduler runs the pending introspection after the pause without another event."""
    await harness.connect(api_domain=API_DOMAIN)
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await _receive_hook(harness)
        await harness.witness.until("hook.unconfirmed")
        harness.amo.account.disabled = True
        await harness.pass_time(1, step=1)
        await _receive_hook(harness)
        await harness.pass_time(10, step=1)
    assert harness.witness.names()[-1] == "connection.disconnected"


async def test_recheck_pause_doubles_with_each_acceptance_up_to_ten_minutes(harness: RefreshHarness) -> None:
    """The pause doubles with each introspection that accepts the token, up to ten minutes."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _receive_hook(harness)
    await harness.run_due_rechecks()
    waits = []
    for _ in PAUSES:
        harness.clock.advance(1)
        await _receive_hook(harness)
        waits.append(1 + await _seconds_until_recheck(harness, connection))
        harness.clock.advance(waits[-1] - 1)
        await harness.run_due_rechecks()
    assert waits == PAUSES
    assert harness.amo.sandbox.introspections == 1 + len(PAUSES)


@pytest.mark.parametrize(("quiet", "pause"), [(HOUR - 1, 80), (HOUR, 5)])
async def test_recheck_pause_after_an_hour_without_hook_is_shortest(
    harness: RefreshHarness, quiet: float, pause: float
) -> None:
    """The pause of the next hook is 5 s again after an hour without a hook."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _lengthen_pause(harness, connection, introspections=4)
    disabled_hook_at = (await harness.now(connection)).disabled_hook_at
    assert disabled_hook_at is not None
    harness.clock.advance(quiet - (harness.clock.now() - disabled_hook_at).total_seconds())
    await _receive_hook(harness)
    await harness.run_due_rechecks()
    harness.clock.advance(1)
    await _receive_hook(harness)
    assert 1 + await _seconds_until_recheck(harness, connection) == pause


async def test_disable_hook_unanswered_introspection_keeps_pair_and_pause(harness: RefreshHarness) -> None:
    """An unanswered introspection keeps the pair and the pause, and is repeated until AMO answers."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 4)
    for _ in range(4):
        await _receive_hook(harness)
        harness.clock.advance(max(await _seconds_until_recheck(harness, connection), 0))
        await harness.run_due_rechecks()
        assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
        harness.clock.advance(1)
        await _receive_hook(harness)
        assert await _seconds_until_recheck(harness, connection) == 4
    harness.clock.advance(4)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_disable_hook_flood_causes_few_introspections(harness: RefreshHarness) -> None:
    """A hook every 5 s for 20 minutes causes nine introspections, the last of which finds a disabled account."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    looked_up = []
    for second in range(0, 1240, 5):
        harness.amo.account.disabled = second > 700
        asked = harness.amo.sandbox.introspections
        await _receive_hook(harness)
        await harness.run_due_rechecks()
        if harness.amo.sandbox.introspections > asked:
            looked_up.append(second)
        harness.clock.advance(5)
    assert looked_up == [0, 5, 15, 35, 75, 155, 315, 635, 1235]
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    assert len(harness.witness.named("hook.received")) == len(looked_up)


async def test_recheck_follow_ups_after_flood_respect_pause(harness: RefreshHarness) -> None:
    """The introspections 1 and 10 minutes after the last hook wait for the pause and are then made."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _lengthen_pause(harness, connection, introspections=9)
    await _receive_hook(harness)
    disabled_hook_at = harness.clock.now()
    times = []
    while (await harness.now(connection)).recheck_at is not None:
        harness.clock.advance(await _seconds_until_recheck(harness, connection))
        await harness.run_due_rechecks()
        times.append((harness.clock.now() - disabled_hook_at).total_seconds())
    assert times == [599, 1199]


async def test_disable_hook_during_introspection_causes_another_after_pause(harness: RefreshHarness) -> None:
    """A hook during an introspection causes another one, because the answer may be older than the hook."""
    connection = await harness.connect(api_domain=API_DOMAIN)

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        introspection = await harness.client.introspect_refresh_token(**question)
        if not harness.amo.account.disabled:
            harness.clock.advance(2)
            harness.amo.account.disabled = True
            await _receive_hook(harness)
        return introspection

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token))
    await _receive_hook(harness)
    await harness.run_due_rechecks(lifecycle)
    assert await _seconds_until_recheck(harness, connection) == 3
    harness.clock.advance(3)
    await harness.run_due_rechecks(lifecycle)
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_disable_hook_replays_during_introspection_do_not_prevent_erasure(harness: RefreshHarness) -> None:
    """Rejected tokens are erased however many hooks arrive before the answer."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        for _ in range(3):
            harness.clock.advance(1)
            await _receive_hook(harness)
        return await harness.client.introspect_refresh_token(**question)

    await _receive_hook(harness)
    await harness.run_due_rechecks(
        harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token))
    )
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_claim_after_disable_hooks_succeeds(harness: RefreshHarness) -> None:
    """A hook does not change the row version, so a row read before it can be claimed after it."""
    connection = await harness.connect(api_domain=API_DOMAIN)

    async def acquire_slot(priority: Priority) -> None:
        await harness.client.acquire_slot(priority)
        harness.clock.advance(2)
        await _receive_hook(harness)

    coordinator = harness.make_coordinator(amo=Override(harness.client, acquire_slot=acquire_slot))
    read = await harness.now(connection)
    await _receive_hook(harness)
    assert (await harness.now(connection)).row_version == read.row_version
    assert (await harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)).pair_version == 2


async def test_recheck_pause_is_separate_for_each_connection(harness: RefreshHarness) -> None:
    """A hook causes an introspection of each connection of the account, after that connection's pause."""
    first = await harness.connect(api_domain=API_DOMAIN)
    await _lengthen_pause(harness, first, introspections=3)
    harness.amo.account.user_id += 1
    second = await harness.connect(api_domain=API_DOMAIN)
    rechecked_at = (await harness.now(first)).rechecked_at
    assert rechecked_at is not None
    harness.amo.account.disabled = True
    await _receive_hook(harness)
    await harness.run_due_rechecks()
    assert (await harness.now(second)).status is Status.DISCONNECTED
    assert (await harness.now(first)).status is Status.ACTIVE
    harness.clock.advance(await _seconds_until_recheck(harness, first))
    assert harness.clock.now() == rechecked_at + timedelta(seconds=20)
    await harness.run_due_rechecks()
    assert (await harness.now(first)).status is Status.DISCONNECTED


async def test_recheck_in_several_processes_is_made_once(harness: RefreshHarness) -> None:
    """Of three processes that wait for a slot for the same recheck, the first to get one asks AMO."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    go = asyncio.Event()
    waiting = 0

    async def acquire_slot(_priority: object) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            go.set()
        await go.wait()

    amo = Override(harness.client, acquire_slot=acquire_slot)
    processes: list[TokenLifecycle] = [
        harness.make_lifecycle(amo=amo, process=f"process-{number}") for number in range(3)
    ]
    await _receive_hook(harness)
    await asyncio.gather(*(process.rechecker.check(connection.id) for process in processes))
    assert harness.amo.sandbox.introspections == 1
    assert len(harness.witness.named("hook.unconfirmed")) == 1


async def test_recheck_of_killed_process_is_repeated_after_lease(harness: RefreshHarness) -> None:
    """A recheck without a result is due again after the pause and the length of a lease."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    asked = asyncio.Event()

    async def introspect_refresh_token(**_: object) -> IntrospectionResult:
        asked.set()
        await asyncio.Event().wait()
        return IntrospectionResult(state=TokenState.UNKNOWN)

    killed = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token), process="process-2"
    )
    await _receive_hook(harness)
    checking = asyncio.create_task(killed.rechecker.check(connection.id))
    await asked.wait()
    checking.cancel()
    harness.amo.account.disabled = True
    harness.clock.advance(5 + RefreshRules().lease)
    await harness.run_due_rechecks()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_recheck_priority_is_lowest_for_hooks_and_background_daily(harness: RefreshHarness) -> None:
    """Introspections of a hook have the lowest priority, also for a `needs_reauth` connection."""
    asked: list[Priority] = []

    async def acquire_slot(priority: Priority) -> None:
        asked.append(priority)

    rejected = await harness.connect_revoked()
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=acquire_slot))
    harness.amo.account.disabled = True
    harness.clock.advance(DAY)
    await harness.run_due_rechecks(lifecycle)
    assert asked == [Priority.BACKGROUND]
    asked.clear()
    await _receive_hook(harness)
    harness.clock.advance(await _seconds_until_recheck(harness, rejected))
    await harness.run_due_rechecks(lifecycle)
    assert asked == [Priority.HOOK_CHECK]
    assert (await harness.now(rejected)).status is Status.DISCONNECTED
    harness.amo.account.disabled = False
    await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    asked.clear()
    await _receive_hook(harness)
    await harness.run_due_rechecks(lifecycle)
    assert asked == [Priority.HOOK_CHECK] * 2
