"""Checks after AMO's disable hook: how soon a true hook is noticed, and how little a flood of replayed ones costs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.model import IntrospectionResult, RefreshRules, RefreshTrigger, Status, TokenState
from amo_callback.rate_limit import Priority
from tests.fakes import Override
from tests.refresh.house import API_DOMAIN, DAY

if TYPE_CHECKING:
    from amo_callback.model import Connection
    from amo_callback.tokens.lifecycle import TokenLifecycle
    from tests.refresh.house import House

HOUR = 3600.0
PAUSES = [5, 10, 20, 40, 80, 160, 320, 600, 600]


async def _hook(house: House) -> None:
    await house.lifecycle.switched_off(str(house.amo.account.id))


async def _wait(house: House, connection: Connection) -> float:
    """Return the seconds until a connection's pending look-up."""
    stored = await house.now(connection)
    assert stored.look_up_at is not None
    return (stored.look_up_at - house.clock.now()).total_seconds()


async def _grow_pause(house: House, connection: Connection, *, look_ups: int) -> None:
    """Send a hook before each of some look-ups, which accept the token."""
    for _ in range(look_ups):
        await _hook(house)
        house.clock.advance(max(await _wait(house, connection), 0))
        await house.look_up_due()
        house.clock.advance(1)


@pytest.mark.parametrize(("came_after", "noticed_after"), [(1, 5), (10, 10)])
async def test_a_true_hook_soon_after_a_replayed_one_is_noticed_when_the_pause_is_over(
    house: House, came_after: float, noticed_after: float
) -> None:
    """The replay's look-up accepts the token; the integration is then disabled, and its hook is checked in 5 s."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await _hook(house)
    await house.look_up_due()
    house.clock.advance(came_after)
    house.amo.account.disabled = True
    await _hook(house)
    if came_after < noticed_after:
        house.clock.advance(noticed_after - came_after - 0.5)
        await house.look_up_due()
        assert (await house.now(connection)).status is Status.ACTIVE
        assert house.amo.sandbox.look_ups == 1
        house.clock.advance(0.5)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_the_loop_checks_a_hook_once_the_pause_is_over(house: House) -> None:
    """Nothing but time wakes the refresh scheduler for the pending check."""
    await house.connect(api_domain=API_DOMAIN)
    async with house.running(house.lifecycle):
        await house.clock.until_sleeping(5)
        await _hook(house)
        await house.witness.until("hook.unconfirmed")
        house.amo.account.disabled = True
        await house.pass_time(1, step=1)
        await _hook(house)
        await house.pass_time(10, step=1)
    assert house.witness.names()[-1] == "connection.disconnected"


async def test_the_pause_doubles_with_each_accepting_look_up_up_to_ten_minutes(house: House) -> None:
    """A hook that comes a second after each look-up waits longer each time."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await _hook(house)
    await house.look_up_due()
    waits = []
    for _ in PAUSES:
        house.clock.advance(1)
        await _hook(house)
        waits.append(1 + await _wait(house, connection))
        house.clock.advance(waits[-1] - 1)
        await house.look_up_due()
    assert waits == PAUSES
    assert house.amo.sandbox.look_ups == 1 + len(PAUSES)


@pytest.mark.parametrize(("quiet", "pause"), [(HOUR - 1, 80), (HOUR, 5)])
async def test_the_pause_is_the_shortest_again_after_an_hour_without_a_hook(
    house: House, quiet: float, pause: float
) -> None:
    """The look-up after the quiet time is made at once; what matters is how long the next hook waits."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await _grow_pause(house, connection, look_ups=4)
    hook_at = (await house.now(connection)).hook_at
    assert hook_at is not None
    house.clock.advance(quiet - (house.clock.now() - hook_at).total_seconds())
    await _hook(house)
    await house.look_up_due()
    house.clock.advance(1)
    await _hook(house)
    assert 1 + await _wait(house, connection) == pause


async def test_a_hook_while_amo_gives_no_answer_is_checked_until_it_does(house: House) -> None:
    """A look-up without an answer keeps the pair, and the pause as it is."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    house.amo.sandbox.look_up_faults.add(*[Fault.HTTP_500] * 4)
    for _ in range(4):
        await _hook(house)
        house.clock.advance(max(await _wait(house, connection), 0))
        await house.look_up_due()
        assert (await house.now(connection)).sealed_pair == connection.sealed_pair
        house.clock.advance(1)
        await _hook(house)
        assert await _wait(house, connection) == 4
    house.clock.advance(4)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_a_flood_of_replayed_hooks_costs_few_look_ups_and_hides_no_true_one(house: House) -> None:
    """A hook every 5 s for 20 minutes: nine look-ups, and an integration disabled in between is found by the last."""
    connection = await house.connect(api_domain=API_DOMAIN)
    looked_up = []
    for second in range(0, 1240, 5):
        house.amo.account.disabled = second > 700
        asked = house.amo.sandbox.look_ups
        await _hook(house)
        await house.look_up_due()
        if house.amo.sandbox.look_ups > asked:
            looked_up.append(second)
        house.clock.advance(5)
    assert looked_up == [0, 5, 15, 35, 75, 155, 315, 635, 1235]
    assert (await house.now(connection)).status is Status.DISCONNECTED
    assert len(house.witness.named("hook.received")) == len(looked_up)


async def test_follow_ups_of_a_flood_keep_the_pause(house: House) -> None:
    """The look-ups 1 and 10 minutes after the last hook are not made before the pause is over, but they are made."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await _grow_pause(house, connection, look_ups=9)
    await _hook(house)
    hook_at = house.clock.now()
    times = []
    while (await house.now(connection)).look_up_at is not None:
        house.clock.advance(await _wait(house, connection))
        await house.look_up_due()
        times.append((house.clock.now() - hook_at).total_seconds())
    assert times == [599, 1199]


async def test_a_hook_during_a_look_up_is_checked_after_the_pause(house: House) -> None:
    """The look-up's answer may be older than the hook, so that another one follows."""
    connection = await house.connect(api_domain=API_DOMAIN)

    async def look_up(**question: Any) -> IntrospectionResult:
        sighting = await house.client.look_up(**question)
        if not house.amo.account.disabled:
            house.clock.advance(2)
            house.amo.account.disabled = True
            await _hook(house)
        return sighting

    lifecycle = house.make_lifecycle(amo=Override(house.client, look_up=look_up))
    await _hook(house)
    await house.look_up_due(lifecycle)
    assert await _wait(house, connection) == 3
    house.clock.advance(3)
    await house.look_up_due(lifecycle)
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_replayed_hooks_during_a_look_up_do_not_keep_rejected_tokens(house: House) -> None:
    """What AMO rejects is erased, however many hooks come before its answer."""
    connection = await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True

    async def look_up(**question: Any) -> IntrospectionResult:
        for _ in range(3):
            house.clock.advance(1)
            await _hook(house)
        return await house.client.look_up(**question)

    await _hook(house)
    await house.look_up_due(house.make_lifecycle(amo=Override(house.client, look_up=look_up)))
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_hooks_do_not_make_a_claim_fail(house: House) -> None:
    """A flood of hooks delays no refresh: a row that was read before a hook can be claimed after it."""
    connection = await house.connect(api_domain=API_DOMAIN)

    async def slot(priority: Priority) -> None:
        await house.client.slot(priority)
        house.clock.advance(2)
        await _hook(house)

    coordinator = house.make_coordinator(amo=Override(house.client, slot=slot))
    read = await house.now(connection)
    await _hook(house)
    assert (await house.now(connection)).row_version == read.row_version
    assert (await coordinator.refresh(connection.id, demand=RefreshTrigger.FORCED)).pair_version == 2


async def test_each_connection_of_an_account_has_a_pause_of_its_own(house: House) -> None:
    """A hook names the account: both its connections are looked up, one of them only when its pause is over."""
    first = await house.connect(api_domain=API_DOMAIN)
    await _grow_pause(house, first, look_ups=3)
    house.amo.account.user_id += 1
    second = await house.connect(api_domain=API_DOMAIN)
    looked_up_at = (await house.now(first)).looked_up_at
    assert looked_up_at is not None
    house.amo.account.disabled = True
    await _hook(house)
    await house.look_up_due()
    assert (await house.now(second)).status is Status.DISCONNECTED
    assert (await house.now(first)).status is Status.ACTIVE
    house.clock.advance(await _wait(house, first))
    assert house.clock.now() == looked_up_at + timedelta(seconds=20)
    await house.look_up_due()
    assert (await house.now(first)).status is Status.DISCONNECTED


async def test_of_several_processes_one_makes_the_look_up(house: House) -> None:
    """All have read that it is due and wait for their slots: the first to have one asks AMO."""
    connection = await house.connect(api_domain=API_DOMAIN)
    go = asyncio.Event()
    waiting = 0

    async def slot(_priority: object) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            go.set()
        await go.wait()

    amo = Override(house.client, slot=slot)
    processes: list[TokenLifecycle] = [
        house.make_lifecycle(amo=amo, process=f"process-{number}") for number in range(3)
    ]
    await _hook(house)
    await asyncio.gather(*(process.rechecker.check(connection.id) for process in processes))
    assert house.amo.sandbox.look_ups == 1
    assert len(house.witness.named("hook.unconfirmed")) == 1


async def test_a_look_up_of_a_process_that_died_is_made_by_another(house: House) -> None:
    """Nothing came of it, so it is due again after the pause and the length of a lease."""
    connection = await house.connect(api_domain=API_DOMAIN)
    asked = asyncio.Event()

    async def look_up(**_: object) -> IntrospectionResult:
        asked.set()
        await asyncio.Event().wait()
        return IntrospectionResult(standing=TokenState.UNKNOWN)

    dying = house.make_lifecycle(amo=Override(house.client, look_up=look_up), process="process-2")
    await _hook(house)
    killed = asyncio.create_task(dying.rechecker.check(connection.id))
    await asked.wait()
    killed.cancel()
    house.amo.account.disabled = True
    house.clock.advance(5 + RefreshRules().lease)
    await house.look_up_due()
    assert (await house.now(connection)).status is Status.DISCONNECTED


async def test_hook_checks_have_the_lowest_priority_and_daily_look_ups_the_usual_one(house: House) -> None:
    """Every question of a hook check waits for a slot that refreshes leave, also where the account was given up."""
    asked: list[Priority] = []

    async def slot(priority: Priority) -> None:
        asked.append(priority)

    given_up = await house.given_up()
    lifecycle = house.make_lifecycle(amo=Override(house.client, slot=slot))
    house.amo.account.disabled = True
    house.clock.advance(DAY)
    await house.look_up_due(lifecycle)
    assert asked == [Priority.BACKGROUND]
    asked.clear()
    await _hook(house)
    house.clock.advance(await _wait(house, given_up))
    await house.look_up_due(lifecycle)
    assert asked == [Priority.HOOK_CHECK]
    assert (await house.now(given_up)).status is Status.DISCONNECTED
    house.amo.account.disabled = False
    await house.connect(api_domain=API_DOMAIN)
    house.amo.account.disabled = True
    asked.clear()
    await _hook(house)
    await house.look_up_due(lifecycle)
    assert asked == [Priority.HOOK_CHECK] * 2
