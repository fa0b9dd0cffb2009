"""Slots at the rate limit: whose turn it is, and when."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_callback.rate_limit import RateState, SlotDecision, WaiterKind, pause, request_slot

RATE = 5
INTERVAL = 1 / RATE
PEOPLE, BACKGROUND = {WaiterKind.PEOPLE}, {WaiterKind.BACKGROUND}
BOTH = PEOPLE | BACKGROUND
EARLY = 1e-6


def _ask(slots: RateState, now: float, waiting: set[WaiterKind]) -> SlotDecision:
    return request_slot(slots, now=now, interval=INTERVAL, waiting=waiting)


def _play(
    askers: Sequence[set[WaiterKind]], delays: Iterator[float], *, until: float
) -> list[tuple[float, WaiterKind]]:
    """Let each asker ask when it was told to, and a little later; return the slots that were had."""
    slots, had = RateState(), []
    asking = [(next(delays), number) for number, _ in enumerate(askers)]
    while (first := min(asking))[0] < until:
        now, number = first
        asked = _ask(slots, now, askers[number])
        slots = asked.slots
        if asked.kind is not None:
            had.append((now, asked.kind))
        asking[number] = (now + asked.wait + next(delays), number)
    return had


def _delays(data: st.DataObject) -> Iterator[float]:
    while True:
        yield data.draw(st.floats(min_value=EARLY, max_value=0.2 * INTERVAL))


@given(st.lists(st.tuples(st.floats(min_value=0, max_value=3 * INTERVAL), st.sampled_from([PEOPLE, BACKGROUND, BOTH]))))
def test_whoever_asks_whenever_no_second_has_more_than_one_beyond_the_rate(
    asks: list[tuple[float, set[WaiterKind]]],
) -> None:
    """AMO bans who goes beyond its limit, so however late somebody asks, there is one more in a second, and no two."""
    slots, now, had = RateState(), 1000.0, []
    for gap, waiting in asks:
        now += gap
        asked = _ask(slots, now, waiting)
        slots = asked.slots
        if asked.kind is not None:
            had.append(now)
    assert all(later - first > 1 - EARLY for first, later in zip(had, had[RATE + 1 :], strict=False))


@given(st.data())
def test_people_and_background_take_turns_between_askers(data: st.DataObject) -> None:
    """One instance has people, and another background: each has every other slot, though each asks a little late."""
    kinds = [kind for _, kind in _play([PEOPLE, BACKGROUND], _delays(data), until=20 * INTERVAL)]
    assert all(one is not other for one, other in pairwise(kinds))
    assert len(kinds) >= 19


@given(st.data())
def test_late_asks_are_made_up_for(data: st.DataObject) -> None:
    """To ask takes time, and the rate is had all the same."""
    had = _play([BACKGROUND], _delays(data), until=20 * INTERVAL)
    assert len(had) >= 20


def test_who_asks_early_is_told_when() -> None:
    """The next slot is an interval after the last one, and who asks before that has none."""
    first = _ask(RateState(free_at=1000.0), 1000.0, PEOPLE)
    early = _ask(first.slots, 1000.05, PEOPLE)
    assert (first.kind, early.kind) == (WaiterKind.PEOPLE, None)
    assert early.wait == pytest.approx(INTERVAL - 0.05)


@pytest.mark.parametrize(("gone", "waiting"), [(PEOPLE, BACKGROUND), (BACKGROUND, PEOPLE)])
def test_who_went_away_blocks_nobody_for_longer_than_two_intervals(
    gone: set[WaiterKind], waiting: set[WaiterKind]
) -> None:
    """An instance that has asked, and ended, leaves its slot to the others."""
    [kind] = waiting
    slots = dataclasses.replace(_ask(RateState(free_at=1000.0 + EARLY), 1000.0, gone).slots, last=kind)
    now = 1000.0 + EARLY
    waited = _ask(slots, now, waiting)
    assert waited.kind is None
    while (asked := _ask(waited.slots, now, waiting)).kind is None:
        now += max(asked.wait, EARLY)
        waited = asked
    assert asked.kind is kind
    assert now == pytest.approx(1000 + 2 * INTERVAL)


def test_alone_nobody_is_waited_for() -> None:
    """In the only process who does not wait has gone away; and slots are an interval apart, or more."""
    person = request_slot(RateState(), now=1000.0, interval=INTERVAL, waiting=BOTH, alone=True)
    another = request_slot(person.slots, now=1000.0 + 1.3 * INTERVAL, interval=INTERVAL, waiting=PEOPLE, alone=True)
    assert (person.kind, another.kind) == (WaiterKind.PEOPLE, WaiterKind.PEOPLE)
    assert another.slots.free_at == pytest.approx(1000 + 2.3 * INTERVAL)


def test_a_high_rate_is_reached_by_a_loop_that_looks_only_now_and_then() -> None:
    """A thousand a second, and timers of 3 ms: at each look there are as many slots as time has passed for."""
    slots, given = RateState(), 0
    for look in range(1000):
        while (
            asked := request_slot(slots, now=look * 0.003, interval=0.001, waiting=BACKGROUND, alone=True)
        ).kind is not None:
            slots, given = asked.slots, given + 1
    assert given == pytest.approx(3000, abs=15)


def test_a_pause_is_as_long_as_the_longest() -> None:
    """Nobody goes before the end of a pause, and a shorter one takes nothing from it."""
    slots = pause(pause(RateState(), now=1000.0, seconds=60), now=1000.0, seconds=1)
    assert _ask(slots, 1059.9, BOTH).kind is None
    assert _ask(slots, 1060.0, BOTH).kind is WaiterKind.PEOPLE


@pytest.mark.parametrize(("gone", "waiting"), [(PEOPLE, BACKGROUND), (BACKGROUND, PEOPLE)])
def test_a_clock_that_was_set_back_stops_nobody_for_longer_than_a_pause(
    gone: set[WaiterKind], waiting: set[WaiterKind]
) -> None:
    """What a clock wrote down that was a day ahead is let go: ten minutes is the longest that AMO is waited for."""
    day, [kind] = 86400.0, waiting
    ahead = dataclasses.replace(_ask(RateState(), 1000.0 + day, gone).slots, last=kind)
    slots = _ask(ahead, 1000.0, waiting).slots
    assert _ask(slots, 1599.0, waiting).kind is None
    assert _ask(slots, 1601.0, waiting).kind is kind
