"""Frozen: nothing is spent, and everything else goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import Frozen
from amo_callback.model import Connection, RefreshTrigger, Status
from tests.builders import a_claim
from tests.refresh.house import API_DOMAIN, DAY
from tests.refresh.test_interleavings import Queue

if TYPE_CHECKING:
    from amo_callback.amo.client import AmoClient
    from amo_callback.tokens.lifecycle import TokenLifecycle
    from tests.refresh.house import House


async def _freeze(house: House, connection: Connection, *, everything: bool) -> TokenLifecycle:
    """Freeze one connection, or all, as another process does."""
    other = house.make_lifecycle(process="process-2")
    await (other.freeze_switch.freeze_all(why="a move") if everything else other.freeze_switch.freeze(connection))
    return other


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("demand", list(RefreshTrigger))
async def test_on_nobodys_demand_is_anything_spent_while_it_is_frozen(
    house: House,
    demand: RefreshTrigger,
    everything: bool,  # noqa: FBT001 -- because it is a column of the tables above
) -> None:
    """Schedule, hand-out, a rejected token, probe and trial are refused alike, and nothing reaches AMO."""
    connection = await house.connect()
    await _freeze(house, connection, everything=everything)
    with pytest.raises(Frozen):
        await house.refresh(connection, demand=demand)
    assert house.amo.fake.ledger.refreshes() == []
    assert (await house.now(connection)).attempt is None


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_who_froze_during_the_wait_for_a_slot_is_heard(house: House, everything: bool) -> None:  # noqa: FBT001 -- because it is the column above
    """Free when the queue was joined, frozen when the slot came: the token stays at home."""
    connection = await house.connect()
    queue = Queue(house)
    coordinator = house.make_coordinator(amo=cast("AmoClient", queue))
    refreshing = asyncio.create_task(coordinator.refresh(connection.id, demand=RefreshTrigger.SCHEDULE))
    await queue.asked.wait()
    await _freeze(house, connection, everything=everything)
    queue.served.set()
    with pytest.raises(Frozen):
        await refreshing
    assert house.amo.fake.ledger.refreshes() == []


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_a_claim_is_refused_by_the_store_itself(house: House, everything: bool) -> None:  # noqa: FBT001 -- because it is the column above
    """Whoever read the row before it was frozen, and claims after, comes too late: no process can miss it."""
    connection = await house.connect()
    await _freeze(house, connection, everything=everything)
    read = await house.now(connection)
    assert await house.store.claim(a_claim(read)) is None


async def test_a_refresh_in_flight_ends_well(house: House) -> None:
    """What was sent before the freeze is stored after it."""
    connection = await house.connect()
    house.amo.sandbox.faults.add(Fault.SLOW)
    flight = asyncio.create_task(house.refresh(connection))
    await house.amo.sandbox.until_asked(2)
    other = await _freeze(house, connection, everything=True)
    assert [one.id for one in await house.store.attempts()] == [connection.id]
    house.amo.sandbox.go_on.set()
    stored = await flight
    assert (stored.pair_version, stored.status) == (2, Status.ACTIVE)
    assert (await house.store.attempts(), other.freeze_switch.frozen is None) == ([], False)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_a_live_token_is_handed_out_and_no_other(house: House, everything: bool) -> None:  # noqa: FBT001 -- because it is the column above
    """As fresh as it is while it has enough life, stale with the reason after, refused once it is dead."""
    connection = await house.connect()
    await _freeze(house, connection, everything=everything)
    access_tokens = house.lifecycle.access_tokens
    assert not (await access_tokens.token(connection.id, min_ttl=300)).stale
    house.clock.advance(DAY - 100)
    given = await access_tokens.token(connection.id, min_ttl=300)
    assert (given.stale, given.reason) == (True, "frozen")
    house.clock.advance(100)
    with pytest.raises(Frozen):
        await access_tokens.token(connection.id, min_ttl=0)
    with pytest.raises(Frozen):
        await access_tokens.refresh(connection.id)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_the_loop_leaves_the_frozen_alone_and_goes_on_once_thawed(house: House, everything: bool) -> None:  # noqa: FBT001 -- because it is the column above
    """Overdue for an hour, nothing is asked of AMO and nobody spins; thawed, it is refreshed within a poll."""
    connection = await house.connect()
    other = await _freeze(house, connection, everything=everything)
    house.clock.advance(DAY)
    async with house.running(house.lifecycle):
        await house.pass_time(3600, step=60)
        assert house.amo.fake.ledger.refreshes() == []
        await (other.freeze_switch.thaw_all() if everything else other.freeze_switch.thaw(connection))
        await house.pass_time(5, step=5)
    assert (await house.now(connection)).pair_version == 2


async def test_others_are_refreshed_while_one_is_frozen(house: House) -> None:
    """Freezing one costs nobody else a refresh."""
    frozen = await house.connect()
    house.amo.account.user_id += 1
    free = await house.connect()
    await _freeze(house, frozen, everything=False)
    house.clock.advance(DAY / 2)
    async with house.running(house.lifecycle):
        await house.pass_time(10, step=5)
    assert [(await house.now(each)).pair_version for each in (frozen, free)] == [1, 2]


async def test_a_store_found_on_another_machine_is_frozen_until_somebody_thaws_it_there(house: House) -> None:
    """Restarts change nothing, thawing makes it this machine's, and the first one finds it elsewhere then."""
    first = house.make_lifecycle(machine="here")
    await first.freeze_switch.begin()
    assert first.freeze_switch.frozen is None
    copy, restarted, thawed = (house.make_lifecycle(machine="there").freeze_switch for _ in range(3))
    for each in (copy, restarted):
        await each.begin()
        assert each.frozen is not None
    await restarted.thaw_all()
    await thawed.begin()
    assert thawed.frozen is None
    await first.freeze_switch.begin()
    assert first.freeze_switch.frozen is not None


async def test_what_is_frozen_is_told_once_and_so_is_the_thaw(house: House) -> None:
    """One line when it begins, with why and what to do, and one when it ends."""
    lifecycle = house.lifecycle
    for _ in range(3):
        await lifecycle.freeze_switch.freeze_all(why="a move")
    assert lifecycle.freeze_switch.frozen is not None
    assert lifecycle.freeze_switch.frozen.why == "a move"
    for _ in range(3):
        await lifecycle.freeze_switch.thaw_all()
    assert house.witness.names() == ["service.frozen", "service.thawed"]
    assert house.witness.events[0].fields["text"] == "amo-callback connections thaw --all"
    recorded: list[Any] = [event.name for event in await house.store.events(limit=10)]
    assert recorded == ["service.thawed", "service.frozen"]


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_of_a_frozen_connection_nothing_is_erased(house: House, everything: bool) -> None:  # noqa: FBT001 -- because it is the column above
    """A copy whose token the original has replaced looks like one that was switched off: it is not taken for one."""
    connection = await house.connect(api_domain=API_DOMAIN)
    await _freeze(house, connection, everything=everything)
    house.fade(connection)
    await house.lifecycle.switched_off(connection.account_id)
    await house.look_up_due()
    assert house.amo.sandbox.look_ups > 0
    assert (await house.now(connection)).status is Status.ACTIVE
    assert [webhook.type for webhook in await house.store.webhooks(limit=9)] == []


async def test_a_copy_hands_out_nothing_that_the_original_has_replaced(house: House) -> None:
    """Refreshed elsewhere, where that ends the old access token: AMO is asked, and nobody gets a dead one."""
    connection = await house.connect(api_domain=API_DOMAIN)
    copy = house.make_lifecycle(machine="there")
    await house.lifecycle.freeze_switch.begin()
    await copy.freeze_switch.begin()
    assert not (await copy.access_tokens.token(connection.id, min_ttl=0)).stale
    house.fade(connection)
    house.clock.advance(61)
    with pytest.raises(Frozen):
        await copy.access_tokens.token(connection.id, min_ttl=0)


async def test_what_was_thawed_elsewhere_is_due_at_once(house: House) -> None:
    """Whether its tokens are the newest is not known: they are refreshed, and the dead are found out."""
    connection = await house.connect()
    await house.lifecycle.freeze_switch.begin()
    copy = house.make_lifecycle(machine="there")
    await copy.freeze_switch.begin()
    house.clock.advance(60)
    await copy.freeze_switch.thaw_all()
    assert (await house.now(connection)).next_refresh_at == house.clock.now()


async def test_what_was_frozen_on_request_is_due_when_it_was(house: House) -> None:
    """Nobody else had it meanwhile."""
    connection = await house.connect()
    await house.lifecycle.freeze_switch.freeze_all(why="a pause")
    await house.lifecycle.freeze_switch.thaw_all()
    assert (await house.now(connection)).next_refresh_at == connection.next_refresh_at
