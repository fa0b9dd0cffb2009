"""What every store promises: claims, guarded writes, grants."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.errors import Frozen, InvalidState
from amo_callback.events import WEBHOOK_EVENTS, Event
from amo_callback.grant import GrantStatus, IssuedState, NewConnection
from amo_callback.model import (
    AmoBlock,
    ConnectionFilter,
    Freeze,
    ImportedConnection,
    Reason,
    RefreshTrigger,
    Status,
    fingerprint,
)
from tests.builders import (
    DAY,
    a_claim,
    a_connection,
    a_grant,
    a_refreshed,
    a_verdict,
    an_extension,
    now,
    save,
    switch_off,
)
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.events import StoredEvent
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


# --- connections ---------------------------------------------------------------------------------


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
    assert (await store.survey(now=soon, late=soon)).next_deadline == over


async def test_a_granted_pair_comes_out_as_it_went_in(store: Store) -> None:
    """Every field is kept, times to the microsecond."""
    odd = START + timedelta(microseconds=123457)
    connection = a_connection(access_issued_at=odd, connected_at=odd, api_domain="api-b.amocrm.ru")
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


async def test_a_second_grant_renews_the_connection(store: Store) -> None:
    """The later grant's pair replaces the earlier one's, and what was said of the old one is forgotten."""
    stored = await save(store, a_connection(), iat=1)
    await store.claim(a_claim(stored))
    await store.save_verdict(a_verdict(stored, status=Status.NEEDS_REAUTH, reason=Reason.REVOKED, next_refresh_at=None))
    renewed = await save(store, a_connection(sealed_pair=b"new", domain="b.amocrm.ru"), iat=2)
    assert (renewed.sealed_pair, renewed.domain, renewed.pair_version) == (b"new", "b.amocrm.ru", 2)
    assert (renewed.status, renewed.reason, renewed.last_error, renewed.failures) == (Status.ACTIVE, None, None, 0)
    assert renewed.row_version > stored.row_version


@pytest.mark.parametrize(
    ("first", "second", "held"), [(2, 1, b"first"), (2, 2, b"second"), (None, 1, b"second"), (2, None, b"second")]
)
async def test_between_two_grants_the_later_token_holds(
    store: Store, first: int | None, second: int | None, held: bytes
) -> None:
    """An answer that comes late does not replace the pair of a later grant; without `iat` the later answer does."""
    await save(store, a_connection(sealed_pair=b"first"), iat=first, code="1")
    later = a_connection(sealed_pair=b"second", connected_at=START + SECOND)
    assert (await save(store, later, iat=second, code="2")).sealed_pair == held


@pytest.mark.parametrize("iat", [1, None])
async def test_the_same_grant_again_does_not_replace_what_came_of_it(store: Store, iat: int | None) -> None:
    """A granted pair that is offered twice, after it was refreshed, is superseded."""
    stored = await save(store, a_connection(), iat=iat, code="1")
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert await save(store, a_connection(), iat=iat, code="1") == refreshed


async def test_the_same_grant_again_is_not_later_though_the_clock_was_put_back(store: Store) -> None:
    """Another process has stored it from its rescue file and refreshed it; then the stored times were put back."""
    await store.claim_grant(a_grant(), now=START)
    ended = a_grant(status=GrantStatus.CONNECTED, connection_id=a_connection().id)
    earlier, again = (
        NewConnection(grant=ended, connection=a_connection(connected_at=at), token_iat=7)
        for at in (START - timedelta(hours=3), START)
    )
    stored = await store.save_connected(earlier)
    assert stored is not None
    refreshed = await store.save_refreshed(a_refreshed(stored))
    assert refreshed is not None
    assert await store.save_connected(again) is None
    assert await store.connection(refreshed.id) == refreshed


@pytest.mark.parametrize("iat", [1, None])
async def test_of_two_grants_with_one_time_the_later_answer_holds(store: Store, iat: int | None) -> None:
    """Where AMO's clock does not tell which token is later, our own does, in whatever order they are stored."""
    first = a_connection(sealed_pair=b"first")
    second = a_connection(sealed_pair=b"second", connected_at=START + SECOND)
    await save(store, second, iat=iat, code="2")
    assert (await save(store, first, iat=iat, code="1")).sealed_pair == b"second"


async def test_the_connections_of_an_account_come_freshest_first(store: Store) -> None:
    """The active ones first, by their expiry."""
    for number, (user, expires) in enumerate({"1": DAY, "2": 3 * DAY, "3": 2 * DAY}.items()):
        await save(store, a_connection(id=str(number), account_id="7", user_id=user, access_expires_at=START + expires))
    stored = await store.connection("1")
    assert stored is not None
    await store.claim(a_claim(stored))
    await store.save_verdict(a_verdict(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None))
    assert [connection.id for connection in await store.connections_of("7")] == ["2", "0", "1"]
    assert await store.connections_of("8") == []


async def test_due_is_what_is_active_and_late_oldest_expiry_first(store: Store) -> None:
    """Nothing before its time, nothing asked to be left apart, no more than the limit; an open attempt counts, too."""
    for number in range(5):
        await save(store, a_connection(number, access_expires_at=START + DAY - number * SECOND))
    ids = [a_connection(number).id for number in range(5)]
    late = START + DAY
    assert (await store.due(now=START, limit=9, apart_from=())).refreshes == []
    claimed = await store.connection(ids[4])
    assert claimed is not None
    await store.claim(a_claim(claimed))
    dead = await store.connection(ids[0])
    assert dead is not None
    await store.claim(a_claim(dead))
    await store.save_verdict(a_verdict(dead, status=Status.NEEDS_REAUTH, next_refresh_at=None))
    due = (await store.due(now=late, limit=9, apart_from=[ids[2]])).refreshes
    assert [connection.id for connection in due] == [ids[4], ids[3], ids[1]]
    assert due[0].attempt == "attempt-1"
    assert [connection.id for connection in (await store.due(now=late, limit=1, apart_from=())).refreshes] == [ids[4]]


async def test_the_next_due_time_is_the_earliest_that_is_free(store: Store) -> None:
    """Claimed connections and those left apart do not count, nor those that need their person."""
    assert (await store.due(now=START, apart_from=(), limit=0)).next_at is None
    for number in (1, 2, 3):
        await save(store, a_connection(number, next_refresh_at=START + number * SECOND))
    ids = [a_connection(number).id for number in (1, 2, 3)]
    assert (await store.due(now=START, apart_from=(), limit=0)).next_at == START + SECOND
    assert (await store.due(now=START, apart_from=[ids[0]], limit=0)).next_at == START + 2 * SECOND
    second = await store.connection(ids[1])
    assert second is not None
    await store.claim(a_claim(second))
    assert (await store.due(now=START, apart_from=[ids[0]], limit=0)).next_at == START + 3 * SECOND


async def test_one_look_returns_refreshes_rechecks_and_the_next_due_time(store: Store) -> None:
    """A connection that is due for both is in both; what is due now is not what comes due next."""
    one = await save(store, a_connection(1, next_refresh_at=START))
    await save(store, a_connection(2, next_refresh_at=START + DAY))
    assert await switch_off(store) == [one.id]
    due = await store.due(now=START, limit=9, rechecks=9, apart_from=())
    assert [connection.id for connection in due.refreshes] == [one.id]
    assert (due.rechecks, due.next_at) == ([one.id], START + DAY)
    assert (await store.due(now=START, limit=0, apart_from=())).refreshes == []
    await store.freeze_all(why="a move")
    frozen = await store.due(now=START, limit=9, rechecks=9, apart_from=())
    assert (frozen.refreshes, frozen.rechecks, frozen.next_at) == ([], [one.id], None)


async def test_one_claim_of_many_at_once_is_given(store: Store) -> None:
    """Twenty claim the row that they read, one holds; who has seen that one may take over from it after its lease."""
    stored = await save(store, a_connection())
    claims = [a_claim(stored, attempt=f"attempt-{number}", lease=OVER) for number in range(20)]
    given = [claimed for claimed in await asyncio.gather(*map(store.claim, claims)) if claimed]
    assert len(given) == 1
    assert given[0].spending == "print-1"
    assert await store.claim(a_claim(given[0], attempt="later")) is not None


async def test_a_claim_names_the_row_it_read(store: Store) -> None:
    """Whatever was written since, a claim, an extension or a new pair, a claim of the row as it was is refused."""
    stored = await save(store, a_connection())
    assert await store.claim(a_claim(stored, row_version=2)) is None
    claimed = await store.claim(a_claim(stored, lease=OVER))
    assert claimed is not None
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
    """A process that died after its claim may have spent the token: the fingerprint is doubtful from then on."""
    stored = await save(store, a_connection())
    dead = await store.claim(a_claim(stored, fingerprint="maybe-spent", lease=OVER))
    assert dead is not None
    claimed = await store.claim(a_claim(dead, attempt="2", fingerprint="next"))
    assert claimed is not None
    assert (claimed.doubtful, claimed.spending) == ("maybe-spent", "next")


async def test_doubt_outlives_a_claim_that_could_present_nothing(store: Store) -> None:
    """An unreadable pair is claimed without a fingerprint: what was doubtful before still is once its key is back."""
    claimed = await save(store, a_connection())
    for attempt, spending in (("dead", "maybe-spent"), ("unreadable", ""), ("3", "maybe-spent")):
        after = await store.claim(a_claim(claimed, attempt=attempt, fingerprint=spending, lease=OVER))
        assert after is not None
        claimed = after
    assert (claimed.doubtful, claimed.spending) == ("maybe-spent", "maybe-spent")


async def test_a_refreshed_pair_is_stored_and_ends_its_claim(store: Store) -> None:
    """Pair, times, and nothing left of claim, doubt and failures."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored, fingerprint="1"))
    judged = await store.save_verdict(a_verdict(stored, open_for=OVER))
    assert judged is not None
    await store.claim(a_claim(judged, attempt="2", fingerprint="1"))
    refreshed = a_refreshed(stored)
    assert await store.save_refreshed(refreshed)
    after = await store.connection(stored.id)
    assert after is not None
    assert (after.sealed_pair, after.pair_version, after.refreshed_at) == (b"sealed again", 2, refreshed.issued_at)
    assert (after.attempt, after.lease_until, after.spending, after.doubtful) == (None, None, None, None)
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
    await store.save_verdict(
        a_verdict(stored, status=Status.NEEDS_REAUTH, reason=Reason.IN_DOUBT, next_refresh_at=None)
    )
    assert await store.save_refreshed(a_refreshed(stored))
    after = await store.connection(stored.id)
    assert after is not None
    assert (after.status, after.reason) == (Status.ACTIVE, None)


async def test_a_verdict_is_only_its_own_attempts(store: Store) -> None:
    """Whoever lost the claim writes nothing more."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    assert not await store.save_verdict(a_verdict(stored, attempt="another"))
    after = await store.save_verdict(a_verdict(stored, last_error="not_sent"))
    assert after is not None
    assert (after.failures, after.last_error, after.next_refresh_at) == (1, "not_sent", START + DAY)
    assert (after.attempt, after.spending, after.lease_until, after.doubtful) == (None, None, None, None)
    assert not await store.save_verdict(a_verdict(stored))


async def test_an_attempt_without_an_answer_stays_open(store: Store) -> None:
    """The verdict starts its lease anew, and what it was spending stays on record."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.save_verdict(a_verdict(stored, open_for=DAY))
    after = await now(store, stored)
    assert (after.attempt, after.spending) == ("attempt-1", "print-1")
    assert _runs_for(after, DAY)


async def test_doubt_stays_until_a_pair_is_stored(store: Store) -> None:
    """An open outcome, then a refusal that passes: the token is as doubtful as before."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    judged = await store.save_verdict(a_verdict(stored, open_for=OVER))
    assert judged is not None
    await store.claim(a_claim(judged, attempt="2"))
    await store.save_verdict(a_verdict(stored, attempt="2", last_error="account_refused"))
    after = await store.connection(stored.id)
    assert after is not None
    assert (after.doubtful, after.failures) == ("print-1", 2)


async def test_a_claim_given_back_leaves_no_trace(store: Store) -> None:
    """What was not sent is not doubtful, and another's claim is not given back."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    await store.release(connection_id=stored.id, attempt="another")
    held = await store.connection(stored.id)
    assert held is not None
    assert held.attempt == "attempt-1"
    await store.release(connection_id=stored.id, attempt="attempt-1")
    given_back = await store.connection(stored.id)
    assert given_back is not None
    again = await store.claim(a_claim(given_back, attempt="2"))
    assert again is not None
    assert again.doubtful is None


# --- look-ups ------------------------------------------------------------------------------------


async def test_a_hook_makes_the_accounts_look_ups_due_once(store: Store, clock: FakeClock) -> None:
    """The look-up that is pending covers further hooks; one that comes after it began makes the next due."""
    connection = await save(store, a_connection())
    await save(store, a_connection(2))
    assert await switch_off(store) == [connection.id]
    assert (await store.due(now=START, limit=0, rechecks=9, apart_from=())).rechecks == [connection.id]
    assert (await store.due(now=START, limit=0, rechecks=9, apart_from=[connection.id])).rechecks == []
    clock.advance(3)
    assert await switch_off(store) == []
    begun = await store.begin_recheck(await now(store, connection), again_in=60 * SECOND)
    assert begun is not None
    assert (begun.looked_up_at, begun.look_up_at) == (START + 3 * SECOND, START + 63 * SECOND)
    clock.advance(1)
    assert await switch_off(store) == [connection.id]
    after = await now(store, connection)
    assert (after.hook_at, after.look_up_at) == (START + 4 * SECOND, START + 8 * SECOND)


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
    assert (after.hook_at, after.row_version) == (START + 3 * SECOND, hooked.row_version)
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
    """What hooks before it have left is forgotten."""
    connection = await save(store, a_connection(), iat=1)
    await switch_off(store)
    begun = await store.begin_recheck(await now(store, connection), again_in=60 * SECOND)
    assert begun is not None
    assert await store.schedule_recheck(begun, at=None, pause=600 * SECOND)
    assert (await now(store, connection)).look_up_pause == 600 * SECOND
    clock.advance(1)
    granted = await save(store, a_connection(connected_at=START + SECOND), iat=2)
    assert (granted.hook_at, granted.looked_up_at, granted.look_up_pause) == (None, None, None)


async def test_a_later_hook_leaves_the_turn_of_one_that_was_given_up(store: Store, clock: FakeClock) -> None:
    """The first hook brings the turn forward; another moves it neither way."""
    stored = await save(store, a_connection())
    await store.claim(a_claim(stored))
    verdict = a_verdict(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, look_up_at=START + DAY)
    await store.save_verdict(verdict)
    for hour, look_up_at in ((1, START + DAY / 24), (2, START + DAY)):
        clock.advance(3600)
        at = START + hour * DAY / 24
        await switch_off(store)
        after = await store.connection(stored.id)
        assert after is not None
        assert (after.hook_at, after.look_up_at) == (at, look_up_at)
        assert await store.schedule_recheck(after, at=START + DAY)


async def test_a_death_puts_off_no_hooks_look_up(store: Store) -> None:
    """Where a look-up is due already, the connection that is given up meanwhile keeps its turn."""
    stored = await save(store, a_connection())
    await switch_off(store)
    hooked = await store.connection(stored.id)
    assert hooked is not None
    await store.claim(a_claim(hooked))
    verdict = a_verdict(stored, status=Status.NEEDS_REAUTH, next_refresh_at=None, look_up_at=START + DAY)
    after = await store.save_verdict(verdict)
    assert after is not None
    assert after.look_up_at == START


@pytest.mark.parametrize("on_request", [True, False])
async def test_a_pair_granted_before_a_disconnect_comes_back_only_where_nobody_asked_for_it(
    store: Store, *, on_request: bool
) -> None:
    """The store's counter decides, whatever the clocks say; and a grant that is tried again keeps its number."""
    stored = await save(store, a_connection(), iat=1)
    begun = await store.claim_grant(a_grant("before"), now=START)
    assert await store.disconnect(stored, on_request=on_request)
    erased = await now(store, stored)
    assert (erased.status, erased.sealed_pair, erased.pair_version) == (Status.DISCONNECTED, None, 2)
    again = await store.claim_grant(a_grant("before", attempt="attempt-2"), now=START, over=begun.attempt)
    assert (again.attempt, again.no) == ("attempt-2", begun.no)
    late = NewConnection(grant=again, connection=a_connection(connected_at=START + DAY), token_iat=2)
    assert (await store.save_connected(late) is None) is on_request
    earlier = a_connection(connected_at=START - DAY)  # by the clock of another process
    assert (await save(store, earlier, iat=3, code="after")).status is Status.ACTIVE


async def test_a_grant_whose_pair_was_discarded_is_refused_unless_the_connection_is_active(store: Store) -> None:
    """It never says "connected" of a connection that is not; where a newer grant holds, it does."""
    stored = await save(store, a_connection(), iat=2)
    pairs = []
    for code in ("before", "also before"):
        grant = dataclasses.replace(
            await store.claim_grant(a_grant(code), now=START), status=GrantStatus.CONNECTED, connection_id=stored.id
        )
        pairs.append(NewConnection(grant=grant, connection=a_connection(), token_iat=1))
    assert await store.save_connected(pairs[0]) is None
    await store.disconnect(await now(store, stored), on_request=True)
    assert await store.save_connected(pairs[1]) is None
    ended = [await store.grant(pair.grant.code_hash) for pair in pairs]
    assert [(one and one.status, one and one.error) for one in ended] == [
        (GrantStatus.CONNECTED, None),
        (GrantStatus.REFUSED, "code_expired"),
    ]


# --- clients -------------------------------------------------------------------------------------


async def test_a_pair_that_amo_issued_is_remembered_by_its_client(store: Store) -> None:
    """A grant proves the client id, a refresh as well, also once the connection is gone; an import proves nothing."""
    assert not await store.pair_obtained("granted")
    stored = await save(store, a_connection(1, client_id="granted"))
    assert await store.disconnect(stored, on_request=True)
    theirs = a_connection(2, client_id="imported", refreshed_at=START)
    imported = ImportedConnection(connection=theirs, replaces=None)
    event = Event(name="connection.imported", connection_id=theirs.id)
    assert await store.import_connections([imported], events=[event]) == []
    assert [await store.pair_obtained(name) for name in ("granted", "imported", "grant")] == [True, False, False]
    claimed = await store.claim(a_claim(theirs))
    assert claimed is not None
    assert await store.save_refreshed(a_refreshed(claimed)) is not None
    assert await store.pair_obtained("imported")


# --- grants --------------------------------------------------------------------------------------


async def test_one_of_many_begins_a_grant(store: Store) -> None:
    """Twenty at once: one begins it, all see the same one."""
    grants = [a_grant(attempt=f"attempt-{number}", handle_hash=f"handle-{number}") for number in range(20)]
    seen = await asyncio.gather(*(store.claim_grant(grant, now=START) for grant in grants))
    [attempt] = {grant.attempt for grant in seen}
    begun = await store.grant(fingerprint("code"))
    assert begun is not None
    [asked] = [grant for grant in grants if grant.attempt == attempt]
    assert dataclasses.replace(begun, lease_until=asked.lease_until, no=0) == asked
    assert await store.grant_by_handle(asked.handle_hash) == begun
    assert await store.grant("unknown") is None
    assert [await store.grant_by_handle(grant.handle_hash) for grant in grants if grant is not asked] == [None] * 19


@pytest.mark.parametrize("status", [GrantStatus.CONNECTED, GrantStatus.REFUSED])
async def test_an_ended_grant_is_not_begun_again(store: Store, status: GrantStatus) -> None:
    """What a code led to is final."""
    grant = await store.claim_grant(a_grant(), now=START)
    assert await store.finish_grant(dataclasses.replace(grant, status=status, error="e"))
    after = await store.claim_grant(a_grant(attempt="2"), now=START + DAY / 1440)
    assert (after.status, after.error, after.attempt) == (status, "e", "attempt-1")


async def test_a_failed_grant_is_tried_again_at_its_address(store: Store) -> None:
    """The handle stays, the attempt is new, and doubt is kept; not after the code's life."""
    grant = await store.claim_grant(a_grant(), now=START)
    failed = dataclasses.replace(grant, status=GrantStatus.FAILED, error="e", doubtful=True)
    assert await store.finish_grant(failed)
    for over, at in ((grant.attempt, grant.expires_at), (None, START), ("another", START)):
        assert (await store.claim_grant(a_grant(attempt="2"), now=at, over=over)).attempt == "attempt-1"
    again = await store.claim_grant(a_grant(attempt="2", handle_hash="another"), now=START, over=grant.attempt)
    assert (again.status, again.error, again.attempt, again.doubtful) == (GrantStatus.EXCHANGING, None, "2", True)
    assert again.handle_hash == grant.handle_hash
    assert not await store.finish_grant(failed)


async def test_an_abandoned_grant_may_have_spent_its_code(store: Store) -> None:
    """A process that died during its exchange is followed by one who saw its lease end, with doubt; by nobody else."""
    grant = await store.claim_grant(a_grant(), now=START)
    for abandoned in (None, "another"):
        kept = await store.claim_grant(a_grant(attempt="2"), now=grant.lease_until + DAY / 1440, over=abandoned)
        assert kept.attempt == grant.attempt
    after = await store.claim_grant(a_grant(attempt="2"), now=START, over=grant.attempt)
    assert (after.attempt, after.doubtful) == ("2", True)


async def test_a_connection_and_its_grants_end_are_one(store: Store) -> None:
    """Who sees the grant as connected finds the connection."""
    grant = await store.claim_grant(a_grant(), now=START)
    ended = dataclasses.replace(grant, status=GrantStatus.CONNECTED, connection_id=a_connection().id)
    await store.save_connected(NewConnection(grant=ended, connection=a_connection(), token_iat=None))
    assert await store.grant(grant.code_hash) == ended
    assert await store.connection(a_connection().id) is not None


async def test_expired_grants_are_erased_then_forgotten(store: Store) -> None:
    """After the code's life nothing sealed is left, a day later nothing at all."""
    grant = await store.claim_grant(a_grant(), now=START)
    await store.prune(now=grant.expires_at - SECOND, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) == grant
    await store.prune(now=grant.expires_at, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) == dataclasses.replace(grant, sealed=None)
    await store.prune(now=grant.expires_at + DAY, keep=DAY.total_seconds())
    assert await store.grant(grant.code_hash) is None


# --- states and owners ----------------------------------------------------------------------------


def a_state(**more: Any) -> IssuedState:
    """Return a state as it is issued."""
    values: dict[str, Any] = {"state_hash": "state", "sealed": b"sealed", "expires_at": START + DAY / 48}
    return IssuedState(**{**values, **more})


async def test_a_state_is_used_with_the_claim_of_its_code(store: Store) -> None:
    """Both are one: a code whose state is another code's is not claimed; its own code is claimed again with it."""
    await store.issue_state(a_state())
    assert await store.issued_state("state") == a_state()
    grant = await store.claim_grant(a_grant(), now=START, state_hash="state")
    assert await store.issued_state("state") == a_state(used_by=grant.code_hash)
    with pytest.raises(InvalidState):
        await store.claim_grant(a_grant("another"), now=START, state_hash="state")
    assert await store.grant(fingerprint("another")) is None
    await store.finish_grant(dataclasses.replace(grant, status=GrantStatus.FAILED))
    again = await store.claim_grant(a_grant(attempt="2"), now=START + DAY / 100, over=grant.attempt, state_hash="state")
    assert again.attempt == "2"


@pytest.mark.parametrize("name", ["state", "unknown"])
async def test_a_state_that_is_over_or_unknown_claims_nothing(store: Store, name: str) -> None:
    """From its last moment on."""
    await store.issue_state(a_state())
    with pytest.raises(InvalidState):
        await store.claim_grant(a_grant(), now=a_state().expires_at, state_hash=name)
    assert await store.grant(fingerprint("code")) is None


async def test_expired_states_are_erased_then_forgotten(store: Store) -> None:
    """What they stand for goes at once, that they were there a day later."""
    await store.issue_state(a_state())
    for at, left in (
        (a_state().expires_at - SECOND, a_state()),
        (a_state().expires_at, a_state(sealed=None)),
        (a_state().expires_at + DAY, None),
    ):
        await store.prune(now=at, keep=DAY.total_seconds())
        assert await store.issued_state("state") == left


async def test_a_grant_is_found_by_its_ticket(store: Store) -> None:
    """From the claim on; until when it is good is told with the end."""
    grant = await store.claim_grant(a_grant(ticket_hash="ticket"), now=START)
    assert await store.grant_by_ticket("ticket") == grant
    ended = dataclasses.replace(grant, status=GrantStatus.CONNECTED, accepted_at=START)
    assert await store.finish_grant(ended)
    assert await store.grant_by_ticket("ticket") == ended
    assert await store.grant_by_ticket("another") is None


async def test_an_owner_is_bound_once_and_the_first_only_where_there_is_none(store: Store) -> None:
    """Who is bound already stays so; who may only be first is refused where somebody is."""
    stored = await save(store, a_connection())
    for _ in range(2):
        assert await store.bind(stored.id, owner="42", grant_no=1, first_only=True)
    assert not await store.bind(stored.id, owner="17", grant_no=1, first_only=True)
    assert await store.bind(stored.id, owner="17", grant_no=1, first_only=False)
    assert await store.owners_of([stored.id, "unknown"]) == {stored.id: ["17", "42"], "unknown": []}
    assert [one.id for one in await store.connections_owned("17")] == [stored.id]
    assert [one.id for one in await store.page(after="", limit=9, only=ConnectionFilter(owner="42"))] == [stored.id]
    assert await store.page(after="", limit=9, only=ConnectionFilter(owner="42", status=Status.NEEDS_REAUTH)) == []
    assert await store.page(after="", limit=9, only=ConnectionFilter(owner="42", account_id="7")) == []
    told = [event.details for event in await store.events(connection_id=stored.id, limit=9)]
    assert told == [{"owner": "17"}, {"owner": "42"}]


async def test_nobody_is_bound_to_what_is_gone(store: Store) -> None:
    """Neither to a connection that was disconnected, nor to one that never was; and who owned it is forgotten."""
    stored = await save(store, a_connection())
    await store.bind(stored.id, owner="42", grant_no=1, first_only=True)
    assert await store.disconnect(stored, on_request=True)
    assert await store.owners_of([stored.id]) == {stored.id: []}
    for name in (stored.id, "unknown"):
        assert not await store.bind(name, owner="42", grant_no=1, first_only=False)
    assert await store.connections_owned("42") == []


async def test_a_vouched_owner_is_bound_with_the_pair(store: Store) -> None:
    """Committed with the grant's end, also where a later grant's pair was kept; not to what is disconnected."""
    pair = NewConnection(grant=a_grant(), connection=a_connection(), token_iat=2, owner="42")
    assert await store.save_connected(pair) is not None
    earlier = dataclasses.replace(pair, grant=a_grant("earlier"), token_iat=1, owner="17")
    assert await store.save_connected(earlier) is None
    assert sorted((await store.owners_of([a_connection().id]))[a_connection().id]) == ["17", "42"]
    await store.disconnect(await now(store, a_connection()), on_request=True)
    assert await store.save_connected(earlier) is None
    assert await store.owners_of([a_connection().id]) == {a_connection().id: []}


@pytest.mark.parametrize("on_request", [True, False])
async def test_a_grant_from_before_the_owner_left_adds_no_owner(store: Store, *, on_request: bool) -> None:
    """Nor does one from before the connection was disconnected; a later grant does. Times play no part."""
    stored = await save(store, a_connection(), iat=1)
    before = (await store.claim_grant(a_grant("before"), now=START)).no
    for owner in ("42", "17"):
        assert await store.bind(stored.id, owner=owner, grant_no=before, first_only=False)
    await store.unbind("42")
    assert not await store.bind(stored.id, owner="42", grant_no=before, first_only=False)
    between = (await store.claim_grant(a_grant("between"), now=START)).no
    assert await store.bind(stored.id, owner="42", grant_no=between, first_only=False)
    await store.disconnect(await now(store, stored), on_request=on_request)
    await save(store, a_connection(), iat=2)
    for no in (before, between):
        assert not await store.bind(stored.id, owner="7", grant_no=no, first_only=True)
    after = (await store.claim_grant(a_grant("after"), now=START)).no
    assert await store.bind(stored.id, owner="7", grant_no=after, first_only=True)


async def test_who_leaves_takes_along_what_nobody_else_owns(store: Store) -> None:
    """His connections alone; those that others own stay as they are. Nothing of it while all is frozen."""
    alone, shared, foreign = [await save(store, a_connection(number)) for number in (1, 2, 3)]
    for one in (alone, shared):
        await store.bind(one.id, owner="42", grant_no=1, first_only=False)
    for one in (shared, foreign):
        await store.bind(one.id, owner="17", grant_no=1, first_only=False)
    await store.freeze_all(why="a test")
    with pytest.raises(Frozen):
        await store.unbind("42")
    assert len(await store.connections_owned("42")) == 2
    await store.thaw_all(machine=None)
    told = {(event.connection_id, event.name) for event in await store.unbind("42")}
    assert told == {(alone.id, "connection.disconnected"), (shared.id, "owner.unbound")}
    assert [(await now(store, one)).status for one in (alone, shared, foreign)] == ["disconnected", "active", "active"]
    assert await store.owners_of([alone.id, shared.id, foreign.id]) == {
        alone.id: [], shared.id: ["17"], foreign.id: ["17"]
    }  # fmt: skip
    assert await store.unbind("42") == []


async def test_the_canary_is_the_first_one(store: Store) -> None:
    """A store keeps the canary it was born with."""
    assert await store.canary(b"first") == b"first"
    assert await store.canary(b"second") == b"first"


# --- history --------------------------------------------------------------------------------------


def _happened(connection: Connection, name: str = "connection.moved", **fields: object) -> Event:
    return Event(name=name, connection_id=connection.id, fields={"reason": None, **fields})


async def test_a_change_and_its_events_are_one(store: Store) -> None:
    """Whoever finds the change finds what it was; what was not changed was not told."""
    stored = await save(store, a_connection())
    event = _happened(stored, "refresh.failed", status=503, at=START, demand=RefreshTrigger.SCHEDULE)
    assert await store.save_verdict(a_verdict(stored), events=[event]) is None
    assert await store.events(limit=10) == []
    await store.claim(a_claim(stored))
    await store.save_verdict(a_verdict(stored), events=[event])
    [told] = await store.events(limit=10)
    assert (told.name, told.connection_id, told.process) == ("refresh.failed", stored.id, "one")
    assert told.details == {"status": 503, "at": "2026-11-23T12:00:00Z", "demand": "schedule"}


async def test_events_are_read_newest_first_page_by_page(store: Store) -> None:
    """Of all, or of one connection, each once."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    for number in range(6):
        await store.record(_happened(other if number % 3 == 0 else one, number=number))

    async def pages(connection_id: str | None) -> list[object]:
        found: list[StoredEvent] = []
        while page := await store.events(connection_id=connection_id, before=found[-1].id if found else None, limit=2):
            found += page
        return [event.details["number"] for event in found]

    assert await pages(None) == [5, 4, 3, 2, 1, 0]
    assert await pages(one.id) == [5, 4, 2, 1]
    assert await pages("unknown") == []


async def test_old_events_are_forgotten_in_steps(store: Store, clock: FakeClock) -> None:
    """After ninety days, a thousand at once; younger ones stay."""
    stored = await save(store, a_connection())
    for number in range(1002):
        await store.record(_happened(stored, number=number))
    clock.advance(DAY.total_seconds())
    await store.record(_happened(stored, number=-1))
    for left in (1003, 3, 1, 1):
        assert len(await store.events(limit=2000)) == left
        assert await store.forget(now=START + 90 * DAY + SECOND) is (left == 1003)


@pytest.mark.parametrize("name", sorted(WEBHOOK_EVENTS))
async def test_a_change_that_others_are_notified_of_is_in_the_webhooks_with_it(store: Store, name: str) -> None:
    """Committed with the change, or not at all, each under a name of its own, and without a secret."""
    stored = await save(store, a_connection())
    for _ in range(2):
        stored = await now(store, stored)
        assert await store.schedule_recheck(stored, at=START, events=[_happened(stored, name, reason="x")])
        assert not await store.schedule_recheck(stored, at=START, events=[_happened(stored, name)])
    one, other = await store.webhooks(limit=10)
    assert one.id != other.id
    assert (one.type, one.at) == (name, START)
    assert one.data == {
        "connection_id": stored.id, "account_id": stored.account_id, "domain": stored.domain,
        "owners": [], "reason": "x",
    }  # fmt: skip


# --- frozen ---------------------------------------------------------------------------------------


async def test_what_is_frozen_is_not_due_not_probed_and_not_claimed(store: Store) -> None:
    """One, or all: nothing is found to be refreshed, and a claim of what was read before is refused."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    late = START + 2 * DAY
    assert await store.freeze(one.id, at=START)
    assert not await store.freeze(one.id, at=START)
    assert [each.id for each in (await store.due(now=late, limit=9, apart_from=())).refreshes] == [other.id]
    assert await store.claim(a_claim(await now(store, one))) is None
    assert (await now(store, one)).frozen
    assert await store.freeze_all(why="a move")
    assert not await store.freeze_all(why="again")
    assert (await store.frozen()) == Freeze(at=START, why="a move")
    assert (await store.due(now=late, limit=9, apart_from=())).refreshes == []
    assert (await store.due(now=late, apart_from=(), limit=0)).next_at is None
    assert await store.probe(apart_from=(), turn=DAY) is None
    assert (await now(store, other)).frozen
    assert await store.claim(a_claim(await now(store, other))) is None
    with pytest.raises(Frozen):
        await store.claim_grant(a_grant("new"), now=START)
    assert await store.thaw_all(machine="here")
    assert not await store.thaw_all(machine="here")
    assert await store.claim(a_claim(await now(store, other))) is not None
    assert await store.freeze(one.id, at=None)
    assert await store.claim(a_claim(await now(store, one))) is not None


async def test_open_attempts_can_be_waited_for(store: Store) -> None:
    """Before anything is moved: what is in flight, and which codes are being exchanged."""
    one, _ = await save(store, a_connection(1)), await save(store, a_connection(2))
    claimed = await store.claim(a_claim(one))
    begun = await store.claim_grant(a_grant("new"), now=START)
    assert await store.attempts() == [claimed]
    assert begun in await store.exchanging(now=START)
    await store.save_refreshed(a_refreshed(one))
    await store.finish_grant(dataclasses.replace(begun, status=GrantStatus.REFUSED))
    assert await store.attempts() == []
    assert begun not in await store.exchanging(now=START)


async def test_a_disconnected_connection_is_not_frozen_any_more(store: Store) -> None:
    """A new grant of the same account begins afresh."""
    stored = await save(store, a_connection())
    await store.freeze(stored.id, at=START)
    assert await store.disconnect(await now(store, stored), on_request=True)
    assert not (await now(store, stored)).frozen
    assert not await store.freeze(stored.id, at=START)


async def test_a_file_knows_where_it_lives(store: Store) -> None:
    """The first to ask is at home; from another place it is frozen, until it is thawed there."""
    if store.has_shared_clock:
        pytest.skip("where a server is, the server tells")
    assert await store.check_machine("here") is None
    assert await store.check_machine("here") is None
    elsewhere = await store.check_machine("there")
    assert elsewhere is not None
    assert elsewhere.why.startswith("the database was last used in another place")
    assert await store.check_machine("here") == elsewhere
    await store.thaw_all(machine="there")
    assert await store.check_machine("there") is None


# --- AMO blocks our address ----------------------------------------------------------------------


async def test_a_probe_is_reserved_by_one_of_two_processes(store: Store, beside: Beside) -> None:
    """Nothing leaves before its time by the store's clock, and then one reservation holds, whoever comes first."""
    await store.begin_amo_block("shown", probe_every=OVER)
    async with beside("two") as other:
        taken = await asyncio.gather(
            *(one.take_amo_probe(name, every=DAY) for one in (store, other) for name in ("a", "b"))
        )
        assert sorted(taken) == [False, False, False, True]
        block = await other.amo_block()
    assert block is not None
    assert block.probe_at - block.since >= DAY
    assert block.probed in {("shown", "a"), ("shown", "b")}


async def test_an_exchange_is_reserved_apart_from_the_probe(store: Store) -> None:
    """The first may leave at once, while the probe has to wait, and the second has to wait, too."""
    await store.begin_amo_block("shown", probe_every=DAY)
    assert not await store.take_amo_probe("a", every=DAY)
    assert await store.take_amo_exchange(every=DAY)
    assert not await store.take_amo_exchange(every=DAY)


async def test_a_connection_that_is_probed_again_begins_a_new_round(store: Store) -> None:
    """By then each of the others has been probed."""
    await store.begin_amo_block("a", probe_every=OVER)
    for name, probed in (("b", ("a", "b")), ("a", ("a",))):
        assert await store.take_amo_probe(name, every=OVER)
        block = await store.amo_block()
        assert block is not None
        assert block.probed == probed


async def test_a_block_begins_and_ends_once(store: Store) -> None:
    """The second process changes nothing; the history has one event for each, and without a block all may leave."""
    await store.begin_amo_block("a", probe_every=DAY)
    begun = await store.amo_block()
    await store.begin_amo_block("b", probe_every=OVER)
    assert await store.amo_block() == begun
    await store.end_amo_block()
    await store.end_amo_block()
    assert await store.amo_block() is None
    assert await store.take_amo_probe("a", every=DAY)
    assert await store.take_amo_exchange(every=DAY)
    names = [event.name for event in await store.events(connection_id=None, limit=9)]
    assert names == ["amo_blocked.ended", "amo_blocked.started"]


# --- time -----------------------------------------------------------------------------------------


async def test_a_clock_that_went_back_takes_the_stored_times_back(store: Store) -> None:
    """Ages stay, all is due, and what happened is not yet to come."""
    if store.has_shared_clock:
        pytest.skip("one instance's clock must not shift the others' times")
    stored = await save(store, a_connection())
    await switch_off(store)
    await store.begin_recheck(await now(store, stored), again_in=60 * SECOND)
    stored = await now(store, stored)
    assert await store.record_time(now=lambda: START + 59 * SECOND) == timedelta(0)
    assert await store.record_time(now=lambda: START) == timedelta(0)
    assert await now(store, stored) == stored
    assert await store.record_time(now=lambda: START - DAY) == DAY
    after = await now(store, stored)
    assert (after.access_issued_at, after.access_expires_at) == (START - DAY, START)
    assert (after.hook_at, after.looked_up_at) == (START - DAY, START - DAY)
    assert (after.refresh_expires_at, after.next_refresh_at) == (START + 89 * DAY, START - DAY)
    assert after.connected_at == START - DAY
    assert await store.record_time(now=lambda: START - DAY) == timedelta(0)


async def test_a_clock_that_went_back_does_not_put_off_the_next_probe(store: Store) -> None:
    """The time until the next probe and the next exchange stays as long as it was."""
    if store.has_shared_clock:
        pytest.skip("the database's own clock decides")
    await store.begin_amo_block("a", probe_every=DAY)
    await store.take_amo_exchange(every=SECOND)
    await store.record_time(now=lambda: START + SECOND)
    await store.record_time(now=lambda: START - DAY)
    back = DAY + SECOND
    shifted = await store.amo_block()
    assert shifted == AmoBlock(
        since=START - back, probe_at=START + DAY - back, exchange_at=START + SECOND - back, probed=("a",)
    )


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
