"""A clock that was stepped, and refresh tokens whose three months run out."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.amo.sandbox.faults import Fault
from amo_callback.errors import AccountBlocked, AmoCallbackError, Frozen, StoreUnavailable
from amo_callback.model import Connection, Status
from amo_callback.refresh.maintenance import Maintenance
from tests.builders import a_connection, a_core, save
from tests.fakes import Override
from tests.refresh.house import DAY

if TYPE_CHECKING:
    from amo_callback.events import Event
    from tests.refresh.house import House

HOUR = 3600.0


def _deadlines(house: House) -> Maintenance:
    return Maintenance(a_core(store=house.store, clock=house.clock, observer=house.witness))


async def _watch_for(house: House, deadlines: Maintenance, seconds: float, *, step: float) -> list[Event]:
    """Let time pass, looking as the loop does; return the warnings."""
    for _ in range(round(seconds / step)):
        await deadlines.watch()
        house.clock.advance(step)
    await deadlines.watch()
    return house.witness.named("connection.expiring")


# --- three months ---------------------------------------------------------------------------------


async def test_the_end_of_a_refresh_token_is_told_once_at_30_7_and_1_days(house: House) -> None:
    """A connection that cannot be refreshed any more is told of in time, each warning once, and by one process."""
    connection = await house.connect()
    one, other = _deadlines(house), _deadlines(house)
    warnings: list[tuple[object, timedelta]] = []
    for _ in range(91 * 4):
        for deadlines in (one, other):
            before = len(house.witness.events)
            await deadlines.watch()
            warnings += [
                (event.fields["days"], timedelta(days=90) - (house.clock.now() - connection.connected_at))
                for event in house.witness.events[before:]
            ]
        house.clock.advance(DAY / 4)
    assert [days for days, _ in warnings] == [30, 7, 1]
    assert all(timedelta(days=int(str(days))) - left <= timedelta(days=0.25) for days, left in warnings)
    events = [event for event in await house.store.events(limit=100) if event.name == "connection.expiring"]
    assert [event.details["days"] for event in events] == [1, 7, 30]


async def test_who_is_late_is_told_once(house: House) -> None:
    """Found with half a day left, there is one warning and not three."""
    await house.connect(refresh_expires_at=house.clock.now() + timedelta(days=0.5))
    assert [event.fields["days"] for event in await _watch_for(house, _deadlines(house), 2 * HOUR, step=60)] == [1]


async def test_a_stored_pair_begins_the_three_months_anew(house: House) -> None:
    """After a refresh the next end is told again, when it comes."""
    connection = await house.connect(refresh_expires_at=house.clock.now() + timedelta(days=20))
    deadlines = _deadlines(house)
    assert len(await _watch_for(house, deadlines, 2 * HOUR, step=60)) == 1
    refreshed = await house.refresh(connection)
    assert refreshed.refresh_expires_at == house.clock.now() + timedelta(days=90)
    house.clock.advance(61 * DAY)
    assert len(await _watch_for(house, deadlines, HOUR, step=60)) == 2


async def test_a_long_time_off_is_no_reason_to_warn(house: House) -> None:
    """After two months off everything looks near its end: it is refreshed first, within the hour."""
    connection = await house.connect()
    house.clock.advance(70 * DAY)
    deadlines = _deadlines(house)
    assert await _watch_for(house, deadlines, HOUR - 60, step=60) == []
    await house.refresh(connection)
    assert await _watch_for(house, deadlines, 5 * HOUR, step=60) == []


async def test_whoever_was_given_up_is_not_warned_of(house: House) -> None:
    """The person is needed already, and knows."""
    await house.given_up()
    assert await _watch_for(house, _deadlines(house), 89 * DAY, step=HOUR) == []


# --- the clock ------------------------------------------------------------------------------------


async def _after_a_step(house: House, step: timedelta) -> tuple[Connection, Connection]:
    """Connect an account, let half an hour pass, step the clock, and let the loop work for a while."""
    before = await house.connect()
    lifecycle = house.lifecycle
    async with house.running(lifecycle):
        await house.pass_time(1800, step=60)
        house.clock.step(step)
        house.amo.fake.now = lambda: house.clock.now() - step  # AMO's clock was right all the time
        await house.pass_time(120, step=5)
    return before, await house.now(before)


@pytest.mark.parametrize("hours", [1, 24 * 91], ids=["an hour", "three months"])
async def test_a_clock_that_went_back_makes_everything_due(house: House, hours: int) -> None:
    """How old a token is cannot be told any more: it is refreshed at once, and its times are as the new clock's."""
    _, after = await _after_a_step(house, -timedelta(hours=hours))
    assert after.pair_version == 2
    assert after.access_expires_at is not None
    assert timedelta(hours=23) < after.access_expires_at - house.clock.now() <= timedelta(hours=24)
    [told] = house.witness.named("clock.moved_back")
    assert told.fields["seconds"] == pytest.approx(hours * HOUR, abs=61)
    assert house.amo.fake.ledger.doubles() == 0


async def test_an_hour_forward_ends_nothing(house: House) -> None:
    """What looks an hour older is as good as before."""
    before, after = await _after_a_step(house, timedelta(hours=1))
    assert (after.pair_version, after.status) == (before.pair_version, Status.ACTIVE)


async def test_three_months_forward_end_nothing_and_warn_nobody(house: House) -> None:
    """Everything looks dead, and is refreshed: no verdict of our own clock, and no warning."""
    _, after = await _after_a_step(house, timedelta(days=91))
    assert (after.pair_version, after.status) == (2, Status.ACTIVE)
    assert house.witness.named("connection.expiring") == []


async def test_after_the_clock_went_back_no_dead_token_is_handed_out(house: House) -> None:
    """A token that the old clock gave a day is not good for three months by the new one."""
    connection = await house.connect()
    deadlines = _deadlines(house)
    await deadlines.watch()
    house.clock.step(-timedelta(days=90))
    await deadlines.watch()
    house.amo.sandbox.faults.add(Fault.UNPAID, Fault.UNPAID)
    assert (await house.lifecycle.access_tokens.token(connection.id, min_ttl=300)).connection.id == connection.id
    house.clock.advance(DAY + 61)
    with pytest.raises(AmoCallbackError) as raised:
        await house.lifecycle.access_tokens.token(connection.id, min_ttl=0)
    assert isinstance(raised.value, AccountBlocked)


async def test_a_clock_that_went_back_while_the_service_was_off_is_found_at_the_start(house: House) -> None:
    """The store remembers what time it was."""
    connection = await house.connect()
    await _deadlines(house).watch()
    house.clock.step(-timedelta(days=90))
    await _deadlines(house).watch()
    after = await house.now(connection)
    assert after.next_refresh_at == house.clock.now()
    assert after.access_expires_at == house.clock.now() + timedelta(days=1)


async def test_a_clock_that_went_back_moves_no_new_grant_behind_an_old_one(house: House) -> None:
    """Connected by the wrong clock, connected again by the right one: the later answer holds."""
    connection = await house.connect()
    deadlines = _deadlines(house)
    await deadlines.watch()
    house.clock.step(-timedelta(days=90))
    await deadlines.watch()
    again = await house.connect()
    assert (again.id, again.pair_version) == (connection.id, 2)


async def test_a_pair_that_waited_for_its_store_while_the_clock_went_back_is_not_fresh_for_months(house: House) -> None:
    """Answered by the old clock, stored by the new one: it is due within its life all the same."""
    connection = await house.connect()
    house.failing.away = {"save_refreshed"}
    refreshing = asyncio.create_task(house.refresh(connection))
    await house.witness.until("pair.write_pending")
    house.clock.step(-timedelta(days=90))
    house.failing.away = set()
    await house.clock.until_sleeping()
    house.clock.advance(1)
    stored = await refreshing
    now = house.clock.now()
    assert stored.next_refresh_at is not None
    assert stored.access_expires_at is not None
    assert timedelta(0) < stored.next_refresh_at - now <= timedelta(days=0.5)
    assert timedelta(0) < stored.access_expires_at - now <= timedelta(days=1)


async def test_a_small_step_is_nothing(house: House) -> None:
    """Clocks are set by seconds all the time."""
    connection = await house.connect()
    deadlines = _deadlines(house)
    await deadlines.watch()
    house.clock.step(-timedelta(seconds=30))
    house.clock.advance(60)
    await deadlines.watch()
    assert await house.now(connection) == connection


async def test_frozen_connections_are_warned_of(house: House) -> None:
    """What is not refreshed because somebody froze it dies all the same."""
    connection = await house.connect()
    await house.lifecycle.freeze_switch.freeze(connection)
    [first, *_] = await _watch_for(house, _deadlines(house), 61 * DAY, step=HOUR)
    assert (first.fields["days"], first.fields["frozen"]) == (30, True)
    with pytest.raises(Frozen):
        await house.refresh(connection)


async def test_many_that_end_at_once_are_all_warned_of(house: House) -> None:
    """However many there are, each has its warning."""
    for number in range(250):
        await save(house.store, a_connection(number, refresh_expires_at=house.clock.now() + timedelta(days=0.9)))
    warned = await _watch_for(house, _deadlines(house), HOUR, step=600)
    assert len({event.connection_id for event in warned}) == len(warned) == 250


async def test_a_glitch_of_the_clock_leaves_true_times_alone(house: House) -> None:
    """Three months ahead for a moment, and right again: what the right clock wrote is as it was, and only due."""
    connection = await house.connect()
    await house.lifecycle.freeze_switch.freeze(connection)
    deadlines = _deadlines(house)
    await deadlines.watch()
    for days in (91, -91):
        house.clock.step(timedelta(days=days))
        await deadlines.watch()
    after = await house.now(connection)
    assert (after.access_expires_at, after.refresh_expires_at) == (
        connection.access_expires_at,
        connection.refresh_expires_at,
    )
    assert await _watch_for(house, deadlines, 2 * HOUR, step=60) == []


async def test_a_step_in_a_round_in_which_the_store_is_away_is_not_forgotten(house: House) -> None:
    """The clock was put on while nothing could be noted: nobody is warned before what looks overdue was refreshed."""
    await house.connect()
    deadlines = Maintenance(a_core(store=house.failing, clock=house.clock, observer=house.witness))
    await _watch_for(house, deadlines, 2 * HOUR, step=60)
    house.failing.away = {"record_time"}
    house.clock.step(timedelta(days=89, hours=12))
    with pytest.raises(StoreUnavailable):
        await deadlines.watch()
    house.failing.away = set()
    house.clock.advance(60)
    assert await _watch_for(house, deadlines, HOUR / 2, step=60) == []


async def test_a_clock_that_is_put_on_erases_no_history(house: House) -> None:
    """What looks ninety days old for a moment is not forgotten."""
    connection = await house.connect()
    await house.refresh(connection)
    deadlines = _deadlines(house)
    await _watch_for(house, deadlines, 2 * HOUR, step=60)
    house.clock.step(timedelta(days=100))
    await _watch_for(house, deadlines, HOUR / 2, step=60)
    assert len(await house.store.events(connection_id=connection.id, limit=9)) == 1


async def test_a_clock_that_differs_from_the_stores_is_told_once(house: House) -> None:
    """An administrator sets it right; until then leases are told by the store's, and all else by a wrong one."""
    store = Override(house.store, clock_skew=59.0)
    deadlines = Maintenance(a_core(store=store, clock=house.clock, observer=house.witness))
    for ahead in (59.0, -61.0, -61.0, 0.5, 61.0):
        store.__dict__["clock_skew"] = ahead
        await deadlines.watch()
        house.clock.advance(60)
    assert [event.fields["seconds_ahead"] for event in house.witness.named("clock.differs")] == [-61, 61]
