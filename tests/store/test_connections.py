"""Connections in the store: claims, refreshed pairs, failures, rechecks and due queries."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from amo_callback.events import Event, connection_event
from amo_callback.grant import NewConnection
from amo_callback.model import ConnectionFilter, ConnectionLimits, Reason, Status
from tests.builders import (
    DAY,
    a_claim,
    a_connection,
    a_failure,
    a_grant,
    a_refreshed,
    an_event,
    an_extension,
    bind,
    now,
    present,
    save,
    switch_off,
)
from tests.fakes import START

if TYPE_CHECKING:
    from typing import Any

    from amo_callback.model import ChangeNotice, Connection
    from amo_callback.store import Store
    from tests.fakes import FakeClock
    from tests.store.conftest import OpenAs


SECOND = timedelta(seconds=1)


OVER = timedelta(0)
"""The length of a lease that ends immediately."""


def _is_leased_for(connection: Connection, length: timedelta) -> bool:
    """Check the remaining lease, with a tolerance for the database's own clock."""
    seconds = length.total_seconds()
    return connection.lease_left is not None and seconds - 30 < connection.lease_left <= seconds


async def test_expire_missing_without_refresh_token_follows_access_expiry(store: Store) -> None:
    """Without a refresh token, a connection expires with its access token, after a warning."""

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


async def test_save_connected_stores_every_field(store: Store) -> None:
    """A stored connection is read back unchanged, with microseconds and years far in the future."""
    odd, far = START + timedelta(microseconds=123457), START.replace(year=2199, microsecond=999_999)
    connection = a_connection(
        access_issued_at=odd, connected_at=odd, access_expires_at=far, api_domain="api-b.amocrm.ru"
    )
    assert await save(store, connection) == connection
    assert await store.connection("unknown") is None


async def test_lookup_of_name_with_nul_finds_nothing(store: Store) -> None:
    """A name with a NUL character, which PostgreSQL rejects, finds nothing in either engine and raises no error."""
    await save(store, a_connection())
    for odd in ("\0", "1\0", "a\0b"):
        assert await store.connection(odd) is None
        assert await store.connections_of(odd) == []
        assert await store.connections_named(odd) == []
        assert await store.owners_of([odd]) == {odd: []}
        assert await store.page(after="", limit=9, only=ConnectionFilter(owner=odd)) == []
        assert await store.events(connection_id=odd, limit=9) == []
    assert store.last_write_error is None


async def test_connections_of_account_are_ordered_by_status_and_expiry(store: Store) -> None:
    """An account's connections are listed active first, then by the latest expiry."""
    for number, (user, expires) in enumerate({"1": DAY, "2": 3 * DAY, "3": 2 * DAY}.items()):
        await save(store, a_connection(id=str(number), account_id="7", user_id=user, access_expires_at=START + expires))
    stored = present(await store.connection("1"))
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None))
    assert [connection.id for connection in await store.connections_of("7")] == ["2", "0", "1"]
    assert await store.connections_of("8") == []


async def test_due_lists_active_late_connections_by_oldest_expiry(store: Store) -> None:
    """Due refreshes are active, late, not excluded and limited; a connection with an open attempt is included."""
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


async def test_due_next_at_skips_claimed_and_excluded_connections(store: Store) -> None:
    """The next due time ignores connections that are claimed, excluded or not active."""
    assert (await store.due(now=START, exclude=(), limit=0)).next_at is None
    for number in (1, 2, 3):
        await save(store, a_connection(number, next_refresh_at=START + number * SECOND))
    ids = [a_connection(number).id for number in (1, 2, 3)]
    assert (await store.due(now=START, exclude=(), limit=0)).next_at == START + SECOND
    assert (await store.due(now=START, exclude=[ids[0]], limit=0)).next_at == START + 2 * SECOND
    second = present(await store.connection(ids[1]))
    await store.claim(a_claim(second))
    assert (await store.due(now=START, exclude=[ids[0]], limit=0)).next_at == START + 3 * SECOND


async def test_due_returns_refreshes_rechecks_and_next_time(store: Store) -> None:
    """One query returns refreshes, rechecks and the next due time; a freeze leaves only rechecks."""
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


async def test_claim_concurrent_processes_get_one(store: Store, open_as: OpenAs) -> None:
    """Of concurrent claims by two processes one succeeds; a claim of the returned row succeeds after the lease."""
    stored = await save(store, a_connection())
    claims = [a_claim(stored, attempt=f"attempt-{number}", lease=OVER) for number in range(20)]
    async with open_as("two") as other:
        claiming = [one.claim(claim) for one, claim in zip([store, other] * 10, claims, strict=True)]
        [given] = [claimed for claimed in await asyncio.gather(*claiming) if claimed]
    stored = await now(store, stored)
    assert (given.presented_token, given.attempt) == ("print-1", stored.attempt)
    assert await store.claim(a_claim(given, attempt="later")) is not None


async def test_claim_of_changed_row_is_refused(store: Store) -> None:
    """A claim of an outdated row version is refused after a claim, an extension or a refreshed pair."""
    stored = await save(store, a_connection())
    assert await store.claim(a_claim(stored, row_version=2)) is None
    claimed = present(await store.claim(a_claim(stored, lease=OVER)))
    assert await store.extend(an_extension(stored, lease=OVER))
    assert await store.claim(a_claim(claimed, attempt="2")) is None
    await store.save_refreshed(a_refreshed(stored))
    assert await store.claim(a_claim(stored)) is None


async def test_extend_by_another_attempt_is_refused(store: Store) -> None:
    """Only the claiming attempt can extend its lease and store the account's new host."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    assert not await store.extend(an_extension(stored, attempt="another"))
    assert await store.extend(an_extension(stored, lease=DAY))
    after = await now(store, stored)
    assert (after.domain, after.attempt) == ("b.amocrm.ru", "attempt-1")
    assert _is_leased_for(after, DAY)


async def test_claim_over_expired_claim_marks_token_possibly_spent(store: Store) -> None:
    """A claim over an expired one marks the presented token as possibly spent.

    A claim without a fingerprint (the pair could not be decrypted) leaves that mark unchanged.
    """
    claimed = await save(store, a_connection())
    for attempt, presented_token in (("dead", "maybe-spent"), ("unreadable", ""), ("3", "next")):
        after = present(await store.claim(a_claim(claimed, attempt=attempt, fingerprint=presented_token, lease=OVER)))
        claimed = after
    assert (claimed.possibly_spent_token, claimed.presented_token) == ("maybe-spent", "next")


async def test_save_refreshed_stores_pair_and_clears_claim(store: Store) -> None:
    """A refreshed pair is stored with its times and clears the claim, the doubt and the failures."""
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


async def test_save_refreshed_outdated_pair_is_refused(store: Store) -> None:
    """A late refresh of an older pair version changes nothing."""
    stored = await save(store, a_connection(), iat=1)
    await store.claim(a_claim(stored))
    renewed = await save(store, a_connection(sealed_pair=b"granted"), iat=2)
    assert await store.save_refreshed(a_refreshed(stored)) is None
    assert await store.connection(stored.id) == renewed


async def test_save_refreshed_after_needs_reauth_reactivates_connection(store: Store) -> None:
    """A late pair reactivates the connection, because a terminal failure does not change the pair version."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.save_failure(
        a_failure(stored, status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT, next_refresh_at=None)
    )
    assert await store.save_refreshed(a_refreshed(stored))
    after = await now(store, stored)
    assert (after.status, after.reason) == (Status.ACTIVE, None)


async def test_save_failure_by_another_attempt_is_refused(store: Store) -> None:
    """A failure is stored only for the claiming attempt, and only once."""
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


async def test_save_failure_in_doubt_keeps_attempt_open(store: Store) -> None:
    """An unknown outcome renews the lease and keeps the presented token."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, in_doubt_for=DAY))
    after = await now(store, stored)
    assert (after.attempt, after.presented_token) == ("attempt-1", "print-1")
    assert _is_leased_for(after, DAY)


async def test_possibly_spent_token_stays_after_temporary_failure(store: Store) -> None:
    """A token stays possibly spent after an unknown outcome and a later temporary failure."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    judged = present(await store.save_failure(a_failure(stored, in_doubt_for=OVER)))
    await store.claim(a_claim(judged, attempt="2"))
    await store.save_failure(a_failure(stored, attempt="2", last_error="account_refused"))
    after = await now(store, stored)
    assert (after.possibly_spent_token, after.failures) == ("print-1", 2)


async def test_release_leaves_token_unspent(store: Store) -> None:
    """A released claim does not mark its token, and another attempt's claim is not released."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.release(connection_id=stored.id, attempt="another")
    held = await now(store, stored)
    assert held.attempt == "attempt-1"
    await store.release(connection_id=stored.id, attempt="attempt-1")
    given_back = await now(store, stored)
    again = present(await store.claim(a_claim(given_back, attempt="2")))
    assert again.possibly_spent_token is None


async def test_disabled_hook_makes_recheck_due_once(store: Store, clock: FakeClock) -> None:
    """A pending recheck covers further hooks; a hook after the recheck began schedules the next one."""
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


async def test_disabled_hook_repeated_writes_once_per_second(store: Store, clock: FakeClock) -> None:
    """Repeated hooks write at most once a second, and change neither the row version nor the history."""
    connection = await save(store, a_connection())
    await switch_off(store)
    hooked, events = await now(store, connection), await store.events(connection_id=connection.id, limit=9)
    result: list[ChangeNotice] = []
    store.subscribe(result.append)
    for _ in range(12):
        clock.advance(0.25)
        await switch_off(store)
    after = await now(store, connection)
    assert (after.disabled_hook_at, after.row_version) == (START + 3 * SECOND, hooked.row_version)
    assert await store.events(connection_id=connection.id, limit=9) == events
    assert len(result) == 3


async def test_begin_recheck_concurrent_processes_begin_one(store: Store) -> None:
    """The second of two processes that read a due recheck cannot begin it."""
    connection = await save(store, a_connection())
    await switch_off(store)
    read = await now(store, connection)
    assert await store.begin_recheck(read, again_in=60 * SECOND) is not None
    assert await store.begin_recheck(read, again_in=60 * SECOND) is None


async def test_new_grant_resets_recheck_pause(store: Store, clock: FakeClock) -> None:
    """A new grant clears earlier hooks and the recheck pause, and a later hook makes a recheck due."""
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


async def test_disabled_hook_repeated_after_failure_keeps_recheck_time(store: Store, clock: FakeClock) -> None:
    """The first hook after a terminal failure advances the recheck; a later hook does not move it."""
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


async def test_save_failure_keeps_due_recheck(store: Store) -> None:
    """A terminal failure does not postpone a recheck that is already due."""
    stored = await save(store, a_connection())
    await switch_off(store)
    hooked = await now(store, stored)
    await store.claim(a_claim(hooked))
    failure = a_failure(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, recheck_at=START + DAY)
    after = present(await store.save_failure(failure))
    assert after.recheck_at == START


async def test_expiry_warning_is_sent_once_per_interval(store: Store) -> None:
    """The nearest warning comes first and suppresses the longer ones until the next refresh."""
    one = await save(store, a_connection(1, refresh_expires_at=START + DAY))
    await save(store, a_connection(2, refresh_expires_at=START + 8 * DAY))

    async def warned(days: int) -> list[str | None]:
        found = await store.due_expiry_warnings(
            days=days, before=START + days * DAY, event=lambda each: an_event(each, days=days)
        )
        return [event.connection_id for event in found]

    assert [await warned(1), await warned(7), await warned(1)] == [[one.id], [], []]
    assert len(await warned(30)) == 1
    await store.save_refreshed(a_refreshed(one, refresh_expires_at=START + DAY))
    assert await warned(7) == [one.id]


async def test_page_lists_connections_by_id_with_filter(store: Store) -> None:
    """Connections are listed by id, page by page, all or filtered."""
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


async def test_save_refreshed_keeps_due_recheck(store: Store) -> None:
    """A refresh keeps a due recheck, because AMO may send a hook before it disables the integration."""
    stored = await save(store, a_connection())
    await switch_off(store)
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert refreshed is not None
    assert refreshed.recheck_at == START


@pytest.mark.parametrize("change", ["postpone", "reactivate", "disconnect", "schedule_recheck"])
async def test_change_of_row_read_before_claim_is_refused(store: Store, change: str) -> None:
    """A change based on a row read before a claim is refused."""
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


async def test_disabled_hook_first_since_refresh_advances_recheck(store: Store, clock: FakeClock) -> None:
    """The first hook after a refresh and a terminal failure advances the recheck."""
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


async def test_disconnect_by_hook_keeps_time_of_requested_disconnect(store: Store) -> None:
    """A grant that began before a requested disconnect stays refused after a later disconnect for a hook."""
    stored = await save(store, a_connection(), iat=1)
    late = await store.claim_grant(a_grant("late"), now=START)
    await store.disconnect(stored, on_request=True)
    again = await save(store, a_connection(connected_at=START + 2 * SECOND), iat=2, code="again")
    await store.disconnect(again, on_request=False)
    assert await store.save_connected(NewConnection(grant=late, connection=a_connection(), token_iat=3)) is None


async def test_lists_among_ids_omit_other_connections(store: Store) -> None:
    """The ids of accounts and owners limit the lists of connections, events and webhooks, with any other filter."""
    store.stores_webhooks = True
    saved = {number: await save(store, a_connection(number)) for number in range(1, 5)}
    for number, connection in saved.items():
        moved = [connection_event("connection.moved", connection)]
        await store.schedule_recheck(await now(store, connection), at=START, events=moved)
        assert await bind(store, connection.id, f"user {number}")
    assert await store.disconnect(await now(store, saved[4]), on_request=False)  # as AMO's hook does
    owners = frozenset({"user 2", "user 4", "user 5"})
    limits = ConnectionLimits(accounts=frozenset({saved[1].account_id, "0"}), owners=owners)
    ids = await store.ids_within(limits)
    assert set(ids) == {saved[1].id, saved[2].id}
    assert await store.ids_within(ConnectionLimits(accounts=frozenset(), owners=frozenset({"user 4"}))) == []

    async def listed(**only: Any) -> list[str]:
        return [one.id for one in await store.page(after="", limit=9, only=ConnectionFilter(**only), ids=ids)]

    async def recorded(**only: Any) -> set[str | None]:
        return {event.connection_id for event in await store.events(limit=99, ids=ids, **only)}

    assert await listed() == sorted(ids)
    assert await recorded() == set(ids)
    for number, expected in ((1, [saved[1].id]), (2, [saved[2].id]), (3, [])):
        account_id, owner = saved[number].account_id, f"user {number}"
        assert await listed(account_id=account_id) == await listed(owner=owner) == expected
        assert await recorded(account_id=account_id) == await recorded(owner=owner) == set(expected)
        assert await recorded(connection_id=saved[number].id) == set(expected)
    assert await listed(status=Status.DISCONNECTED) == await listed(domain="other.example") == []
    [first, _] = webhooks = await store.webhooks(limit=9, ids=ids)
    assert [webhook.connection_id for webhook in webhooks] == [saved[1].id, saved[2].id]
    [second] = await store.webhooks(limit=9, after=first.number, ids=ids)
    assert second == webhooks[1]
    assert await store.page(after=max(ids), limit=9, only=ConnectionFilter(), ids=ids) == []
    assert list(await store.events(limit=9, ids=[])) + list(await store.webhooks(limit=9, ids=[])) == []
