"""Frozen connections and services: no token is spent, and hand-outs continue."""

from typing import Any

import pytest

from amo_callback.errors import Frozen
from amo_callback.model import Connection, RefreshTrigger, Status
from amo_callback.tokens.lifecycle import TokenLifecycle
from tests.refresh.harness import API_DOMAIN, DAY, RefreshHarness


async def _freeze(harness: RefreshHarness, connection: Connection, *, everything: bool) -> TokenLifecycle:
    """Freeze one connection, or all, by another process."""
    other = harness.make_lifecycle(process="process-2")
    await (other.freeze_switch.freeze_all(why="a move") if everything else other.freeze_switch.freeze(connection))
    return other


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
@pytest.mark.parametrize("trigger", list(RefreshTrigger))
async def test_frozen_connection_rejects_every_trigger(
    harness: RefreshHarness, trigger: RefreshTrigger, *, everything: bool
) -> None:
    """A refresh of a frozen connection is rejected for every trigger, and nothing is sent."""
    connection = await harness.connect()
    await _freeze(harness, connection, everything=everything)
    await harness.fail(connection, Frozen, trigger=trigger)
    assert harness.presented() == []
    assert (await harness.now(connection)).attempt is None


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_freeze_during_slot_wait_stops_refresh(harness: RefreshHarness, *, everything: bool) -> None:
    """A freeze while a refresh waits for its slot prevents the request."""
    connection = await harness.connect()
    refreshing, served = await harness.begin_queued(connection)
    await _freeze(harness, connection, everything=everything)
    served.set()
    with pytest.raises(Frozen):
        await refreshing
    assert harness.presented() == []


async def test_freeze_during_request_stores_pair(harness: RefreshHarness) -> None:
    """The pair of a request that was sent before the freeze is stored."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    other = await _freeze(harness, connection, everything=True)
    assert [one.id for one in await harness.store.attempts()] == [connection.id]
    harness.amo.sandbox.go_on.set()
    stored = await refreshing
    assert (stored.pair_version, stored.status) == (2, Status.ACTIVE)
    assert (await harness.store.attempts(), other.freeze_switch.frozen is None) == ([], False)


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_frozen_connection_hands_out_token_until_expiry(harness: RefreshHarness, *, everything: bool) -> None:
    """A frozen connection's token is handed out as fresh, then as stale, and not after its expiry."""
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
async def test_scheduler_frozen_connection_is_refreshed_after_thaw(
    harness: RefreshHarness, *, everything: bool
) -> None:
    """The scheduler sends nothing for an overdue frozen connection, and refreshes it after the thaw."""
    connection = await harness.connect()
    other = await _freeze(harness, connection, everything=everything)
    harness.clock.advance(DAY)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(3600, step=60)
        assert harness.presented() == []
        await (other.freeze_switch.thaw_all() if everything else other.freeze_switch.thaw(connection))
        await harness.pass_time(5, step=5)
    assert (await harness.now(connection)).pair_version == 2


async def test_scheduler_one_frozen_connection_does_not_stop_others(harness: RefreshHarness) -> None:
    """Other connections are refreshed while one is frozen."""
    frozen, free = await harness.connect_users(2)
    await _freeze(harness, frozen, everything=False)
    harness.clock.advance(DAY / 2)
    async with harness.running(harness.lifecycle):
        await harness.pass_time(10, step=5)
    assert [(await harness.now(each)).pair_version for each in (frozen, free)] == [1, 2]


async def test_store_on_another_machine_is_frozen_until_thawed(harness: RefreshHarness) -> None:
    """A store on another machine is frozen until a thaw there; the first machine then finds it frozen."""
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


async def test_freeze_and_thaw_are_each_reported_once(harness: RefreshHarness) -> None:
    """The first freeze is reported with its reason and the command to end it, and the first thaw once."""
    lifecycle = harness.lifecycle
    for _ in range(3):
        await lifecycle.freeze_switch.freeze_all(why="a move")
    assert lifecycle.freeze_switch.frozen is not None
    assert lifecycle.freeze_switch.frozen.why == "a move"
    for _ in range(3):
        await lifecycle.freeze_switch.thaw_all()
    assert harness.witness.names() == ["service.frozen", "service.thawed"]
    assert harness.witness.events[0].fields["text"] == (
        "once no other host uses these tokens, run `amo-callback connections thaw --all`"
    )
    recorded: list[Any] = [event.name for event in await harness.store.events(limit=10)]
    assert recorded == ["service.thawed", "service.frozen"]


@pytest.mark.parametrize("everything", [True, False], ids=["all", "one"])
async def test_disable_hook_frozen_connection_is_not_erased(harness: RefreshHarness, *, everything: bool) -> None:
    """Rejected tokens of a frozen connection are not erased, because the original may have refreshed them."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    await _freeze(harness, connection, everything=everything)
    harness.refresh_elsewhere(connection)
    await harness.lifecycle.integration_disabled(connection.account_id)
    await harness.run_due_rechecks()
    assert harness.amo.sandbox.introspections > 0
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert [webhook.type for webhook in await harness.store.webhooks(limit=9)] == []


async def test_copied_store_does_not_hand_out_replaced_token(harness: RefreshHarness) -> None:
    """A copied store does not hand out an access token that AMO rejects after the original's refresh."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    copy = harness.make_lifecycle(machine="there")
    await harness.lifecycle.freeze_switch.begin()
    await copy.freeze_switch.begin()
    assert not (await copy.access_tokens.token(connection.id, min_ttl=0)).stale
    harness.refresh_elsewhere(connection)
    harness.clock.advance(61)
    with pytest.raises(Frozen):
        await copy.access_tokens.token(connection.id, min_ttl=0)


@pytest.mark.parametrize("machine", ["there", "here"])
async def test_thaw_on_another_machine_makes_connections_due(harness: RefreshHarness, machine: str) -> None:
    """A thawed copy's connections are due at once; after a requested freeze the due time is unchanged."""
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
