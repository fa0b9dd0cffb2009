"""The schedule of refreshes and retries, and the freshness of tokens, as pure functions of the times passed in."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.model import Connection, TokenPair

REFRESH_TOKEN_LIFETIME = timedelta(days=90)
"""A refresh token expires after three months without use (https://www.amocrm.ru/developers/content/oauth/oauth)."""

TRIES_LEFT = 3
"""The number of retries that must still fit before the access token expires."""

CLOCK_TOLERANCE = timedelta(seconds=60)
"""The maximum time by which a stored time may be in the future, because clocks differ and may be adjusted."""
TURN = timedelta(seconds=30)
"""The time for which due connections stay assigned to one of several instances."""

FRESH_FRACTION = 1 / 20
"""The fraction of its lifetime for which a new pair is fresh, regardless of the requested time to live."""


class Lifetime(Protocol):
    """A token or token pair that is valid for a period."""

    @property
    def issued_at(self) -> datetime: ...

    @property
    def expires_at(self) -> datetime: ...


def refresh_due(pair: TokenPair, *, at: float, jitter: float, random: Callable[[], float]) -> datetime:
    """Return a pair's refresh time: after the fraction `at` of its lifetime, varied by up to the fraction `jitter`.

    The jitter keeps accounts that were connected at the same time from being due at the same time forever.
    """
    share = at * (1 + jitter * (2 * random() - 1))
    return pair.issued_at + pair.lifetime * min(share, 1.0)


def retry_at(
    now: datetime,
    *,
    failures: int,
    expires_at: datetime | None,
    base: float,
    cap: float,
    random: Callable[[], float],
) -> datetime:
    """Return the time of the next try after consecutive failures: exponential back-off with full jitter.

    While the access token is valid, the wait is short enough to leave `TRIES_LEFT` more tries. The wait is at least one
    second, because full jitter may draw zero.
    """
    wait = random() * min(cap, base * 2.0 ** min(failures - 1, 30))
    if expires_at is not None and expires_at > now:
        wait = min(wait, (expires_at - now).total_seconds() / (TRIES_LEFT + 1))
    return now + timedelta(seconds=max(wait, 1.0))


def retry_after(value: str | None, *, date: str | None, now: datetime) -> float | None:
    """Return the seconds in a `Retry-After` header; `None` if it is missing or malformed.

    The header contains seconds or an HTTP date. A date is compared with the response's own `Date` header, because
    the clocks of two hosts differ, or with `now` if that header is missing or malformed.
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


def is_unexpired(token: Lifetime, *, now: datetime) -> bool:
    """Return whether the token has not expired."""
    return now < token.expires_at


def is_impossible(connection: Connection, *, now: datetime) -> bool:
    """Return whether a connection's times are impossible.

    If they are, the connection is due, and its access token is in doubt.

    Times are impossible if the token was issued in the future, or if the refresh is due after the token expires (except
    during a back-off).
    """
    issued, expires, due = connection.access_issued_at, connection.access_expires_at, connection.next_refresh_at
    if issued is not None and issued > now + CLOCK_TOLERANCE:
        return True
    return not connection.failures and due is not None and expires is not None and due > expires


def fresh_enough(token: Lifetime, *, now: datetime, min_ttl: float) -> bool:
    """Return whether the token is fresh: valid for another `min_ttl` seconds, or issued recently.

    A token counts as issued recently for the first `FRESH_FRACTION` of its lifetime. An expired token is never fresh.
    """
    if not is_unexpired(token, now=now) or token.issued_at > now + CLOCK_TOLERANCE:
        return False
    lifetime = token.expires_at - token.issued_at
    return token.expires_at - now >= timedelta(seconds=min_ttl) or now - token.issued_at < lifetime * FRESH_FRACTION
