"""When a pair is due, and when to try again."""

from datetime import timedelta

import pytest

from amo_callback.model import TokenPair
from amo_callback.schedule import fresh_enough, is_unexpired, refresh_due, retry_at
from tests.fakes import START


def _pair(seconds: float = 86400) -> TokenPair:
    return TokenPair(
        access_token="a", refresh_token="r", issued_at=START, expires_at=START + timedelta(seconds=seconds)
    )


@pytest.mark.parametrize(("drawn", "hours"), [(0.0, 10.8), (0.5, 12.0), (1.0, 13.2)])
def test_a_pair_is_due_at_half_its_life_give_or_take(drawn: float, hours: float) -> None:
    """With at = 0.5 and jitter = 0.1, a day's token is due after 10.8 to 13.2 hours."""
    assert refresh_due(_pair(), at=0.5, jitter=0.1, random=lambda: drawn) == START + timedelta(hours=hours)


def test_a_pair_is_due_before_it_expires_whatever_the_jitter() -> None:
    """Even the latest draw is not after the end."""
    assert refresh_due(_pair(), at=0.99, jitter=0.9, random=lambda: 1.0) == START + timedelta(days=1)


def _wait(failures: int, *, drawn: float = 1.0, left: float | None = None) -> float:
    expires_at = None if left is None else START + timedelta(seconds=left)
    again = retry_at(START, failures=failures, expires_at=expires_at, base=30, cap=900, random=lambda: drawn)
    return (again - START).total_seconds()


def test_back_off_doubles_up_to_its_cap() -> None:
    """At most 30 s, 60 s, 120 s ... and never more than the cap, also after a thousand failures."""
    assert [_wait(failures) for failures in (1, 2, 3, 5, 6, 1000)] == [30, 60, 120, 480, 900, 900]


def test_back_off_is_fully_jittered() -> None:
    """Any wait from a second to the whole is drawn, so that many do not come back together."""
    assert _wait(6, drawn=0.5) == 450
    assert _wait(6, drawn=0.0) == 1


def test_back_off_leaves_three_more_tries_before_the_token_dies() -> None:
    """While the access token lives, the wait is a quarter of what is left at most; a dead one has nothing to lose."""
    assert _wait(6, left=400) == 100
    assert [_wait(6, left=left) for left in (0, -1)] == [900, 900]


def test_a_token_is_fresh_with_the_life_asked_for_or_in_its_youth() -> None:
    """`min_ttl` seconds left, or younger than a twentieth of its life: no younger one can be had."""
    pair = _pair(1000)
    assert fresh_enough(pair, now=START + timedelta(seconds=699), min_ttl=300)
    assert fresh_enough(pair, now=START + timedelta(seconds=700), min_ttl=300)
    assert not fresh_enough(pair, now=START + timedelta(seconds=701), min_ttl=300)
    assert fresh_enough(pair, now=START + timedelta(seconds=49), min_ttl=5000)
    assert not fresh_enough(pair, now=START + timedelta(seconds=50), min_ttl=5000)
    assert not fresh_enough(pair, now=START + timedelta(seconds=1000), min_ttl=0)


def test_a_token_lives_until_its_expiry() -> None:
    """At the moment of expiry it is dead."""
    assert is_unexpired(_pair(10), now=START + timedelta(seconds=9.9))
    assert not is_unexpired(_pair(10), now=START + timedelta(seconds=10))
    assert not is_unexpired(_pair(10), now=START + timedelta(seconds=11))
