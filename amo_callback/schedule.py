"""When a connection is due, and when to try again: pure arithmetic on times that are passed in."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.model import Connection, TokenPair

REFRESH_TOKEN_LIFE = timedelta(days=90)
"""A refresh token dies after three months without use (https://www.amocrm.ru/developers/content/oauth/oauth)."""

TRIES_LEFT = 3
"""How many more tries a back-off leaves before the access token expires."""

CLOCK_TOLERANCE = timedelta(seconds=60)
"""How far in the future a time may be that another clock, or the same one before a step, has written."""
TURN = timedelta(seconds=30)
"""How long connections that are due stay assigned to one of several instances."""

YOUNG = 20
"""A pair younger than this part of its life is fresh, whatever life is asked for."""


class Lifetime(Protocol):
    """What is valid from one time to another."""

    @property
    def issued_at(self) -> datetime: ...

    @property
    def expires_at(self) -> datetime: ...


def refresh_due(pair: TokenPair, *, at: float, jitter: float, random: Callable[[], float]) -> datetime:
    """Return when a pair should be refreshed: after `at` of its life, give or take `jitter` of that.

    The jitter keeps accounts that were connected together from coming due together for ever.
    """
    share = at * (1 + jitter * (2 * random() - 1))
    return pair.issued_at + pair.life * min(share, 1.0)


def retry_at(
    now: datetime,
    *,
    failures: int,
    expires_at: datetime | None,
    base: float,
    cap: float,
    random: Callable[[], float],
) -> datetime:
    """Return when to try again after `failures` in a row: exponential back-off with full jitter.

    While the access token is valid, no wait takes more than what leaves `TRIES_LEFT` further tries before
    it expires. Never sooner than a second: full jitter may draw nothing at all.
    """
    wait = random() * min(cap, base * 2.0 ** min(failures - 1, 30))
    if expires_at is not None and expires_at > now:
        wait = min(wait, (expires_at - now).total_seconds() / (TRIES_LEFT + 1))
    return now + timedelta(seconds=max(wait, 1.0))


def retry_after(value: str | None, *, date: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, `None` where it is missing or unreadable.

    The header holds seconds or an HTTP date. A date is compared with the answer's own `Date` header, else with `now`:
    the clocks of two hosts never agree.
    """
    if value is not None and re.fullmatch(r"[0-9]+", value):
        return float(value)
    until = _http_date(value)
    if until is None:
        return None
    return max((until - (_http_date(date) or now)).total_seconds(), 0.0)


def _http_date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def lives(token: Lifetime, *, now: datetime) -> bool:
    """Return whether the access token is unexpired by the clock."""
    return now < token.expires_at


def is_impossible(connection: Connection, *, now: datetime) -> bool:
    """Return whether a connection's times cannot be right, so that it is due now, and its access token in doubt.

    It was issued in the future, or is due later than it expires, which a back-off after a failure may be.
    """
    issued, expires, due = connection.access_issued_at, connection.access_expires_at, connection.next_refresh_at
    if issued is not None and issued > now + CLOCK_TOLERANCE:
        return True
    return not connection.failures and due is not None and expires is not None and due > expires


def fresh_enough(token: Lifetime, *, now: datetime, min_ttl: float) -> bool:
    """Return whether the access token has `min_ttl` seconds left, or is as fresh as one can be."""
    if not lives(token, now=now) or token.issued_at > now + CLOCK_TOLERANCE:
        return False
    life = token.expires_at - token.issued_at
    return token.expires_at - now >= timedelta(seconds=min_ttl) or now - token.issued_at < life / YOUNG
