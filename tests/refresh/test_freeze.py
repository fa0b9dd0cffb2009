"""Frozen: nothing is spent, and everything else goes on."""

from typing import Any

import pytest

from amo_callback.errors import Frozen
from amo_callback.model import Connection, RefreshTrigger, Status
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def _freeze(harness: RefreshHarness, connection: Connection, *, everything: bool) -> TokenLifecycle:
    """Freeze one connection, or all, as another process does."""
    other = harness.make_lifecycle(process="process-2")
    await (other.freeze_switch.freeze_all(why="a move") if everything else other.freeze_switch.freeze(connection))
    return other


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("trigger", list(RefreshTrigger))
async def test_on_nobodys_demand_is_anything_spent_while_it_is_frozen(
    harness: RefreshHarness, trigger: RefreshTrigger, *, everything: bool
) -> None:
    """Schedule, hand-out, a rejected token, probe and trial are refused alike, and nothing reaches AMO."""
    connection = await harness.connect()
    await _freeze(harness, connection, everything=everything)
    await harness.fail(connection, Frozen, trigger=trigger)
    assert harness.presented() == []
    assert (await harness.now(connection)).attempt is None


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_who_froze_during_the_wait_for_a_slot_is_heard(harness: RefreshHarness, *, everything: bool) -> None:
    """Free when the queue was joined, frozen when the slot came: the token stays at home."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection)
    await _freeze(harness, connection, everything=everything)
    served.set()
    with pytest.raises(Frozen):
        await refreshing
    assert harness.presented() == []


async def test_a_refresh_in_flight_ends_well(harness: RefreshHarness) -> None:
    """What was sent before the freeze is stored after it."""
    connection = await harness.connect()
    flight = await harness.begin_slow(connection)
    other = await _freeze(harness, connection, everything=True)
    assert [one.id for one in await harness.store.attempts()] == [connection.id]
    harness.amo.sandbox.go_on.set()
    stored = await flight
    assert (stored.pair_version, stored.status) == (2, Status.ACTIVE)
    assert (await harness.store.attempts(), other.freeze_switch.frozen is None) == ([], False)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_a_live_token_is_handed_out_and_no_other(harness: RefreshHarness, *, everything: bool) -> None:
    """As fresh as it is while it has enough life, stale with the reason after, refused once it is dead."""
    connection = await harness.connect()
    await _freeze(harness, connection, everything=everything)
    access_tokens = harness.lifecycle.access_tokens
    assert not (await access_tokens.token(connection.id, min_ttl=300)).stale
    harness.clock.advance(DAY - 100)
    given = await access_tokens.token(connection.id, min_ttl=300)
    assert (given.stale, given.reason) == (True, "frozen")
    harness.clock.advance(100)
    with pytest.raises(Frozen):
        await access_tokens.token(connection.id, min_ttl=0)
    with pytest.raises(Frozen):
        await access_tokens.refresh(connection.id)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_the_loop_leaves_the_frozen_alone_until_thawed(harness: RefreshHarness, *, everything: bool) -> None:
    """Overdue for an hour, nothing is asked of AMO and nobody spins; thawed, it is refreshed within a poll."""
    connection = await harness.connect()
    other = await _freeze(harness, connection, everything=everything)
    harness.clock.advance(DAY)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(3600, step=60)
        assert harness.presented() == []
        await (other.freeze_switch.thaw_all() if everything else other.freeze_switch.thaw(connection))
        await harness.pass_time(5, step=5)
    assert (await harness.now(connection)).pair_version == 2


async def test_others_are_refreshed_while_one_is_frozen(harness: RefreshHarness) -> None:
    """Freezing one costs nobody else a refresh."""
    frozen, free = await harness.connect_users(2)
    await _freeze(harness, frozen, everything=False)
    harness.clock.advance(DAY / 2)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(10, step=5)
    assert [(await harness.now(each)).pair_version for each in (frozen, free)] == [1, 2]


async def test_a_store_found_on_another_machine_is_frozen_until_it_is_thawed_there(harness: RefreshHarness) -> None:
    """Restarts change nothing, thawing makes it this machine's, and the first one finds it elsewhere then."""
    first = harness.make_lifecycle(machine="here")
    await first.freeze_switch.begin()
    assert first.freeze_switch.frozen is None
    copy, restarted, thawed = (harness.make_lifecycle(machine="there").freeze_switch for _ in range(3))
    for each in (copy, restarted):
        await each.begin()
        assert each.frozen is not None
    await restarted.thaw_all()
    await thawed.begin()
    assert thawed.frozen is None
    await first.freeze_switch.begin()
    assert first.freeze_switch.frozen is not None


async def test_what_is_frozen_is_told_once_and_so_is_the_thaw(harness: RefreshHarness) -> None:
    """One line when it begins, with why and what to do, and one when it ends."""
    lifecycle = harness.lifecycle
    for _ in range(3):
        await lifecycle.freeze_switch.freeze_all(why="a move")
    assert lifecycle.freeze_switch.frozen is not None
    assert lifecycle.freeze_switch.frozen.why == "a move"
    for _ in range(3):
        await lifecycle.freeze_switch.thaw_all()
    assert harness.witness.names() == ["service.frozen", "service.thawed"]
    assert harness.witness.events[0].fields["text"] == "amo-callback connections thaw --all"
    recorded: list[Any] = [event.name for event in await harness.store.events(limit=10)]
    assert recorded == ["service.thawed", "service.frozen"]


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_of_a_frozen_connection_nothing_is_erased(harness: RefreshHarness, *, everything: bool) -> None:
    """A copy whose token the original has replaced looks like one that was switched off: it is not taken for one."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _freeze(harness, connection, everything=everything)
    harness.fade(connection)
    await harness.lifecycle.switched_off(connection.account_id)
    await harness.recheck_due()
    assert harness.amo.sandbox.introspections > 0
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert [webhook.type for webhook in await harness.store.webhooks(limit=9)] == []


async def test_a_copy_hands_out_nothing_that_the_original_has_replaced(harness: RefreshHarness) -> None:
    """Refreshed elsewhere, where that ends the old access token: AMO is asked, and nobody gets a dead one."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    copy = harness.make_lifecycle(machine="there")
    await harness.lifecycle.freeze_switch.begin()
    await copy.freeze_switch.begin()
    assert not (await copy.access_tokens.token(connection.id, min_ttl=0)).stale
    harness.fade(connection)
    harness.clock.advance(61)
    with pytest.raises(Frozen):
        await copy.access_tokens.token(connection.id, min_ttl=0)


@pytest.mark.parametrize("machine", ["there", "here"])
async def test_what_was_thawed_elsewhere_is_due_at_once(harness: RefreshHarness, machine: str) -> None:
    """Whether its tokens are the newest is not known; what was frozen on request nobody else had: due when it was."""
    connection = await harness.connect()
    await harness.lifecycle.freeze_switch.begin()
    copy = harness.make_lifecycle(machine=machine)
    await copy.freeze_switch.begin()
    if machine == "here":
        await copy.freeze_switch.freeze_all(why="a pause")
    harness.clock.advance(60)
    await copy.freeze_switch.thaw_all()
    due = harness.clock.now() if machine == "there" else connection.next_refresh_at
    assert (await harness.now(connection)).next_refresh_at == due
