"""Maintenance: corrections after clock steps, and warnings before refresh tokens expire."""

from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import AccountBlocked, Frozen, NotYet, StoreUnavailable
from amo_callback.events import Event
from amo_callback.model import Connection, Status, TokenResponse
from amo_callback.refresh.maintenance import Maintenance
from tests.builders import a_connection, a_core, present, save
from tests.fakes import Override
from tests.refresh.harness import DAY, RefreshHarness

HOUR = 3600.0


def _maintenance(harness: RefreshHarness) -> Maintenance:
    return Maintenance(a_core(store=harness.store, clock=harness.clock, observer=harness.witness))


async def _watch_for(harness: RefreshHarness, maintenance: Maintenance, seconds: float, *, step: float) -> list[Event]:
    """Run maintenance every `step` seconds, as the scheduler does, and return the warnings."""
    for _ in range(round(seconds / step)):
        await maintenance.watch()
        harness.clock.advance(step)
    await maintenance.watch()
    return harness.witness.named("connection.expiring")


async def test_expiry_warning_is_sent_once_at_30_7_and_1_days(harness: RefreshHarness) -> None:
    """Each warning before a refresh token expires is reported once, by one process."""
    connection = await harness.connect()
    one, other = _maintenance(harness), _maintenance(harness)
    warnings: list[tuple[object, timedelta]] = []
    for _ in range(91 * 4):
        for maintenance in (one, other):
            before = len(harness.witness.events)
            await maintenance.watch()
            warnings += [
                (event.fields["days"], timedelta(days=90) - (harness.clock.now() - connection.connected_at))
                for event in harness.witness.events[before:]
            ]
        harness.clock.advance(DAY / 4)
    assert [days for days, _ in warnings] == [30, 7, 1]
    assert all(timedelta(days=int(str(days))) - left <= timedelta(days=0.25) for days, left in warnings)
    events = [event for event in await harness.store.events(limit=100) if event.name == "connection.expiring"]
    assert [event.details["days"] for event in events] == [1, 7, 30]


async def test_expiry_warning_late_detection_sends_one_warning(harness: RefreshHarness) -> None:
    """A connection found half a day before expiry gets one warning."""
    await harness.connect(refresh_expires_at=harness.clock.now() + timedelta(days=0.5))
    assert [event.fields["days"] for event in await _watch_for(harness, _maintenance(harness), 2 * HOUR, step=60)] == [
        1
    ]


async def test_expiry_warning_after_refresh_is_sent_for_new_expiry(harness: RefreshHarness) -> None:
    """A refresh sets a new expiry, for which the warnings are repeated."""
    connection = await harness.connect(refresh_expires_at=harness.clock.now() + timedelta(days=20))
    maintenance = _maintenance(harness)
    assert len(await _watch_for(harness, maintenance, 2 * HOUR, step=60)) == 1
    refreshed = await harness.refresh(connection)
    assert refreshed.refresh_expires_at == harness.clock.now() + timedelta(days=90)
    harness.clock.advance(61 * DAY)
    assert len(await _watch_for(harness, maintenance, HOUR, step=60)) == 2


async def test_expiry_warning_after_long_downtime_waits_for_refresh(harness: RefreshHarness) -> None:
    """After two months without the service no warning is sent in the first hour, before the refresh."""
    connection = await harness.connect()
    harness.clock.advance(70 * DAY)
    maintenance = _maintenance(harness)
    assert await _watch_for(harness, maintenance, HOUR - 60, step=60) == []
    await harness.refresh(connection)
    assert await _watch_for(harness, maintenance, 5 * HOUR, step=60) == []


async def test_expiry_warning_needs_reauth_connection_gets_none(harness: RefreshHarness) -> None:
    """A `needs_reauth` connection gets no warning."""
    await harness.connect_revoked()
    assert await _watch_for(harness, _maintenance(harness), 89 * DAY, step=12 * HOUR) == []


async def _step_clock(harness: RefreshHarness, *days: float) -> Maintenance:
    """Step the clock by `days`, and run maintenance before and after each step."""
    maintenance = _maintenance(harness)
    await maintenance.watch()
    for each in days:
        harness.clock.step(timedelta(days=each))
        await maintenance.watch()
    return maintenance


async def _run_across_clock_step(harness: RefreshHarness, step: timedelta) -> Connection:
    """Connect an account, run for half an hour, step the clock, and run for two minutes."""
    before = await harness.connect()
    async with harness.running(harness.lifecycle):
        await harness.pass_time(1800, step=60)
        harness.clock.step(step)
        harness.amo.fake.now = lambda: harness.clock.now() - step  # AMO's clock stays right
        await harness.pass_time(120, step=5)
    return await harness.now(before)


@pytest.mark.parametrize("hours", [1, 24 * 91], ids=["an hour", "three months"])
async def test_clock_moved_back_makes_connections_due(harness: RefreshHarness, hours: int) -> None:
    """A step back makes every connection due, because the age of its token is unknown."""
    after = await _run_across_clock_step(harness, -timedelta(hours=hours))
    assert after.pair_version == 2
    left = present(after.access_expires_at) - harness.clock.now()
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    [event] = harness.witness.named("clock.moved_back")
    assert event.fields["seconds"] == pytest.approx(hours * HOUR, abs=61)
    assert harness.amo.fake.ledger.doubles() == 0


@pytest.mark.parametrize(
    ("step", "version"), [(timedelta(hours=1), 1), (timedelta(days=91), 2)], ids=["an hour", "three months"]
)
async def test_clock_moved_forward_ends_no_connection_and_sends_no_warning(
    harness: RefreshHarness, step: timedelta, version: int
) -> None:
    """A step forward ends no connection; a connection that seems expired is refreshed."""
    after = await _run_across_clock_step(harness, step)
    assert (after.pair_version, after.status) == (version, Status.ACTIVE)
    assert harness.witness.named("connection.expiring") == []


async def test_clock_moved_back_expired_token_is_not_handed_out(harness: RefreshHarness) -> None:
    """A token expires a day after its issue although the clock was moved back by three months."""
    connection = await harness.connect()
    await _step_clock(harness, -90)
    harness.amo.sandbox.faults.add(Fault.UNPAID, Fault.UNPAID)
    assert (await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)).connection.id == connection.id
    harness.clock.advance(DAY + 61)
    with pytest.raises(AccountBlocked):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_hand_out_pair_expired_on_arrival_raises_not_yet(harness: RefreshHarness) -> None:
    """A pair that is expired by the clock when its answer arrives is stored but not handed out."""
    connection = await harness.connect()
    harness.clock.advance(10)

    async def refresh(**request: Any) -> TokenResponse:
        issued = await harness.client.refresh(**request)
        harness.clock.step(timedelta(days=2))
        return issued

    lifecycle = harness.make_lifecycle(amo=Override(harness.client, refresh=refresh))
    with pytest.raises(NotYet):
        await lifecycle.access_tokens.refresh(connection.id)
    assert (await harness.now(connection)).pair_version == 2


async def test_clock_moved_back_while_stopped_is_detected_at_start(harness: RefreshHarness) -> None:
    """A step back while the service was stopped is detected by the time stored last."""
    connection = await harness.connect()
    await _maintenance(harness).watch()
    harness.clock.step(-timedelta(days=90))
    await _maintenance(harness).watch()
    after = await harness.now(connection)
    assert after.next_refresh_at == harness.clock.now()
    assert after.access_expires_at == harness.clock.now() + timedelta(days=1)


async def test_clock_moved_back_new_grant_replaces_old_one(harness: RefreshHarness) -> None:
    """A grant after a step back replaces the grant from before it."""
    connection = await harness.connect()
    await _step_clock(harness, -90)
    again = await harness.connect()
    assert (again.id, again.pair_version) == (connection.id, 2)


async def test_clock_moved_back_pending_write_has_corrected_times(harness: RefreshHarness) -> None:
    """A pair that is stored after a step back is due and expires within its normal lifetime."""
    connection = await harness.connect()
    refreshing = await harness.begin_pending_write(connection)
    harness.clock.step(-timedelta(days=90))
    harness.failing.away = set()
    await harness.clock.tick(1)
    stored, now = await refreshing, harness.clock.now()
    assert timedelta(0) < present(stored.next_refresh_at) - now <= timedelta(days=0.5)
    assert timedelta(0) < present(stored.access_expires_at) - now <= timedelta(days=1)


async def test_clock_step_of_30_seconds_changes_nothing(harness: RefreshHarness) -> None:
    """A step of 30 s changes no row."""
    connection = await harness.connect()
    maintenance = _maintenance(harness)
    await maintenance.watch()
    harness.clock.step(-timedelta(seconds=30))
    harness.clock.advance(60)
    await maintenance.watch()
    assert await harness.now(connection) == connection


async def test_expiry_warning_frozen_connection_is_sent(harness: RefreshHarness) -> None:
    """A frozen connection is warned about, because it expires without a refresh."""
    connection = await harness.connect()
    await harness.lifecycle.freeze_switch.freeze(connection)
    [first, *_] = await _watch_for(harness, _maintenance(harness), 61 * DAY, step=12 * HOUR)
    assert (first.fields["days"], first.fields["frozen"]) == (30, True)
    await harness.fail(connection, Frozen)


async def test_expiry_warning_many_connections_each_get_one(harness: RefreshHarness) -> None:
    """Each of 250 connections that expire at the same time gets one warning."""
    for number in range(250):
        await save(harness.store, a_connection(number, refresh_expires_at=harness.clock.now() + timedelta(days=0.9)))
    warned = await _watch_for(harness, _maintenance(harness), HOUR, step=600)
    assert len({event.connection_id for event in warned}) == len(warned) == 250


async def test_clock_step_forward_and_back_keeps_expiry_times(harness: RefreshHarness) -> None:
    """A step forward and back changes no expiry time and sends no warning."""
    connection = await harness.connect()
    await harness.lifecycle.freeze_switch.freeze(connection)
    maintenance = await _step_clock(harness, 91, -91)
    after = await harness.now(connection)
    assert after.access_expires_at == connection.access_expires_at
    assert after.refresh_expires_at == connection.refresh_expires_at
    assert await _watch_for(harness, maintenance, 2 * HOUR, step=60) == []


async def test_clock_step_during_store_outage_suppresses_warnings(harness: RefreshHarness) -> None:
    """A step forward during a store outage sends no warning before overdue connections can be refreshed."""
    await harness.connect()
    maintenance = Maintenance(a_core(store=harness.failing, clock=harness.clock, observer=harness.witness))
    await _watch_for(harness, maintenance, 2 * HOUR, step=60)
    harness.failing.away = {"record_time"}
    harness.clock.step(timedelta(days=89, hours=12))
    with pytest.raises(StoreUnavailable):
        await maintenance.watch()
    harness.failing.away = set()
    harness.clock.advance(60)
    assert await _watch_for(harness, maintenance, HOUR / 2, step=60) == []


async def test_clock_moved_forward_erases_no_history(harness: RefreshHarness) -> None:
    """A step forward by 100 days does not erase the events that seem old."""
    connection = await harness.connect()
    await harness.refresh(connection)
    maintenance = _maintenance(harness)
    await _watch_for(harness, maintenance, 2 * HOUR, step=60)
    harness.clock.step(timedelta(days=100))
    await _watch_for(harness, maintenance, HOUR / 2, step=60)
    assert len(await harness.store.events(connection_id=connection.id, limit=9)) == 1


async def test_clock_difference_from_store_is_reported_once(harness: RefreshHarness) -> None:
    """A clock that differs from the store's by more than a minute is reported once until it is corrected."""
    store = Override(harness.store, clock_skew=59.0)
    maintenance = Maintenance(a_core(store=store, clock=harness.clock, observer=harness.witness))
    for ahead in (59.0, -61.0, -61.0, 0.5, 61.0):
        store.__dict__["clock_skew"] = ahead
        await maintenance.watch()
        harness.clock.advance(60)
    assert [event.fields["seconds_ahead"] for event in harness.witness.named("clock.differs")] == [-61, 61]
