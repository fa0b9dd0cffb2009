"""Connections: claims, refreshed pairs, refusals, look-ups, and what is due."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.events import Event
from amo_callback.grant import NewConnection
from amo_callback.model import ConnectionFilter, Reason, Status
from tests.builders import (
    DAY,
    a_claim,
    a_connection,
    a_failure,
    a_grant,
    a_refreshed,
    an_extension,
    now,
    present,
    save,
    switch_off,
)
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.model import ChangeNotice, Connection
    from amo_callback.store import Store
    from tests.fakes import FakeClock
    from tests.store.conftest import Beside


SECOND = timedelta(seconds=1)


OVER = timedelta(0)
"""The length of a lease that has ended as it began."""


def _runs_for(connection: Connection, length: timedelta) -> bool:
    """Tell whether so much of its lease is left; the database's own clock has gone on meanwhile."""
    seconds = length.total_seconds()
    return connection.lease_left is not None and seconds - 30 < connection.lease_left <= seconds


def _happened(connection: Connection, name: str = "connection.moved", **fields: object) -> Event:
    return Event(name=name, connection_id=connection.id, fields={"reason": None, **fields})


async def test_a_connection_without_a_refresh_token_ends_with_its_access_token(store: Store) -> None:
    """It is warned of before, needs its user then, and is active again where the clock was wrong."""

    def event(connection: Connection) -> Event:
        return Event(name=f"{connection.status} {connection.reason}", connection_id=connection.id)

    await save(store, a_connection(1))
    await save(store, a_connection(2, refresh_expires_at=None, next_refresh_at=None))
    soon, over = START + DAY / 2, START + DAY
    assert len(await store.due_expiry_warnings(days=1, before=soon + DAY, event=event)) == 1
    assert await store.due_expiry_warnings(days=1, before=soon + DAY, event=event) == []
    assert await store.expire_missing(now=soon, event=event) == []
    assert [one.name for one in await store.expire_missing(now=over, event=event)] == ["needs_reauth missing"]
    assert await store.expire_missing(now=over, event=event) == []
    assert [one.name for one in await store.expire_missing(now=soon, event=event)] == ["active None"]
    assert (await store.stats(now=soon, late=soon)).next_deadline == over


async def test_a_granted_pair_comes_out_as_it_went_in(store: Store) -> None:
    """Every field is kept, times to the microsecond, years from now too."""
    odd, far = START + timedelta(microseconds=123457), START.replace(year=2199, microsecond=999_999)
    connection = a_connection(
        access_issued_at=odd, connected_at=odd, access_expires_at=far, api_domain="api-b.amocrm.ru"
    )
    assert await save(store, connection) == connection
    assert await store.connection("unknown") is None


async def test_a_name_that_no_database_may_hold_is_nobodys(store: Store) -> None:
    """PostgreSQL takes no NUL: asked for one it is no less well than SQLite, and there is nothing of that name."""
    await save(store, a_connection())
    for odd in ("\0", "1\0", "a\0b"):
        assert await store.connection(odd) is None
        assert await store.connections_of(odd) == []
        assert await store.connections_owned(odd) == []
        assert await store.owners_of([odd]) == {odd: []}
        assert await store.page(after="", limit=9, only=ConnectionFilter(owner=odd)) == []
        assert await store.events(connection_id=odd, limit=9) == []
    assert store.last_write_error is None


async def test_the_connections_of_an_account_come_freshest_first(store: Store) -> None:
    """The active ones first, by their expiry."""
    for number, (user, expires) in enumerate({"1": DAY, "2": 3 * DAY, "3": 2 * DAY}.items()):
        await save(store, a_connection(id=str(number), account_id="7", user_id=user, access_expires_at=START + expires))
    stored = present(await store.connection("1"))
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None))
    assert [connection.id for connection in await store.connections_of("7")] == ["2", "0", "1"]
    assert await store.connections_of("8") == []


async def test_due_is_what_is_active_and_late_oldest_expiry_first(store: Store) -> None:
    """Nothing before its time, nothing asked to be left apart, no more than the limit; an open attempt counts, too."""
    for number in range(5):
        await save(store, a_connection(number, access_expires_at=START + DAY - number * SECOND))
    ids = [a_connection(number).id for number in range(5)]
    late = START + DAY
    assert (await store.due(now=START, limit=9, exclude=())).refreshes == []
    claimed = present(await store.connection(ids[4]))
    await store.claim(a_claim(claimed))
    dead = present(await store.connection(ids[0]))
    await store.claim(a_claim(dead))
    await store.save_failure(a_failure(dead, status=Status.NEEDS_REAUTH, next_refresh_at=None))
    due = (await store.due(now=late, limit=9, exclude=[ids[2]])).refreshes
    assert [connection.id for connection in due] == [ids[4], ids[3], ids[1]]
    assert due[0].attempt == "attempt-1"
    assert [connection.id for connection in (await store.due(now=late, limit=1, exclude=())).refreshes] == [ids[4]]


async def test_the_next_due_time_is_the_earliest_that_is_free(store: Store) -> None:
    """Claimed connections and those left apart do not count, nor those that need their person."""
    assert (await store.due(now=START, exclude=(), limit=0)).next_at is None
    for number in (1, 2, 3):
        await save(store, a_connection(number, next_refresh_at=START + number * SECOND))
    ids = [a_connection(number).id for number in (1, 2, 3)]
    assert (await store.due(now=START, exclude=(), limit=0)).next_at == START + SECOND
    assert (await store.due(now=START, exclude=[ids[0]], limit=0)).next_at == START + 2 * SECOND
    second = present(await store.connection(ids[1]))
    await store.claim(a_claim(second))
    assert (await store.due(now=START, exclude=[ids[0]], limit=0)).next_at == START + 3 * SECOND


async def test_one_look_returns_refreshes_rechecks_and_the_next_due_time(store: Store) -> None:
    """A connection that is due for both is in both; what is due now is not what comes due next."""
    one = await save(store, a_connection(1, next_refresh_at=START))
    await save(store, a_connection(2, next_refresh_at=START + DAY))
    assert await switch_off(store) == [one.id]
    due = await store.due(now=START, limit=9, rechecks=9, exclude=())
    assert [connection.id for connection in due.refreshes] == [one.id]
    assert (due.rechecks, due.next_at) == ([one.id], START + DAY)
    assert (await store.due(now=START, limit=0, exclude=())).refreshes == []
    await store.freeze_all(why="a move")
    frozen = await store.due(now=START, limit=9, rechecks=9, exclude=())
    assert (frozen.refreshes, frozen.rechecks, frozen.next_at) == ([], [one.id], None)


async def test_one_claim_of_many_at_once_is_given(store: Store, beside: Beside) -> None:
    """Two processes claim the row that they read, one holds; who has seen that one may take over after its lease."""
    stored = await save(store, a_connection())
    claims = [a_claim(stored, attempt=f"attempt-{number}", lease=OVER) for number in range(20)]
    async with beside("two") as other:
        claiming = [one.claim(claim) for one, claim in zip([store, other] * 10, claims, strict=True)]
        [given] = [claimed for claimed in await asyncio.gather(*claiming) if claimed]
    stored = await now(store, stored)
    assert (given.presented_token, given.attempt) == ("print-1", stored.attempt)
    assert await store.claim(a_claim(given, attempt="later")) is not None


async def test_a_claim_names_the_row_it_read(store: Store) -> None:
    """Whatever was written since, a claim, an extension or a new pair, a claim of the row as it was is refused."""
    stored = await save(store, a_connection())
    assert await store.claim(a_claim(stored, row_version=2)) is None
    claimed = present(await store.claim(a_claim(stored, lease=OVER)))
    assert await store.extend(an_extension(stored, lease=OVER))
    assert await store.claim(a_claim(claimed, attempt="2")) is None
    await store.save_refreshed(a_refreshed(stored))
    assert await store.claim(a_claim(stored)) is None


async def test_an_extension_is_only_its_own_attempts(store: Store) -> None:
    """The lease runs longer and the account's new host is kept; whoever lost the claim extends nothing."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    assert not await store.extend(an_extension(stored, attempt="another"))
    assert await store.extend(an_extension(stored, lease=DAY))
    after = await now(store, stored)
    assert (after.domain, after.attempt) == ("b.amocrm.ru", "attempt-1")
    assert _runs_for(after, DAY)


async def test_a_claim_over_a_dead_one_marks_what_that_was_spending(store: Store) -> None:
    """A process that died after its claim may have spent the token: it is doubtful from then on.

    A claim without a fingerprint, of a pair that no key decrypts, changes nothing of that.
    """
    claimed = await save(store, a_connection())
    for attempt, presented_token in (("dead", "maybe-spent"), ("unreadable", ""), ("3", "next")):
        after = present(await store.claim(a_claim(claimed, attempt=attempt, fingerprint=presented_token, lease=OVER)))
        claimed = after
    assert (claimed.possibly_spent_token, claimed.presented_token) == ("maybe-spent", "next")


async def test_a_refreshed_pair_is_stored_and_ends_its_claim(store: Store) -> None:
    """Pair, times, and nothing left of claim, doubt and failures."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored, fingerprint="1"))
    judged = present(await store.save_failure(a_failure(stored, in_doubt_for=OVER)))
    await store.claim(a_claim(judged, attempt="2", fingerprint="1"))
    refreshed = a_refreshed(stored)
    assert await store.save_refreshed(refreshed)
    after = await now(store, stored)
    assert (after.sealed_pair, after.pair_version, after.refreshed_at) == (b"sealed again", 2, refreshed.issued_at)
    assert (after.attempt, after.lease_until, after.presented_token, after.possibly_spent_token) == (
        None,
        None,
        None,
        None,
    )
    assert (after.failures, after.last_error, after.next_refresh_at) == (0, None, refreshed.next_refresh_at)
    assert after.api_domain == "api-b.amocrm.ru"


async def test_an_older_pair_never_replaces_a_newer_one(store: Store) -> None:
    """A late refresh finds another version, and changes nothing."""
    stored = await save(store, a_connection(), iat=1)
    await store.claim(a_claim(stored))
    renewed = await save(store, a_connection(sealed_pair=b"granted"), iat=2)
    assert await store.save_refreshed(a_refreshed(stored)) is None
    assert await store.connection(stored.id) == renewed


async def test_a_late_pair_wins_over_needs_reauth(store: Store) -> None:
    """A verdict does not change the pair's version, so a good pair that comes late mends it."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.save_failure(
        a_failure(stored, status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT, next_refresh_at=None)
    )
    assert await store.save_refreshed(a_refreshed(stored))
    after = await now(store, stored)
    assert (after.status, after.reason) == (Status.ACTIVE, None)


async def test_a_verdict_is_only_its_own_attempts(store: Store) -> None:
    """Whoever lost the claim writes nothing more."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    assert not await store.save_failure(a_failure(stored, attempt="another"))
    after = present(await store.save_failure(a_failure(stored, last_error="not_sent")))
    assert (after.failures, after.last_error, after.next_refresh_at) == (1, "not_sent", START + DAY)
    assert (after.attempt, after.presented_token, after.lease_until, after.possibly_spent_token) == (
        None,
        None,
        None,
        None,
    )
    assert not await store.save_failure(a_failure(stored))


async def test_an_attempt_without_an_answer_stays_open(store: Store) -> None:
    """The verdict starts its lease anew, and what it was spending stays on record."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, in_doubt_for=DAY))
    after = await now(store, stored)
    assert (after.attempt, after.presented_token) == ("attempt-1", "print-1")
    assert _runs_for(after, DAY)


async def test_doubt_stays_until_a_pair_is_stored(store: Store) -> None:
    """An open outcome, then a refusal that passes: the token is as doubtful as before."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    judged = present(await store.save_failure(a_failure(stored, in_doubt_for=OVER)))
    await store.claim(a_claim(judged, attempt="2"))
    await store.save_failure(a_failure(stored, attempt="2", last_error="account_refused"))
    after = await now(store, stored)
    assert (after.possibly_spent_token, after.failures) == ("print-1", 2)


async def test_a_claim_given_back_leaves_no_trace(store: Store) -> None:
    """What was not sent is not doubtful, and another's claim is not given back."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.release(connection_id=stored.id, attempt="another")
    held = await now(store, stored)
    assert held.attempt == "attempt-1"
    await store.release(connection_id=stored.id, attempt="attempt-1")
    given_back = await now(store, stored)
    again = present(await store.claim(a_claim(given_back, attempt="2")))
    assert again.possibly_spent_token is None


async def test_a_hook_makes_the_accounts_look_ups_due_once(store: Store, clock: FakeClock) -> None:
    """The look-up that is pending covers further hooks; one that comes after it began makes the next due."""
    connection = await save(store, a_connection())
    await save(store, a_connection(2))
    assert await switch_off(store) == [connection.id]
    assert (await store.due(now=START, limit=0, rechecks=9, exclude=())).rechecks == [connection.id]
    assert (await store.due(now=START, limit=0, rechecks=9, exclude=[connection.id])).rechecks == []
    clock.advance(3)
    assert await switch_off(store) == []
    begun = present(await store.begin_recheck(await now(store, connection), again_in=60 * SECOND))
    assert (begun.rechecked_at, begun.recheck_at) == (START + 3 * SECOND, START + 63 * SECOND)
    clock.advance(1)
    assert await switch_off(store) == [connection.id]
    after = await now(store, connection)
    assert (after.disabled_hook_at, after.recheck_at) == (START + 4 * SECOND, START + 8 * SECOND)


async def test_a_hook_that_changes_nothing_writes_once_a_second(store: Store, clock: FakeClock) -> None:
    """The last hook is known to a second; neither the row's version nor the history grows with a flood."""
    connection = await save(store, a_connection())
    await switch_off(store)
    hooked, events = await now(store, connection), await store.events(connection_id=connection.id, limit=9)
    told: list[ChangeNotice] = []
    store.subscribe(told.append)
    for _ in range(12):
        clock.advance(0.25)
        await switch_off(store)
    after = await now(store, connection)
    assert (after.disabled_hook_at, after.row_version) == (START + 3 * SECOND, hooked.row_version)
    assert await store.events(connection_id=connection.id, limit=9) == events
    assert len(told) == 3


async def test_a_look_up_is_begun_by_one_process(store: Store) -> None:
    """Two have read that it is due; the second one finds that it is not as it was."""
    connection = await save(store, a_connection())
    await switch_off(store)
    read = await now(store, connection)
    assert await store.begin_recheck(read, again_in=60 * SECOND) is not None
    assert await store.begin_recheck(read, again_in=60 * SECOND) is None


async def test_a_new_grant_begins_with_the_shortest_pause(store: Store, clock: FakeClock) -> None:
    """What hooks before it have left is forgotten, and a hook after it is no repetition of those."""
    connection = await save(store, a_connection(), iat=1)
    await switch_off(store)
    begun = present(await store.begin_recheck(await now(store, connection), again_in=60 * SECOND))
    assert await store.schedule_recheck(begun, at=None, pause=600 * SECOND)
    assert (await now(store, connection)).recheck_pause == 600 * SECOND
    clock.advance(1)
    granted = await save(store, a_connection(connected_at=START + SECOND), iat=2)
    assert (granted.disabled_hook_at, granted.rechecked_at, granted.recheck_pause) == (None, None, None)
    assert granted.recheck_at is None
    assert await switch_off(store) == [connection.id]


async def test_a_later_hook_leaves_the_turn_of_one_that_was_given_up(store: Store, clock: FakeClock) -> None:
    """The first hook brings the turn forward; another moves it neither way."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    failure = a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, recheck_at=START + DAY)
    await store.save_failure(failure)
    for hour, recheck_at in ((1, START + DAY / 24), (2, START + DAY)):
        clock.advance(3600)
        at = START + hour * DAY / 24
        await switch_off(store)
        after = await now(store, stored)
        assert (after.disabled_hook_at, after.recheck_at) == (at, recheck_at)
        assert await store.schedule_recheck(after, at=START + DAY)


async def test_a_death_puts_off_no_hooks_look_up(store: Store) -> None:
    """Where a look-up is due already, the connection that is given up meanwhile keeps its turn."""
    stored = await save(store, a_connection())
    await switch_off(store)
    hooked = await now(store, stored)
    await store.claim(a_claim(hooked))
    failure = a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, recheck_at=START + DAY)
    after = present(await store.save_failure(failure))
    assert after.recheck_at == START


async def test_an_end_that_nears_is_told_once_for_each_warning(store: Store) -> None:
    """The nearest first: whoever was warned of one day is not warned of seven after that."""
    one = await save(store, a_connection(1, refresh_expires_at=START + DAY))
    await save(store, a_connection(2, refresh_expires_at=START + 8 * DAY))

    async def warned(days: int) -> list[str | None]:
        found = await store.due_expiry_warnings(
            days=days, before=START + days * DAY, event=lambda each: _happened(each, days=days)
        )
        return [event.connection_id for event in found]

    assert [await warned(1), await warned(7), await warned(1)] == [[one.id], [], []]
    assert len(await warned(30)) == 1
    await store.save_refreshed(a_refreshed(one, refresh_expires_at=START + DAY))
    assert await warned(7) == [one.id]


async def test_connections_are_listed_by_their_ids_page_by_page(store: Store) -> None:
    """All, or those that fit."""
    everyone = sorted([await save(store, a_connection(number)) for number in range(5)], key=lambda each: each.id)
    assert await store.page(after="", limit=3, only=ConnectionFilter()) == everyone[:3]
    assert await store.page(after=everyone[2].id, limit=3, only=ConnectionFilter()) == everyone[3:]
    one = everyone[0]
    for only in (
        ConnectionFilter(account_id=one.account_id),
        ConnectionFilter(domain=one.domain, status=Status.ACTIVE),
    ):
        assert await store.page(after="", limit=9, only=only) == [one]
    assert await store.page(after="", limit=9, only=ConnectionFilter(status=Status.DISCONNECTED)) == []


async def test_a_refresh_leaves_a_hooks_look_up_due(store: Store) -> None:
    """AMO may tell before it acts: that the token was good a moment ago does not settle it."""
    stored = await save(store, a_connection())
    await switch_off(store)
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert refreshed is not None
    assert refreshed.recheck_at == START


@pytest.mark.parametrize("change", ["postpone", "reactivate", "disconnect", "schedule_recheck"])
async def test_what_was_read_before_a_claim_is_not_written_over_it(store: Store, change: str) -> None:
    """Whatever is decided on a row as it was: where it has changed since, nothing is changed."""
    stored = await save(store, a_connection())
    claimed = await store.claim(a_claim(stored))
    changed = {
        "postpone": lambda: store.postpone(stored, last_error="no_answer", next_refresh_at=START),
        "reactivate": lambda: store.reactivate(stored, next_refresh_at=START),
        "disconnect": lambda: store.disconnect(stored, on_request=True),
        "schedule_recheck": lambda: store.schedule_recheck(stored, at=START),
    }
    assert not await changed[change]()
    assert await store.connection(stored.id) == claimed


async def test_the_first_hook_since_a_refresh_brings_the_turn_forward(store: Store, clock: FakeClock) -> None:
    """The account lived after the hook before it; now it was given up, and the new hook explains why."""
    stored = await save(store, a_connection())
    clock.advance(86_400 / 4)
    await switch_off(store)
    refreshed = await store.save_refreshed(a_refreshed(stored, at=START + DAY / 2))
    assert refreshed is not None
    assert await store.schedule_recheck(refreshed, at=None)
    await store.claim(a_claim(await now(store, stored)))
    dead = a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, recheck_at=START + 2 * DAY)
    await store.save_failure(dead)
    clock.advance(86_400 * 3 / 4)
    await switch_off(store)
    assert (await now(store, stored)).recheck_at == START + DAY


async def test_an_erasure_does_not_forget_when_a_person_disconnected(store: Store) -> None:
    """Disconnected, connected again, and then erased for a hook: what was granted before all that stays away."""
    stored = await save(store, a_connection(), iat=1)
    late = await store.claim_grant(a_grant("late"), now=START)
    await store.disconnect(stored, on_request=True)
    again = await save(store, a_connection(connected_at=START + 2 * SECOND), iat=2, code="again")
    await store.disconnect(again, on_request=False)
    assert await store.save_connected(NewConnection(grant=late, connection=a_connection(), token_iat=3)) is None
