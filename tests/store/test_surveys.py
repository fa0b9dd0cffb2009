"""All connections and notices at a glance."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.event import Event, Undelivered
from amo_callback.model import Reason, Status
from tests.builders import DAY, a_claim, a_connection, a_survey, a_verdict, now, save
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.store import Store
    from amo_callback.survey import Survey
    from tests.fakes import FakeClock

MINUTE = timedelta(minutes=1)


async def _survey(store: Store, *, after: timedelta = timedelta(0)) -> Survey:
    return await store.survey(now=START + after, late=START + after - 5 * MINUTE)


async def _given_up(store: Store, number: int, reason: Reason) -> None:
    stored = await save(store, a_connection(number))
    await store.claim(a_claim(stored))
    await store.save_verdict(a_verdict(stored, status=Status.NEEDS_REAUTH, reason=reason, next_refresh_at=None))


async def test_an_empty_store_has_nothing_to_tell(store: Store) -> None:
    """Zeros, and no moments."""
    assert await _survey(store) == a_survey(active=0, fresh=0, next_expiry=None, next_deadline=None)


async def test_connections_are_counted_by_status_and_reason(store: Store) -> None:
    """Each is counted once, and those that were given up by why."""
    for number in (1, 2):
        await save(store, a_connection(number))
    for number, reason in ((3, Reason.REVOKED), (4, Reason.REVOKED), (5, Reason.IN_DOUBT)):
        await _given_up(store, number, reason)
    gone = await save(store, a_connection(6))
    await store.disconnect(gone, on_request=True)
    found = await _survey(store)
    assert (found.active, found.fresh, found.disconnected) == (2, 2, 1)
    assert {reason: number for reason, number in found.needs_reauth.items() if number} == {
        Reason.REVOKED: 2,
        Reason.IN_DOUBT: 1,
    }


async def test_refused_hosts_are_counted_until_they_are_tried_again(store: Store) -> None:
    """All of them are due at once then, except what is due never: a token without a refresh token."""
    for number in (1, 2, 3):
        await save(store, a_connection(number))
    await save(store, a_connection(4, next_refresh_at=None, refresh_expires_at=None))
    await _given_up(store, 5, Reason.REVOKED)
    for number, error in ((1, "host_not_allowed"), (2, "host_not_allowed"), (3, "no_answer"), (4, "host_not_allowed")):
        again = None if number == 4 else START + 20 * DAY
        assert await store.postpone(await now(store, a_connection(number)), last_error=error, next_refresh_at=again)
    assert (await _survey(store)).hosts_not_allowed == 3
    later = START + DAY / 4
    await store.retry_hosts(now=later)
    assert (await _survey(store)).hosts_not_allowed == 0
    found = [await now(store, a_connection(number)) for number in (1, 2, 3, 4)]
    assert [(one.last_error, one.next_refresh_at) for one in found] == [
        (None, later),
        (None, later),
        ("no_answer", START + 20 * DAY),
        (None, None),
    ]


async def test_the_nearest_ends_are_those_of_active_connections(store: Store) -> None:
    """Whoever was given up has none that could be kept."""
    await save(store, a_connection(1, access_expires_at=START + 3 * DAY, refresh_expires_at=START + 50 * DAY))
    await save(store, a_connection(2, access_expires_at=START + 2 * DAY, refresh_expires_at=START + 60 * DAY))
    await _given_up(store, 3, Reason.REVOKED)
    found = await _survey(store)
    assert (found.next_expiry, found.next_deadline) == (START + 2 * DAY, START + 50 * DAY)


@pytest.mark.parametrize(
    ("after", "due", "overdue", "fresh", "expired"),
    [
        (DAY / 2 - MINUTE, 0, 0, 1, 0),
        (DAY / 2, 1, 0, 1, 0),
        (DAY / 2 + 4 * MINUTE, 1, 0, 1, 0),
        (DAY / 2 + 5 * MINUTE, 1, 1, 1, 0),
        (DAY, 1, 1, 0, 1),
    ],
    ids=["before", "due", "soon", "late", "expired"],
)
async def test_what_is_due_becomes_overdue_and_then_expires(
    store: Store, after: timedelta, due: int, overdue: int, fresh: int, expired: int
) -> None:
    """A refresh is overdue five minutes after it came due, and a token expired with its last second."""
    await save(store, a_connection())
    found = await _survey(store, after=after)
    assert (found.due, found.overdue, found.fresh, found.expired) == (due, overdue, fresh, expired)


async def test_what_is_frozen_is_not_due(store: Store) -> None:
    """One by one, it is not missed either; all of them, their tokens expire, and that is told."""
    stored = await save(store, a_connection(1))
    await save(store, a_connection(2))
    await store.freeze(stored.id, at=START)
    found = await _survey(store, after=2 * DAY)
    assert (found.active, found.due, found.overdue, found.expired) == (2, 1, 1, 1)
    await store.freeze_all(why="a test")
    found = await _survey(store, after=2 * DAY)
    assert (found.active, found.due, found.overdue, found.expired) == (2, 0, 0, 1)


async def test_notices_wait_or_are_parked(store: Store, clock: FakeClock) -> None:
    """They are counted apart, and of those that wait the oldest is told."""
    stored = await save(store, a_connection())
    for _ in range(2):
        await store.doubt(await now(store, stored), events=[_change(stored.id)])
        clock.advance(60)
    found = await _survey(store)
    assert (found.waiting, found.waiting_since, found.parked) == (2, START, 0)
    [notice] = await store.claim_notices(now=START, length=MINUTE, lease="lease", limit=1)
    failed: Any = Undelivered(id=notice.id, lease="lease", error="status_500", next_try_at=None)
    await store.notice_failed(failed)
    found = await _survey(store)
    assert (found.waiting, found.parked) == (1, 1)


def _change(name: str) -> Event:
    return Event(name="connection.moved", connection_id=name)
