"""The store's metadata and statistics, and encrypted records of every table."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_callback.crypto import EncryptedRecord, RecordKind, ReencryptedRecord
from amo_callback.errors import Frozen, StoreUnavailable
from amo_callback.events import Event, FailedDelivery
from amo_callback.grant import GrantStatus, IssuedState
from amo_callback.model import AmoBlock, Freeze, Reason, Status
from tests.builders import (
    DAY,
    a_claim,
    a_connection,
    a_failure,
    a_grant,
    a_refreshed,
    now,
    present,
    save,
    some_stats,
    switch_off,
)
from tests.fakes import START

if TYPE_CHECKING:
    from amo_callback.model import ChangeNotice
    from amo_callback.stats import StoreStats
    from amo_callback.store import Store
    from tests.fakes import FakeClock
    from tests.store.conftest import OpenAs

MINUTE = timedelta(minutes=1)


async def _stats(store: Store, *, after: timedelta = timedelta(0)) -> StoreStats:
    return await store.stats(now=START + after, late=START + after - 5 * MINUTE)


async def _fail_terminally(store: Store, number: int, reason: Reason) -> None:
    stored = await save(store, a_connection(number))
    await store.claim(a_claim(stored))
    await store.save_failure(a_failure(stored, status=Status.NEEDS_REAUTH, reason=reason, next_refresh_at=None))


async def test_stats_of_empty_store_are_zero(store: Store) -> None:
    """The statistics of an empty store are zeros without times."""
    assert await _stats(store) == some_stats(active=0, fresh=0, next_expiry=None, next_deadline=None)


async def test_stats_count_connections_by_status_and_reason(store: Store) -> None:
    """Each connection is counted once, and terminal failures by reason."""
    for number in (1, 2):
        await save(store, a_connection(number))
    for number, reason in ((3, Reason.REVOKED), (4, Reason.REVOKED), (5, Reason.IN_DOUBT)):
        await _fail_terminally(store, number, reason)
    gone = await save(store, a_connection(6))
    await store.disconnect(gone, on_request=True)
    found = await _stats(store)
    assert (found.active, found.fresh, found.disconnected) == (2, 2, 1)
    assert {reason: number for reason, number in found.needs_reauth.items() if number} == {
        Reason.REVOKED: 2,
        Reason.IN_DOUBT: 1,
    }


async def test_stats_count_refused_hosts_until_retry(store: Store) -> None:
    """A retry makes connections of refused hosts due at once, unless they have no refresh token."""
    for number in (1, 2, 3):
        await save(store, a_connection(number))
    await save(store, a_connection(4, next_refresh_at=None, refresh_expires_at=None))
    await _fail_terminally(store, 5, Reason.REVOKED)
    for number, error in ((1, "host_not_allowed"), (2, "host_not_allowed"), (3, "no_answer"), (4, "host_not_allowed")):
        again = None if number == 4 else START + 20 * DAY
        assert await store.postpone(await now(store, a_connection(number)), last_error=error, next_refresh_at=again)
    assert (await _stats(store)).hosts_not_allowed == 3
    later = START + DAY / 4
    await store.retry_hosts(now=later)
    assert (await _stats(store)).hosts_not_allowed == 0
    found = [await now(store, a_connection(number)) for number in (1, 2, 3, 4)]
    assert [(one.last_error, one.next_refresh_at) for one in found] == [
        (None, later),
        (None, later),
        ("no_answer", START + 20 * DAY),
        (None, None),
    ]


async def test_stats_next_expiry_and_deadline_are_of_active_connections(store: Store) -> None:
    """The next expiry and deadline ignore connections that are not active."""
    await save(store, a_connection(1, access_expires_at=START + 3 * DAY, refresh_expires_at=START + 50 * DAY))
    await save(store, a_connection(2, access_expires_at=START + 2 * DAY, refresh_expires_at=START + 60 * DAY))
    await _fail_terminally(store, 3, Reason.REVOKED)
    found = await _stats(store)
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
async def test_stats_due_connection_becomes_overdue_and_expired(
    store: Store, after: timedelta, due: int, overdue: int, fresh: int, expired: int
) -> None:
    """A refresh is overdue five minutes after its due time, and a token expires with its last second."""
    await save(store, a_connection())
    found = await _stats(store, after=after)
    assert (found.due, found.overdue, found.fresh, found.expired) == (due, overdue, fresh, expired)


async def test_stats_frozen_connections_are_not_due(store: Store) -> None:
    """Frozen connections count neither as due nor as overdue; expired ones are counted during a freeze of all."""
    stored = await save(store, a_connection(1))
    await save(store, a_connection(2))
    await store.freeze(stored.id, at=START)
    found = await _stats(store, after=2 * DAY)
    assert (found.active, found.due, found.overdue, found.expired) == (2, 1, 1, 1)
    await store.freeze_all(why="a test")
    found = await _stats(store, after=2 * DAY)
    assert (found.active, found.due, found.overdue, found.expired) == (2, 0, 0, 1)


async def test_stats_count_waiting_and_dead_lettered_webhooks(store: Store, clock: FakeClock) -> None:
    """Waiting and dead-lettered webhooks are counted separately, with the time of the oldest waiting one."""
    stored = await save(store, a_connection())
    for _ in range(2):
        await store.mark_in_doubt(await now(store, stored), events=[_change(stored.id)])
        clock.advance(60)
    found = await _stats(store)
    assert (found.waiting, found.waiting_since, found.dead_lettered) == (2, START, 0)
    [webhook] = await store.claim_webhooks(now=START, length=MINUTE, lease="lease", limit=1)
    failed: Any = FailedDelivery(id=webhook.id, lease="lease", error="status_500", next_try_at=None)
    await store.webhook_failed(failed)
    found = await _stats(store)
    assert (found.waiting, found.dead_lettered) == (1, 1)


def _change(name: str) -> Event:
    return Event(name="connection.moved", connection_id=name)


STORED = [RecordKind.CONNECTION, RecordKind.GRANT, RecordKind.STATE, RecordKind.CANARY]


async def _fill(store: Store) -> None:
    await save(store, a_connection())
    await store.issue_state(IssuedState(state_hash="state", sealed=b"sealed", expires_at=START + timedelta(minutes=30)))
    await store.canary(b"sealed")


async def _one(store: Store, kind: RecordKind) -> EncryptedRecord:
    [found] = await store.sealed(kind, after="", limit=10)
    return found


@pytest.mark.parametrize("kind", STORED)
async def test_reencrypt_replaces_only_bytes_that_were_read(store: Store, kind: RecordKind) -> None:
    """Re-encryption replaces a record only if its bytes are as read, and returns the others."""
    await _fill(store)
    read = await _one(store, kind)
    assert read.content == b"sealed"
    assert await store.reencrypt([ReencryptedRecord(read=read, content=b"another")]) == []
    assert (await _one(store, kind)).content == b"another"
    assert await store.reencrypt([ReencryptedRecord(read=read, content=b"late")]) == [read]
    assert (await _one(store, kind)).content == b"another"


async def test_sealed_lists_every_encrypted_record_by_page(store: Store) -> None:
    """Every encrypted record is counted and listed once by name; records without content are not."""
    await _fill(store)
    for number in range(2, 6):
        await save(store, a_connection(number))
    gone = await now(store, a_connection(5))
    assert await store.disconnect(gone, on_request=True)
    found: list[EncryptedRecord] = []
    while page := await store.sealed(RecordKind.CONNECTION, after=found[-1].name if found else "", limit=3):
        found += page
    assert [one.name for one in found] == sorted(a_connection(number).id for number in range(1, 5))
    assert await store.count_sealed() == 4 + 5 + 1 + 1  # the grant of the disconnected connection is still stored
    await store.prune(now=START + DAY, keep=10 * DAY.total_seconds())
    assert await store.count_sealed() == 4 + 1
    assert [await store.sealed(kind, after="", limit=10) for kind in (RecordKind.GRANT, RecordKind.STATE)] == [[], []]


async def test_reencrypt_keeps_pair_version_and_changes_row_version(store: Store) -> None:
    """Re-encryption keeps the pair version, so a refresh in progress can be stored, and publishes the changed row."""
    stored = await save(store, a_connection())
    heard: list[ChangeNotice] = []
    store.subscribe(heard.append)
    await store.reencrypt([ReencryptedRecord(read=await _one(store, RecordKind.CONNECTION), content=b"another")])
    reencrypted = await now(store, stored)
    assert (reencrypted.pair_version, reencrypted.row_version) == (stored.pair_version, stored.row_version + 1)
    assert [changed.connections for changed in heard] == [frozenset({stored.id})]
    refreshed = present(await store.save_refreshed(a_refreshed(stored)))
    assert refreshed.sealed_pair == b"sealed again"


async def test_reencrypt_of_page_skips_changed_records(store: Store) -> None:
    """A page is re-encrypted in one transaction, except for records changed in between."""
    for number in (1, 2, 3):
        await save(store, a_connection(number))
    page = await store.sealed(RecordKind.CONNECTION, after="", limit=10)
    other = next(a_connection(number) for number in (1, 2, 3) if a_connection(number).id == page[1].name)
    refreshed = await store.save_refreshed(a_refreshed(await now(store, other)))
    assert await store.reencrypt([ReencryptedRecord(read=one, content=b"another") for one in page]) == [page[1]]
    contents = [one.content for one in await store.sealed(RecordKind.CONNECTION, after="", limit=10)]
    assert contents == [b"another", b"sealed again", b"another"]
    assert await now(store, other) == refreshed


async def test_other_process_detects_change(store: Store, open_as: OpenAs) -> None:
    """Another process receives the change or detects a new data version, and reads its connections again."""
    await _fill(store)
    async with open_as("other") as other:
        heard: list[ChangeNotice] = []
        other.subscribe(heard.append)
        before = await other.data_version()
        read = await _one(store, RecordKind.CONNECTION)
        await store.reencrypt([ReencryptedRecord(read=read, content=b"another")])
        missed = await other.data_version() != before
        assert missed or [changed.connections for changed in heard] == [frozenset({read.name})]


async def test_reencrypt_failure_leaves_page_unchanged(store: Store) -> None:
    """A failure in the middle of a page changes none of its records."""
    for number in (1, 2):
        await save(store, a_connection(number))
    page = await store.sealed(RecordKind.CONNECTION, after="", limit=10)
    contents: list[Any] = [b"another", "no bytes"]
    with pytest.raises(StoreUnavailable):
        await store.reencrypt(
            [ReencryptedRecord(read=one, content=content) for one, content in zip(page, contents, strict=True)]
        )
    assert await store.sealed(RecordKind.CONNECTION, after="", limit=10) == page


SECOND = timedelta(seconds=1)
OVER = timedelta(0)


# --- freezing, blocks and time ------------------------------------------------------------


async def test_canary_first_value_is_kept(store: Store) -> None:
    """The store keeps its first canary."""
    assert await store.canary(b"first") == b"first"
    assert await store.canary(b"second") == b"first"


async def test_freeze_excludes_connections_from_due_probe_and_claim(store: Store) -> None:
    """A frozen connection, or all, is not due, not probed and not claimed until the thaw."""
    one, other = await save(store, a_connection(1)), await save(store, a_connection(2))
    late = START + 2 * DAY
    assert await store.freeze(one.id, at=START)
    assert not await store.freeze(one.id, at=START)
    assert [each.id for each in (await store.due(now=late, limit=9, exclude=())).refreshes] == [other.id]
    assert await store.claim(a_claim(await now(store, one))) is None
    assert (await now(store, one)).frozen
    assert await store.freeze_all(why="a move")
    assert not await store.freeze_all(why="again")
    assert (await store.frozen()) == Freeze(at=START, why="a move")
    assert (await store.due(now=late, limit=9, exclude=())).refreshes == []
    assert (await store.due(now=late, exclude=(), limit=0)).next_at is None
    assert await store.probe(exclude=(), turn=DAY) is None
    assert (await now(store, other)).frozen
    assert await store.claim(a_claim(await now(store, other))) is None
    with pytest.raises(Frozen):
        await store.claim_grant(a_grant("new"), now=START)
    assert await store.thaw_all(machine="here")
    assert not await store.thaw_all(machine="here")
    assert await store.claim(a_claim(await now(store, other))) is not None
    assert await store.freeze(one.id, at=None)
    assert await store.claim(a_claim(await now(store, one))) is not None


async def test_freeze_all_of_possible_copy_replaces_requested_freeze(store: Store) -> None:
    """An export's freeze replaces a requested one, and its thaw makes all connections due."""
    connection = await save(store, a_connection(1))
    assert await store.freeze_all(why="requested")
    assert not await store.freeze_all(why="exported", may_be_copy=True)
    assert not await store.freeze_all(why="requested again")
    assert await store.frozen() == Freeze(at=START, why="exported", may_be_copy=True)
    assert await store.thaw_all(machine="here")
    assert [one.id for one in (await store.due(now=START, limit=9, exclude=())).refreshes] == [connection.id]


async def test_attempts_lists_open_refreshes_and_exchanges(store: Store) -> None:
    """Open refresh attempts and exchanges are listed, so that an operator can wait for them before a move."""
    one, _ = await save(store, a_connection(1)), await save(store, a_connection(2))
    claimed = await store.claim(a_claim(one))
    begun = await store.claim_grant(a_grant("new"), now=START)
    assert await store.attempts() == [claimed]
    assert begun in await store.exchanging(now=START)
    await store.save_refreshed(a_refreshed(one))
    await store.finish_grant(dataclasses.replace(begun, status=GrantStatus.REFUSED))
    assert await store.attempts() == []
    assert begun not in await store.exchanging(now=START)


async def test_disconnect_ends_freeze_of_connection(store: Store) -> None:
    """A disconnect ends a connection's freeze, so that a new grant is not frozen."""
    stored = await save(store, a_connection())
    await store.freeze(stored.id, at=START)
    assert await store.disconnect(await now(store, stored), on_request=True)
    assert not (await now(store, stored)).frozen
    assert not await store.freeze(stored.id, at=START)


async def test_check_machine_freezes_database_of_another_machine(store: Store) -> None:
    """A SQLite database opened on another machine is frozen until it is thawed there."""
    if store.has_shared_clock:
        pytest.skip("a server identifies itself")
    assert await store.check_machine("here") is None
    assert await store.check_machine("here") is None
    frozen = present(await store.check_machine("there"))
    assert frozen.why.startswith("the database was last used at another location")
    assert await store.check_machine("here") == frozen
    await store.thaw_all(machine="there")
    assert await store.check_machine("there") is None


async def test_take_amo_probe_concurrent_processes_reserve_one(store: Store, open_as: OpenAs) -> None:
    """After the probe's time by the store's clock, one of several concurrent reservations succeeds."""
    await store.begin_amo_block("shown", probe_every=OVER)
    async with open_as("two") as other:
        taken = await asyncio.gather(
            *(one.take_amo_probe(name, every=DAY) for one in (store, other) for name in ("a", "b"))
        )
        assert sorted(taken) == [False, False, False, True]
        block = await other.amo_block()
    assert block is not None
    assert block.probe_at - block.since >= DAY
    assert block.probed in {("shown", "a"), ("shown", "b")}


async def test_take_amo_exchange_is_reserved_separately_from_probe(store: Store) -> None:
    """The first exchange is allowed although the probe must wait; the second exchange must wait, too."""
    await store.begin_amo_block("shown", probe_every=DAY)
    assert not await store.take_amo_probe("a", every=DAY)
    assert await store.take_amo_exchange(every=DAY)
    assert not await store.take_amo_exchange(every=DAY)


async def test_take_amo_probe_of_probed_connection_begins_new_round(store: Store) -> None:
    """A second probe of a connection begins a new round, because all others have been probed."""
    await store.begin_amo_block("a", probe_every=OVER)
    for name, probed in (("b", ("a", "b")), ("a", ("a",))):
        assert await store.take_amo_probe(name, every=OVER)
        block = present(await store.amo_block())
        assert block.probed == probed


async def test_amo_block_begins_and_ends_once(store: Store) -> None:
    """A second begin or end changes nothing and adds no event; after the end, requests are allowed."""
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


async def test_clock_moved_back_shifts_stored_times(store: Store) -> None:
    """If the clock is moved back, stored times move with it: ages stay and all refreshes are due."""
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
    assert (after.disabled_hook_at, after.rechecked_at) == (START - DAY, START - DAY)
    assert (after.refresh_expires_at, after.next_refresh_at) == (START + 89 * DAY, START - DAY)
    assert after.connected_at == START - DAY
    assert await store.record_time(now=lambda: START - DAY) == timedelta(0)


async def test_clock_moved_back_keeps_wait_for_next_probe(store: Store) -> None:
    """If the clock is moved back, the wait for the next probe and exchange does not change."""
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
