"""Checks after AMO's disable hook: how soon a true hook is noticed, and how little a flood of replayed ones costs."""

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


async def _hook(harness: RefreshHarness) -> None:
    await harness.lifecycle.switched_off(str(harness.amo.account.id))


async def _wait(harness: RefreshHarness, connection: Connection) -> float:
    """Return the seconds until a connection's pending look-up."""
    stored = await harness.now(connection)
    assert stored.recheck_at is not None
    return (stored.recheck_at - harness.clock.now()).total_seconds()


async def _grow_pause(harness: RefreshHarness, connection: Connection, *, introspections: int) -> None:
    """Send a hook before each of some look-ups, which accept the token."""
    for _ in range(introspections):
        await _hook(harness)
        harness.clock.advance(max(await _wait(harness, connection), 0))
        await harness.recheck_due()
        harness.clock.advance(1)


@pytest.mark.parametrize(("came_after", "noticed_after"), [(1, 5), (10, 10)])
async def test_a_true_hook_soon_after_a_replayed_one_is_noticed_when_the_pause_is_over(
    harness: RefreshHarness, came_after: float, noticed_after: float
) -> None:
    """The replay's look-up accepts the token; the integration is then disabled, and its hook is checked in 5 s."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _hook(harness)
    await harness.recheck_due()
    harness.clock.advance(came_after)
    harness.amo.account.disabled = True
    await _hook(harness)
    if came_after < noticed_after:
        harness.clock.advance(noticed_after - came_after - 0.5)
        await harness.recheck_due()
        assert (await harness.now(connection)).status is Status.ACTIVE
        assert harness.amo.sandbox.introspections == 1
        harness.clock.advance(0.5)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_the_loop_checks_a_hook_once_the_pause_is_over(harness: RefreshHarness) -> None:
    """Nothing but time wakes the refresh scheduler for the pending check."""
    await harness.connect(api_domain=API_DOMAIN)
    async with harness.running(harness.lifecycle):
        await harness.clock.until_sleeping(5)
        await _hook(harness)
        await harness.witness.until("hook.unconfirmed")
        harness.amo.account.disabled = True
        await harness.pass_time(1, step=1)
        await _hook(harness)
        await harness.pass_time(10, step=1)
    assert harness.witness.names()[-1] == "connection.disconnected"


async def test_the_pause_doubles_with_each_accepting_look_up_up_to_ten_minutes(harness: RefreshHarness) -> None:
    """A hook that comes a second after each look-up waits longer each time."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _hook(harness)
    await harness.recheck_due()
    waits = []
    for _ in PAUSES:
        harness.clock.advance(1)
        await _hook(harness)
        waits.append(1 + await _wait(harness, connection))
        harness.clock.advance(waits[-1] - 1)
        await harness.recheck_due()
    assert waits == PAUSES
    assert harness.amo.sandbox.introspections == 1 + len(PAUSES)


@pytest.mark.parametrize(("quiet", "pause"), [(HOUR - 1, 80), (HOUR, 5)])
async def test_the_pause_is_shortest_after_an_hour_without_a_hook(
    harness: RefreshHarness, quiet: float, pause: float
) -> None:
    """The look-up after the quiet time is made at once; what matters is how long the next hook waits."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _grow_pause(harness, connection, introspections=4)
    disabled_hook_at = (await harness.now(connection)).disabled_hook_at
    assert disabled_hook_at is not None
    harness.clock.advance(quiet - (harness.clock.now() - disabled_hook_at).total_seconds())
    await _hook(harness)
    await harness.recheck_due()
    harness.clock.advance(1)
    await _hook(harness)
    assert 1 + await _wait(harness, connection) == pause


async def test_a_hook_while_amo_gives_no_answer_is_checked_until_it_does(harness: RefreshHarness) -> None:
    """A look-up without an answer keeps the pair, and the pause as it is."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    harness.amo.sandbox.introspection_faults.add(*[Fault.HTTP_500] * 4)
    for _ in range(4):
        await _hook(harness)
        harness.clock.advance(max(await _wait(harness, connection), 0))
        await harness.recheck_due()
        assert (await harness.now(connection)).sealed_pair == connection.sealed_pair
        harness.clock.advance(1)
        await _hook(harness)
        assert await _wait(harness, connection) == 4
    harness.clock.advance(4)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_a_flood_of_replayed_hooks_costs_few_look_ups_and_hides_no_true_one(harness: RefreshHarness) -> None:
    """A hook every 5 s for 20 minutes: nine look-ups, and an integration disabled in between is found by the last."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    looked_up = []
    for second in range(0, 1240, 5):
        harness.amo.account.disabled = second > 700
        asked = harness.amo.sandbox.introspections
        await _hook(harness)
        await harness.recheck_due()
        if harness.amo.sandbox.introspections > asked:
            looked_up.append(second)
        harness.clock.advance(5)
    assert looked_up == [0, 5, 15, 35, 75, 155, 315, 635, 1235]
    assert (await harness.now(connection)).status is Status.DISCONNECTED
    assert len(harness.witness.named("hook.received")) == len(looked_up)


async def test_follow_ups_of_a_flood_keep_the_pause(harness: RefreshHarness) -> None:
    """The look-ups 1 and 10 minutes after the last hook are not made before the pause is over, but they are made."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _grow_pause(harness, connection, introspections=9)
    await _hook(harness)
    disabled_hook_at = harness.clock.now()
    times = []
    while (await harness.now(connection)).recheck_at is not None:
        harness.clock.advance(await _wait(harness, connection))
        await harness.recheck_due()
        times.append((harness.clock.now() - disabled_hook_at).total_seconds())
    assert times == [599, 1199]


async def test_a_hook_during_a_look_up_is_checked_after_the_pause(harness: RefreshHarness) -> None:
    """The look-up's answer may be older than the hook, so that another one follows."""
    connection = await harness.connect(api_domain=API_DOMAIN)

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        introspection = await harness.client.introspect_refresh_token(**question)
        if not harness.amo.account.disabled:
            harness.clock.advance(2)
            harness.amo.account.disabled = True
            await _hook(harness)
        return introspection

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token))
    await _hook(harness)
    await harness.recheck_due(lifecycle)
    assert await _wait(harness, connection) == 3
    harness.clock.advance(3)
    await harness.recheck_due(lifecycle)
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_replayed_hooks_during_a_look_up_do_not_keep_rejected_tokens(harness: RefreshHarness) -> None:
    """What AMO rejects is erased, however many hooks come before its answer."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True

    async def introspect_refresh_token(**question: Any) -> IntrospectionResult:
        for _ in range(3):
            harness.clock.advance(1)
            await _hook(harness)
        return await harness.client.introspect_refresh_token(**question)

    await _hook(harness)
    await harness.recheck_due(
        harness.make_lifecycle(amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token))
    )
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_hooks_do_not_make_a_claim_fail(harness: RefreshHarness) -> None:
    """A flood of hooks delays no refresh: a row that was read before a hook can be claimed after it."""
    connection = await harness.connect(api_domain=API_DOMAIN)

    async def acquire_slot(priority: Priority) -> None:
        await harness.client.acquire_slot(priority)
        harness.clock.advance(2)
        await _hook(harness)

    coordinator = harness.make_coordinator(amo=Override(harness.client, acquire_slot=acquire_slot))
    read = await harness.now(connection)
    await _hook(harness)
    assert (await harness.now(connection)).row_version == read.row_version
    assert (await harness.refresh(connection, by=coordinator, trigger=RefreshTrigger.FORCED)).pair_version == 2


async def test_each_connection_of_an_account_has_a_pause_of_its_own(harness: RefreshHarness) -> None:
    """A hook names the account: both its connections are looked up, one of them only when its pause is over."""
    first = await harness.connect(api_domain=API_DOMAIN)
    await _grow_pause(harness, first, introspections=3)
    harness.amo.account.user_id += 1
    second = await harness.connect(api_domain=API_DOMAIN)
    rechecked_at = (await harness.now(first)).rechecked_at
    assert rechecked_at is not None
    harness.amo.account.disabled = True
    await _hook(harness)
    await harness.recheck_due()
    assert (await harness.now(second)).status is Status.DISCONNECTED
    assert (await harness.now(first)).status is Status.ACTIVE
    harness.clock.advance(await _wait(harness, first))
    assert harness.clock.now() == rechecked_at + timedelta(seconds=20)
    await harness.recheck_due()
    assert (await harness.now(first)).status is Status.DISCONNECTED


async def test_of_several_processes_one_makes_the_look_up(harness: RefreshHarness) -> None:
    """All have read that it is due and wait for their slots: the first to have one asks AMO."""
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
    await _hook(harness)
    await asyncio.gather(*(process.rechecker.check(connection.id) for process in processes))
    assert harness.amo.sandbox.introspections == 1
    assert len(harness.witness.named("hook.unconfirmed")) == 1


async def test_a_look_up_of_a_process_that_died_is_made_by_another(harness: RefreshHarness) -> None:
    """Nothing came of it, so it is due again after the pause and the length of a lease."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    asked = asyncio.Event()

    async def introspect_refresh_token(**_: object) -> IntrospectionResult:
        asked.set()
        await asyncio.Event().wait()
        return IntrospectionResult(state=TokenState.UNKNOWN)

    dying = harness.make_lifecycle(
        amo=Override(harness.client, introspect_refresh_token=introspect_refresh_token), process="process-2"
    )
    await _hook(harness)
    killed = asyncio.create_task(dying.rechecker.check(connection.id))
    await asked.wait()
    killed.cancel()
    harness.amo.account.disabled = True
    harness.clock.advance(5 + RefreshRules().lease)
    await harness.recheck_due()
    assert (await harness.now(connection)).status is Status.DISCONNECTED


async def test_hook_checks_have_the_lowest_priority_and_daily_look_ups_the_usual_one(harness: RefreshHarness) -> None:
    """Every question of a hook check waits for a slot that refreshes leave, also where the account was given up."""
    asked: list[Priority] = []

    async def acquire_slot(priority: Priority) -> None:
        asked.append(priority)

    given_up = await harness.given_up()
    lifecycle = harness.make_lifecycle(amo=Override(harness.client, acquire_slot=acquire_slot))
    harness.amo.account.disabled = True
    harness.clock.advance(DAY)
    await harness.recheck_due(lifecycle)
    assert asked == [Priority.BACKGROUND]
    asked.clear()
    await _hook(harness)
    harness.clock.advance(await _wait(harness, given_up))
    await harness.recheck_due(lifecycle)
    assert asked == [Priority.HOOK_CHECK]
    assert (await harness.now(given_up)).status is Status.DISCONNECTED
    harness.amo.account.disabled = False
    await harness.connect(api_domain=API_DOMAIN)
    harness.amo.account.disabled = True
    asked.clear()
    await _hook(harness)
    await harness.recheck_due(lifecycle)
    assert asked == [Priority.HOOK_CHECK] * 2
