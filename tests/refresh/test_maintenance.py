"""A clock that was stepped, and refresh tokens whose three months run out."""

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


def _deadlines(harness: RefreshHarness) -> Maintenance:
    return Maintenance(a_core(store=harness.store, clock=harness.clock, observer=harness.witness))


async def _watch_for(harness: RefreshHarness, deadlines: Maintenance, seconds: float, *, step: float) -> list[Event]:
    """Let time pass, looking as the loop does; return the warnings."""
    for _ in range(round(seconds / step)):
        await deadlines.watch()
        harness.clock.advance(step)
    await deadlines.watch()
    return harness.witness.named("connection.expiring")


async def test_the_end_of_a_refresh_token_is_told_once_at_30_7_and_1_days(harness: RefreshHarness) -> None:
    """A connection that cannot be refreshed any more is told of in time, each warning once, and by one process."""
    connection = await harness.connect()
    one, other = _deadlines(harness), _deadlines(harness)
    warnings: list[tuple[object, timedelta]] = []
    for _ in range(91 * 4):
        for deadlines in (one, other):
            before = len(harness.witness.events)
            await deadlines.watch()
            warnings += [
                (event.fields["days"], timedelta(days=90) - (harness.clock.now() - connection.connected_at))
                for event in harness.witness.events[before:]
            ]
        harness.clock.advance(DAY / 4)
    assert [days for days, _ in warnings] == [30, 7, 1]
    assert all(timedelta(days=int(str(days))) - left <= timedelta(days=0.25) for days, left in warnings)
    events = [event for event in await harness.store.events(limit=100) if event.name == "connection.expiring"]
    assert [event.details["days"] for event in events] == [1, 7, 30]


async def test_who_is_late_is_told_once(harness: RefreshHarness) -> None:
    """Found with half a day left, there is one warning and not three."""
    await harness.connect(refresh_expires_at=harness.clock.now() + timedelta(days=0.5))
    assert [event.fields["days"] for event in await _watch_for(harness, _deadlines(harness), 2 * HOUR, step=60)] == [1]


async def test_a_stored_pair_begins_the_three_months_anew(harness: RefreshHarness) -> None:
    """After a refresh the next end is told again, when it comes."""
    connection = await harness.connect(refresh_expires_at=harness.clock.now() + timedelta(days=20))
    deadlines = _deadlines(harness)
    assert len(await _watch_for(harness, deadlines, 2 * HOUR, step=60)) == 1
    refreshed = await harness.refresh(connection)
    assert refreshed.refresh_expires_at == harness.clock.now() + timedelta(days=90)
    harness.clock.advance(61 * DAY)
    assert len(await _watch_for(harness, deadlines, HOUR, step=60)) == 2


async def test_a_long_time_off_is_no_reason_to_warn(harness: RefreshHarness) -> None:
    """After two months off everything looks near its end: it is refreshed first, within the hour."""
    connection = await harness.connect()
    harness.clock.advance(70 * DAY)
    deadlines = _deadlines(harness)
    assert await _watch_for(harness, deadlines, HOUR - 60, step=60) == []
    await harness.refresh(connection)
    assert await _watch_for(harness, deadlines, 5 * HOUR, step=60) == []


async def test_whoever_was_given_up_is_not_warned_of(harness: RefreshHarness) -> None:
    """The person is needed already, and knows."""
    await harness.given_up()
    assert await _watch_for(harness, _deadlines(harness), 89 * DAY, step=12 * HOUR) == []


async def _stepped(harness: RefreshHarness, *days: float) -> Maintenance:
    """Have the clock stepped between two looks."""
    deadlines = _deadlines(harness)
    await deadlines.watch()
    for each in days:
        harness.clock.step(timedelta(days=each))
        await deadlines.watch()
    return deadlines


async def _after_a_step(harness: RefreshHarness, step: timedelta) -> Connection:
    """Connect an account, let half an hour pass, step the clock, and let the loop work for a while."""
    before = await harness.connect()
    async with harness.running(harness.lifecycle):
        await harness.pass_time(1800, step=60)
        harness.clock.step(step)
        harness.amo.fake.now = lambda: harness.clock.now() - step  # AMO's clock was right all the time
        await harness.pass_time(120, step=5)
    return await harness.now(before)


@pytest.mark.parametrize("hours", [1, 24 * 91], ids=["an hour", "three months"])
async def test_a_clock_that_went_back_makes_everything_due(harness: RefreshHarness, hours: int) -> None:
    """How old a token is cannot be told any more: it is refreshed at once, and its times are as the new clock's."""
    after = await _after_a_step(harness, -timedelta(hours=hours))
    assert after.pair_version == 2
    left = present(after.access_expires_at) - harness.clock.now()
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    [told] = harness.witness.named("clock.moved_back")
    assert told.fields["seconds"] == pytest.approx(hours * HOUR, abs=61)
    assert harness.amo.fake.ledger.doubles() == 0


@pytest.mark.parametrize(
    ("step", "version"), [(timedelta(hours=1), 1), (timedelta(days=91), 2)], ids=["an hour", "three months"]
)
async def test_a_clock_that_is_put_forward_ends_nothing_and_warns_nobody(
    harness: RefreshHarness, step: timedelta, version: int
) -> None:
    """What looks an hour older is as good as before; what looks dead is refreshed."""
    after = await _after_a_step(harness, step)
    assert (after.pair_version, after.status) == (version, Status.ACTIVE)
    assert harness.witness.named("connection.expiring") == []


async def test_after_the_clock_went_back_no_dead_token_is_handed_out(harness: RefreshHarness) -> None:
    """A token that the old clock gave a day is not good for three months by the new one."""
    connection = await harness.connect()
    await _stepped(harness, -90)
    harness.amo.sandbox.faults.add(Fault.UNPAID, Fault.UNPAID)
    assert (await harness.lifecycle.access_tokens.token(connection.id, min_ttl=300)).connection.id == connection.id
    harness.clock.advance(DAY + 61)
    with pytest.raises(AccountBlocked):
        await harness.lifecycle.access_tokens.token(connection.id, min_ttl=0)


async def test_a_pair_that_is_dead_by_the_clock_when_it_comes_is_not_handed_out(harness: RefreshHarness) -> None:
    """The machine slept, or its clock was set, with the answer in hand: whoever asked is told to come again."""
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


async def test_a_clock_that_went_back_while_the_service_was_off_is_found_at_the_start(harness: RefreshHarness) -> None:
    """The store remembers what time it was."""
    connection = await harness.connect()
    await _deadlines(harness).watch()
    harness.clock.step(-timedelta(days=90))
    await _deadlines(harness).watch()
    after = await harness.now(connection)
    assert after.next_refresh_at == harness.clock.now()
    assert after.access_expires_at == harness.clock.now() + timedelta(days=1)


async def test_a_clock_that_went_back_moves_no_new_grant_behind_an_old_one(harness: RefreshHarness) -> None:
    """Connected by the wrong clock, connected again by the right one: the later answer holds."""
    connection = await harness.connect()
    await _stepped(harness, -90)
    again = await harness.connect()
    assert (again.id, again.pair_version) == (connection.id, 2)


async def test_a_pair_that_waited_while_the_clock_went_back_is_not_fresh_for_months(harness: RefreshHarness) -> None:
    """Answered by the old clock, stored by the new one: it is due within its life all the same."""
    connection = await harness.connect()
    refreshing = await harness.begin_unsaved(connection)
    harness.clock.step(-timedelta(days=90))
    harness.failing.away = set()
    await harness.clock.tick(1)
    stored, now = await refreshing, harness.clock.now()
    assert timedelta(0) < present(stored.next_refresh_at) - now <= timedelta(days=0.5)
    assert timedelta(0) < present(stored.access_expires_at) - now <= timedelta(days=1)


async def test_a_small_step_is_nothing(harness: RefreshHarness) -> None:
    """Clocks are set by seconds all the time."""
    connection = await harness.connect()
    deadlines = _deadlines(harness)
    await deadlines.watch()
    harness.clock.step(-timedelta(seconds=30))
    harness.clock.advance(60)
    await deadlines.watch()
    assert await harness.now(connection) == connection


async def test_frozen_connections_are_warned_of(harness: RefreshHarness) -> None:
    """What is not refreshed because somebody froze it dies all the same."""
    connection = await harness.connect()
    await harness.lifecycle.freeze_switch.freeze(connection)
    [first, *_] = await _watch_for(harness, _deadlines(harness), 61 * DAY, step=12 * HOUR)
    assert (first.fields["days"], first.fields["frozen"]) == (30, True)
    await harness.fail(connection, Frozen)


async def test_many_that_end_at_once_are_all_warned_of(harness: RefreshHarness) -> None:
    """However many there are, each has its warning."""
    for number in range(250):
        await save(harness.store, a_connection(number, refresh_expires_at=harness.clock.now() + timedelta(days=0.9)))
    warned = await _watch_for(harness, _deadlines(harness), HOUR, step=600)
    assert len({event.connection_id for event in warned}) == len(warned) == 250


async def test_a_glitch_of_the_clock_leaves_true_times_alone(harness: RefreshHarness) -> None:
    """Three months ahead for a moment, and right again: what the right clock wrote is as it was, and only due."""
    connection = await harness.connect()
    await harness.lifecycle.freeze_switch.freeze(connection)
    deadlines = await _stepped(harness, 91, -91)
    after = await harness.now(connection)
    assert after.access_expires_at == connection.access_expires_at
    assert after.refresh_expires_at == connection.refresh_expires_at
    assert await _watch_for(harness, deadlines, 2 * HOUR, step=60) == []


async def test_a_step_in_a_round_in_which_the_store_is_away_is_not_forgotten(harness: RefreshHarness) -> None:
    """The clock was put on while nothing could be noted: nobody is warned before what looks overdue was refreshed."""
    await harness.connect()
    deadlines = Maintenance(a_core(store=harness.failing, clock=harness.clock, observer=harness.witness))
    await _watch_for(harness, deadlines, 2 * HOUR, step=60)
    harness.failing.away = {"record_time"}
    harness.clock.step(timedelta(days=89, hours=12))
    with pytest.raises(StoreUnavailable):
        await deadlines.watch()
    harness.failing.away = set()
    harness.clock.advance(60)
    assert await _watch_for(harness, deadlines, HOUR / 2, step=60) == []


async def test_a_clock_that_is_put_on_erases_no_history(harness: RefreshHarness) -> None:
    """What looks ninety days old for a moment is not forgotten."""
    connection = await harness.connect()
    await harness.refresh(connection)
    deadlines = _deadlines(harness)
    await _watch_for(harness, deadlines, 2 * HOUR, step=60)
    harness.clock.step(timedelta(days=100))
    await _watch_for(harness, deadlines, HOUR / 2, step=60)
    assert len(await harness.store.events(connection_id=connection.id, limit=9)) == 1


async def test_a_clock_that_differs_from_the_stores_is_told_once(harness: RefreshHarness) -> None:
    """An administrator sets it right; until then leases are told by the store's, and all else by a wrong one."""
    store = Override(harness.store, clock_skew=59.0)
    deadlines = Maintenance(a_core(store=store, clock=harness.clock, observer=harness.witness))
    for ahead in (59.0, -61.0, -61.0, 0.5, 61.0):
        store.__dict__["clock_skew"] = ahead
        await deadlines.watch()
        harness.clock.advance(60)
    assert [event.fields["seconds_ahead"] for event in harness.witness.named("clock.differs")] == [-61, 61]
