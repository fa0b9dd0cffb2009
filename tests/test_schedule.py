"""The due time of a pair, and the time of a retry."""

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
def test_refresh_due_is_half_of_lifetime_with_jitter(drawn: float, hours: float) -> None:
    """With at = 0.5 and jitter = 0.1, a day's token is due after 10.8 to 13.2 hours."""
    assert refresh_due(_pair(), at=0.5, jitter=0.1, random=lambda: drawn) == START + timedelta(hours=hours)


def test_refresh_due_never_exceeds_expiry() -> None:
    """The latest draw of any jitter is not after the expiry."""
    assert refresh_due(_pair(), at=0.99, jitter=0.9, random=lambda: 1.0) == START + timedelta(days=1)


def _wait(failures: int, *, drawn: float = 1.0, left: float | None = None) -> float:
    expires_at = None if left is None else START + timedelta(seconds=left)
    again = retry_at(START, failures=failures, expires_at=expires_at, base=30, cap=900, random=lambda: drawn)
    return (again - START).total_seconds()


def test_retry_at_doubles_up_to_cap() -> None:
    """The wait is at most 30 s, 60 s, 120 s and so on, never more than the cap."""
    assert [_wait(failures) for failures in (1, 2, 3, 5, 6, 1000)] == [30, 60, 120, 480, 900, 900]


def test_retry_at_is_fully_jittered() -> None:
    """The wait is drawn between a second and its maximum, so that retries are spread."""
    assert _wait(6, drawn=0.5) == 450
    assert _wait(6, drawn=0.0) == 1


def test_retry_at_before_expiry_uses_quarter_of_remaining_lifetime() -> None:
    """Before expiry the wait is at most a quarter of the remaining lifetime; afterwards there is no such limit."""
    assert _wait(6, left=400) == 100
    assert [_wait(6, left=left) for left in (0, -1)] == [900, 900]


def test_fresh_enough_accepts_min_ttl_or_new_token() -> None:
    """A token is fresh with `min_ttl` left, or if younger than a twentieth of its lifetime."""
    pair = _pair(1000)
    assert fresh_enough(pair, now=START + timedelta(seconds=699), min_ttl=300)
    assert fresh_enough(pair, now=START + timedelta(seconds=700), min_ttl=300)
    assert not fresh_enough(pair, now=START + timedelta(seconds=701), min_ttl=300)
    assert fresh_enough(pair, now=START + timedelta(seconds=49), min_ttl=5000)
    assert not fresh_enough(pair, now=START + timedelta(seconds=50), min_ttl=5000)
    assert not fresh_enough(pair, now=START + timedelta(seconds=1000), min_ttl=0)


def test_is_unexpired_is_false_from_expiry() -> None:
    """A token is expired from the moment of its expiry."""
    assert is_unexpired(_pair(10), now=START + timedelta(seconds=9.9))
    assert not is_unexpired(_pair(10), now=START + timedelta(seconds=10))
    assert not is_unexpired(_pair(10), now=START + timedelta(seconds=11))
