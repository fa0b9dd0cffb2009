"""Slots of the rate limit: order and times."""

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
    waiters: Sequence[set[WaiterKind]], delays: Iterator[float], *, until: float
) -> list[tuple[float, WaiterKind]]:
    """Request slots for each waiter, each time after its wait and a delay, and return the slots granted."""
    slots, granted = RateState(), []
    asking = [(next(delays), number) for number, _ in enumerate(waiters)]
    while (first := min(asking))[0] < until:
        now, number = first
        asked = _ask(slots, now, waiters[number])
        slots = asked.slots
        if asked.kind is not None:
            granted.append((now, asked.kind))
        asking[number] = (now + asked.wait + next(delays), number)
    return granted


def _delays(data: st.DataObject) -> Iterator[float]:
    while True:
        yield data.draw(st.floats(min_value=EARLY, max_value=0.2 * INTERVAL))


@given(st.lists(st.tuples(st.floats(min_value=0, max_value=3 * INTERVAL), st.sampled_from([PEOPLE, BACKGROUND, BOTH]))))
def test_request_slot_any_times_exceed_rate_by_one(
    asks: list[tuple[float, set[WaiterKind]]],
) -> None:
    """For any times of requests, at most one request a second exceeds the rate, because AMO bans excess."""
    slots, now, granted = RateState(), 1000.0, []
    for gap, waiting in asks:
        now += gap
        asked = _ask(slots, now, waiting)
        slots = asked.slots
        if asked.kind is not None:
            granted.append(now)
    assert all(later - first > 1 - EARLY for first, later in zip(granted, granted[RATE + 1 :], strict=False))


@given(st.data())
def test_request_slot_alternates_people_and_background(data: st.DataObject) -> None:
    """People of one instance and background of another get alternate slots, in spite of delays."""
    kinds = [kind for _, kind in _play([PEOPLE, BACKGROUND], _delays(data), until=20 * INTERVAL)]
    assert all(one is not other for one, other in pairwise(kinds))
    assert len(kinds) >= 19


@given(st.data())
def test_request_slot_compensates_late_requests(data: st.DataObject) -> None:
    """Late requests for slots do not reduce the rate."""
    granted = _play([BACKGROUND], _delays(data), until=20 * INTERVAL)
    assert len(granted) >= 20


def test_request_slot_early_returns_wait() -> None:
    """A request before the next slot gets none and the time to wait."""
    first = _ask(RateState(free_at=1000.0), 1000.0, PEOPLE)
    early = _ask(first.slots, 1000.05, PEOPLE)
    assert (first.kind, early.kind) == (WaiterKind.PEOPLE, None)
    assert early.wait == pytest.approx(INTERVAL - 0.05)


@pytest.mark.parametrize(("gone", "waiting"), [(PEOPLE, BACKGROUND), (BACKGROUND, PEOPLE)])
def test_request_slot_of_ended_instance_is_released(gone: set[WaiterKind], waiting: set[WaiterKind]) -> None:
    """The slot of an instance that ended is available after two intervals."""
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


def test_request_slot_alone_waits_for_no_other_instance() -> None:
    """A single process does not reserve slots for others, and keeps the interval."""
    person = request_slot(RateState(), now=1000.0, interval=INTERVAL, waiting=BOTH, alone=True)
    another = request_slot(person.slots, now=1000.0 + 1.3 * INTERVAL, interval=INTERVAL, waiting=PEOPLE, alone=True)
    assert (person.kind, another.kind) == (WaiterKind.PEOPLE, WaiterKind.PEOPLE)
    assert another.slots.free_at == pytest.approx(1000 + 2.3 * INTERVAL)


def test_request_slot_alone_reaches_high_rate_with_coarse_timer() -> None:
    """At a thousand a second with 3 ms timers, each call grants as many slots as time has passed for."""
    slots, given = RateState(), 0
    for look in range(1000):
        while (
            asked := request_slot(slots, now=look * 0.003, interval=0.001, waiting=BACKGROUND, alone=True)
        ).kind is not None:
            slots, given = asked.slots, given + 1
    assert given == pytest.approx(3000, abs=15)


def test_pause_longest_applies() -> None:
    """No slot is granted before the end of the longest pause."""
    slots = pause(pause(RateState(), now=1000.0, seconds=60), now=1000.0, seconds=1)
    assert _ask(slots, 1059.9, BOTH).kind is None
    assert _ask(slots, 1060.0, BOTH).kind is WaiterKind.PEOPLE


@pytest.mark.parametrize(("gone", "waiting"), [(PEOPLE, BACKGROUND), (BACKGROUND, PEOPLE)])
def test_request_slot_after_clock_moved_back_waits_at_most_a_pause(
    gone: set[WaiterKind], waiting: set[WaiterKind]
) -> None:
    """A time stored by a clock that was ahead is ignored after ten minutes, the longest pause."""
    day, [kind] = 86400.0, waiting
    ahead = dataclasses.replace(_ask(RateState(), 1000.0 + day, gone).slots, last=kind)
    slots = _ask(ahead, 1000.0, waiting).slots
    assert _ask(slots, 1599.0, waiting).kind is None
    assert _ask(slots, 1601.0, waiting).kind is kind
