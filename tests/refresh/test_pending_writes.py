"""Pending writes: pairs that the store does not accept are kept, handed out, written to rescue files and retried."""

import asyncio
import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from amo_callback.amo.sandbox.app import Fault
from amo_callback.crypto import Cipher, new_key
from amo_callback.errors import ConfigurationError, NeedsReauth, ShuttingDown, StoreUnavailable
from amo_callback.events import Event
from amo_callback.model import Connection, RefreshTrigger, Status
from amo_callback.refresh.pending_pair import PendingPair, file_name, seal_pending
from tests.builders import a_connection, a_refreshed, save
from tests.fakes import MemoryRescue, Override
from tests.refresh.harness import API_DOMAIN, RefreshHarness
from tests.wait_limit import WAIT_LIMIT


class StuckRescue(MemoryRescue):
    """A rescue folder whose files cannot be removed while `stuck` is true."""

    stuck = True

    def remove(self, name: str) -> None:
        if self.stuck:
            raise PermissionError(13, f"Permission denied: {name}")
        super().remove(name)


def _rescue(harness: RefreshHarness, pending_pair: PendingPair) -> str:
    """Write a rescue file, as an ended process leaves it, and return its name."""
    name = file_name(pending_pair)
    harness.rescue.files[name] = seal_pending(pending_pair, harness.cipher)
    return name


async def _begin_pending_write(harness: RefreshHarness) -> tuple[Connection, asyncio.Task[Connection]]:
    """Connect, and begin a refresh whose pair the store does not accept."""
    connection = await harness.connect()
    refreshing = await harness.begin_pending_write(connection)
    return connection, refreshing


async def test_pending_write_is_kept_in_memory_and_rescue_file_until_stored(harness: RefreshHarness) -> None:
    """A pair that the store refuses is kept, reported once with `rescued`, and retried every second."""
    connection, refreshing = await _begin_pending_write(harness)
    name = f"{connection.id}-1"
    assert harness.lifecycle.pending_writes.names == [name]
    assert list(harness.rescue.files) == [name]
    await harness.clock.tick(1, times=3)
    await harness.clock.until_sleeping(1)
    [event] = harness.witness.named("pair.write_pending")
    assert (event.connection_id, event.fields) == (connection.id, {"store": "SQLITE_FULL", "rescued": True})
    harness.failing.away = set()
    harness.clock.advance(1)
    assert (await refreshing).pair_version == 2
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})
    assert (await harness.witness.until("pair.write_completed")).fields == {"superseded": False}


@pytest.mark.parametrize("readable", [True, False])
async def test_hand_out_with_pending_write_returns_pending_pair(harness: RefreshHarness, *, readable: bool) -> None:
    """A hand-out by connection or account returns the pending pair, also while the store is unreadable."""
    connection, refreshing = await _begin_pending_write(harness)
    if not readable:
        harness.failing.away |= {"connection", "connections_of"}
    for selector in (connection.id, f"account:{connection.account_id}"):
        handed_out = await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
        assert handed_out.token.value == harness.amo.fake.ledger.access_tokens[-1]
    if not readable:
        with pytest.raises(StoreUnavailable):
            await harness.lifecycle.access_tokens.token("another customer", min_ttl=0)
    await harness.restore_store()
    await refreshing


async def test_refresh_with_pending_write_does_not_present_stored_pair(harness: RefreshHarness) -> None:
    """Neither this process nor another one that has loaded the rescue file presents the stored, spent token."""
    connection, refreshing = await _begin_pending_write(harness)
    other = harness.make_lifecycle()
    await other.pending_writes.restore()
    for lifecycle in (harness.lifecycle, other):
        assert lifecycle.pending_writes.blocks(connection)
    await harness.fail(connection, StoreUnavailable, by=other.coordinator, trigger=RefreshTrigger.FORCED)
    for lifecycle in (harness.lifecycle, other):
        await harness.restore_store(lifecycle)
    await refreshing
    await other.pending_writes.drain()
    assert harness.amo.fake.ledger.doubles() == 0
    assert (await harness.now(connection)).pair_version == 2


async def test_save_refreshed_lost_commit_answer_counts_as_stored(harness: RefreshHarness) -> None:
    """A refreshed pair whose commit answer is lost is found in the row, and nothing stays pending."""
    connection = await harness.connect()
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_refreshed"}
    stored = await harness.refresh(connection, by=lifecycle.coordinator)
    assert stored.pair_version == 2
    assert harness.amo.fake.is_good(harness.pair(stored).refresh_token)
    assert (harness.rescue.files, lifecycle.pending_writes.names) == ({}, [])
    assert set(harness.witness.names()) & {"pair.write_pending", "refresh.superseded"} == set()


async def test_save_refreshed_lost_commit_answer_then_replaced_is_not_superseded(harness: RefreshHarness) -> None:
    """The history shows that a pair was stored even if another process replaced it before this one could read it."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    harness.failing.lost, harness.failing.away = {"save_refreshed"}, {"connection"}
    harness.amo.sandbox.go_on.set()
    await harness.witness.until("pair.write_pending")
    harness.failing.away = set()
    other = harness.make_coordinator(store=harness.store, rescue=MemoryRescue(), process="process-2")
    assert (await harness.refresh(connection, by=other, trigger=RefreshTrigger.FORCED)).pair_version == 3
    await harness.lifecycle.pending_writes.flush()
    assert ((await refreshing).pair_version, harness.rescue.files) == (3, {})
    [event] = harness.witness.named("pair.write_completed")
    assert event.fields["superseded"] is False


async def test_save_connected_lost_commit_answer_counts_as_stored(harness: RefreshHarness) -> None:
    """A granted pair whose commit answer is lost is found in the row, and nothing stays pending."""
    granted = await harness.grant()
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_connected"}
    stored = await lifecycle.pending_writes.save(granted, connection=granted.connection)
    assert stored is not None
    assert stored.sealed_pair == granted.connection.sealed_pair
    assert (harness.rescue.files, lifecycle.pending_writes.names) == ({}, [])


async def test_claim_lost_commit_answer_is_released(harness: RefreshHarness) -> None:
    """A claim whose commit answer is lost is released unsent, so the next refresh need not wait for its lease."""
    connection = await harness.connect()
    lifecycle, harness.failing.lost = harness.lifecycle, {"claim"}
    await harness.fail(connection, StoreUnavailable, by=lifecycle.coordinator)
    assert ((await harness.now(connection)).attempt, harness.presented()) == (None, [])
    assert (await harness.refresh(connection, by=lifecycle.coordinator)).pair_version == 2


async def test_save_failure_lost_commit_answer_presents_token_once(harness: RefreshHarness) -> None:
    """A terminal failure whose commit answer is lost is stored, and its token is not presented again."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.refresh_elsewhere(connection)
    presented = len(harness.presented())
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_failure"}
    for _ in range(2):
        await harness.fail(connection, NeedsReauth, by=lifecycle.coordinator)
    assert len(harness.presented()) == presented + 1
    assert "refresh.result_not_stored" not in harness.witness.names()


@pytest.mark.parametrize("call", ["save_refreshed", "connection"], ids=["save", "read after save"])
async def test_pending_write_bug_in_store_keeps_pair_and_is_reported(harness: RefreshHarness, call: str) -> None:
    """A pair is kept and retried after an unexpected exception of the store, which is reported with its traceback."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    if call == "connection":
        harness.failing.answers["save_refreshed"] = None
    harness.failing.before[call] = ZeroDivisionError()
    harness.amo.sandbox.go_on.set()
    await harness.witness.until_either(("pair.write_pending", "refresh.bug"), times=1)
    [event] = harness.witness.named("pair.write_pending")
    assert isinstance(event.error, ZeroDivisionError)
    harness.failing.answers.clear()
    harness.failing.before.clear()
    await harness.lifecycle.pending_writes.flush()
    assert (await refreshing).pair_version == 2


async def test_pending_write_failing_observer_keeps_rescue_file(harness: RefreshHarness) -> None:
    """A pair is in its rescue file before the observer runs, so a restart stores it if the observer fails."""
    connection = await harness.connect()

    def observer(event: Event) -> None:
        if event.name == "pair.write_pending":
            raise RuntimeError("the observer fails")

    lifecycle = harness.make_lifecycle(observer=observer)
    harness.failing.away = {"save_refreshed"}
    await harness.fail(connection, RuntimeError, by=lifecycle.coordinator)
    harness.failing.away = set()
    await harness.make_lifecycle().pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2


async def test_shutdown_with_rescue_file_leaves_pair_to_next_process(harness: RefreshHarness) -> None:
    """Shutdown does not wait for the store if the pair is in its rescue file, which the next process stores."""
    connection, refreshing = await _begin_pending_write(harness)
    harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing
    await harness.lifecycle.drain()
    assert list(harness.rescue.files) == [f"{connection.id}-1"]
    harness.failing.away = set()
    restarted = harness.make_lifecycle()
    await restarted.pending_writes.restore()
    await restarted.pending_writes.drain()
    assert (await harness.now(connection)).pair_version == 2
    assert harness.rescue.files == {}


async def test_drain_waits_for_restored_rescue_file(harness: RefreshHarness) -> None:
    """Draining waits for the write of a pair that was loaded from a rescue file."""
    connection, refreshing = await _begin_pending_write(harness)
    harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing
    restarted = harness.make_lifecycle()
    await restarted.pending_writes.restore()
    draining = asyncio.create_task(restarted.coordinator.drain())
    await harness.traffic.until_quiet()
    assert not draining.done()
    await harness.restore_store(restarted)
    await draining
    assert (await harness.now(connection)).pair_version == 2


async def test_shutdown_without_rescue_file_waits_for_store(harness: RefreshHarness) -> None:
    """A process whose pair is only in memory keeps retrying at shutdown and reports it once."""
    harness.rescue.full = True
    connection, refreshing = await _begin_pending_write(harness)
    harness.lifecycle.core.stop.set()
    await harness.clock.tick(1, times=3)
    await harness.clock.until_sleeping(1)
    assert not refreshing.done()
    harness.failing.away = set()
    harness.clock.advance(1)
    await harness.lifecycle.drain()
    assert (await refreshing).pair_version == 2
    assert (await harness.now(connection)).pair_version == 2
    [event] = harness.witness.named("pair.write_pending")
    assert event.fields["rescued"] is False


async def test_shutdown_rescue_file_written_on_retry_stops_waiting(harness: RefreshHarness) -> None:
    """Each retry also writes the rescue file, and shutdown stops waiting when that succeeds."""
    harness.rescue.full = True
    connection, refreshing = await _begin_pending_write(harness)
    harness.lifecycle.core.stop.set()
    await harness.clock.until_sleeping(1)
    harness.rescue.full = False
    harness.clock.advance(1)
    with pytest.raises(ShuttingDown):
        await refreshing
    assert list(harness.rescue.files) == [f"{connection.id}-1"]


async def test_shutdown_store_without_answer_rescues_pair_after_two_seconds(harness: RefreshHarness) -> None:
    """Without a stop a slow store is waited for; 2 s after a stop the pair is written to its rescue file."""
    connection = await harness.connect()
    harness.failing.before["save_refreshed"] = asyncio.Event()
    refreshing = harness.begin(connection)
    await harness.failing.until_asked("save_refreshed")
    harness.clock.advance(30)
    await asyncio.sleep(0)
    assert (harness.lifecycle.pending_writes.unsafe, harness.rescue.files) == ([connection.id], {})
    harness.lifecycle.core.stop.set()
    await harness.clock.until_sleeping(2)
    harness.clock.advance(2)
    with pytest.raises(ShuttingDown):
        await refreshing
    assert list(harness.rescue.files) == [f"{connection.id}-1"]
    assert not harness.lifecycle.pending_writes.at_risk


async def test_at_risk_is_true_from_request_until_pair_is_stored(harness: RefreshHarness) -> None:
    """A pair is at risk while AMO has yet to answer, until it is stored."""
    connection = await harness.connect()
    harness.amo.sandbox.faults.add(Fault.SLOW)
    refreshing = harness.begin(connection)
    await harness.amo.sandbox.until_asked(harness.amo.sandbox.requests + 1)
    assert (harness.lifecycle.pending_writes.at_risk, harness.lifecycle.pending_writes.unsafe) == (True, [])
    harness.amo.sandbox.go_on.set()
    await refreshing
    assert not harness.lifecycle.pending_writes.at_risk


async def test_flush_retries_every_pending_write_immediately(harness: RefreshHarness) -> None:
    """A flush tries each pending write once without a delay, and keeps those that fail."""
    _, refreshing = await _begin_pending_write(harness)
    offered = harness.traffic.calls["save_refreshed"]
    await harness.lifecycle.pending_writes.flush()
    assert harness.traffic.calls["save_refreshed"] == offered + 1
    assert not refreshing.done()
    await harness.restore_store()
    assert (await refreshing).pair_version == 2


async def test_restore_leftover_grant_file_does_not_replace_refreshed_pair(harness: RefreshHarness) -> None:
    """The leftover rescue file of a granted pair is superseded by the pair that was refreshed from it."""
    pending_pair = await harness.grant()
    stored = await harness.store.save_connected(pending_pair)
    assert stored is not None
    harness.clock.advance(43_200)
    refreshed = await harness.refresh(stored)
    _rescue(harness, pending_pair)
    restarted = harness.make_lifecycle()
    await restarted.pending_writes.restore()
    await restarted.pending_writes.drain()
    assert await harness.now(stored) == refreshed
    assert harness.rescue.files == {}


async def test_pending_write_in_two_processes_is_stored_once(harness: RefreshHarness) -> None:
    """The second process's write of the same granted pair does not replace the pair refreshed from it."""
    pending_pair = await harness.grant()
    store, other_store = harness.failing_store("save_connected"), harness.failing_store("save_connected")
    first = harness.make_lifecycle(store=store)
    saving = asyncio.create_task(first.pending_writes.save(pending_pair, connection=pending_pair.connection))
    await harness.witness.until("pair.write_pending")
    second = harness.make_lifecycle(store=other_store, process="process-2")
    await second.pending_writes.restore()
    store.away = set()
    await first.pending_writes.flush()
    await saving
    refreshed = await harness.refresh(pending_pair.connection, by=first.coordinator, trigger=RefreshTrigger.FORCED)
    other_store.away = set()
    await second.pending_writes.flush()
    await second.pending_writes.drain()
    assert await harness.now(refreshed) == refreshed
    assert (await harness.witness.until("pair.write_completed", times=2)).fields == {"superseded": True}


async def test_pending_write_superseded_by_grant_is_dropped(harness: RefreshHarness) -> None:
    """A pending write is dropped if a grant is stored before it."""
    connection, refreshing = await _begin_pending_write(harness)
    granted = await harness.connect()
    await harness.restore_store()
    assert await refreshing == granted
    assert await harness.now(connection) == granted
    assert harness.rescue.files == {}


async def test_restore_unreadable_file_is_kept_and_blocks_its_pair_only(harness: RefreshHarness) -> None:
    """An unreadable rescue file stays and blocks refreshes of the pair that it replaces, but of no other pair."""
    connection = await harness.connect()
    harness.amo.account.user_id += 1
    other = await harness.connect()
    name = f"{connection.id}-{connection.pair_version}"
    sealed = seal_pending(a_refreshed(connection), Cipher([new_key()]))
    harness.rescue.files[name] = sealed
    await harness.lifecycle.pending_writes.restore()
    assert (await harness.witness.until("rescue.unreadable")).fields["file"] == name
    assert harness.lifecycle.pending_writes.names == [name]
    await harness.fail(connection, StoreUnavailable)
    assert (await harness.refresh(other)).pair_version == 2
    harness.amo.account.user_id -= 1
    granted = await harness.connect()
    assert (await harness.refresh(granted)).pair_version == granted.pair_version + 1
    assert harness.rescue.files == {name: sealed}


async def test_restore_unreadable_grant_file_blocks_no_refresh(harness: RefreshHarness) -> None:
    """An unreadable rescue file of a grant blocks no refresh, because a grant spends no stored pair."""
    connection = await harness.connect()
    name = f"{connection.id}-gdeadbeef"
    harness.rescue.files[name] = b"sealed with a key that is gone"
    await harness.lifecycle.pending_writes.restore()
    granted = await harness.connect()
    harness.clock.advance(43_200)
    assert (await harness.refresh(granted)).pair_version == granted.pair_version + 1
    assert harness.lifecycle.pending_writes.names == [name]


async def test_restore_unreadable_folder_raises_configuration_error(harness: RefreshHarness) -> None:
    """An unreadable rescue folder raises an error that names `storage.rescue`."""

    def read() -> dict[str, bytes]:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ConfigurationError, match=r"storage\.rescue: cannot read the folder"):
        await harness.make_lifecycle(rescue=Override(harness.rescue, read=read)).pending_writes.restore()


async def test_restore_undeletable_file_is_logged_once_and_removed_later(harness: RefreshHarness) -> None:
    """Each restore retries the removal of a stored pair's file, which is logged once."""
    connection, rescue = await harness.connect(), StuckRescue()
    lifecycle = harness.make_lifecycle(rescue=rescue)
    refreshing = await harness.begin_pending_write(connection, by=lifecycle.coordinator)
    await harness.restore_store(lifecycle)
    assert (await refreshing).status is Status.ACTIVE
    offered = harness.failing.asked["save_refreshed"]
    for _ in range(3):
        await lifecycle.pending_writes.restore()
    expected = ["pair.write_pending", "refresh.succeeded", "pair.write_completed", "rescue.not_removed"]
    assert harness.witness.names() == expected
    rescue.stuck = False
    await lifecycle.pending_writes.restore()
    assert (rescue.read(), harness.failing.asked["save_refreshed"], lifecycle.pending_writes.names) == ({}, offered, [])


async def test_scheduler_round_flushes_pending_writes_first(harness: RefreshHarness) -> None:
    """A scheduler round stores pending writes before it refreshes, without waiting for their next retry."""
    connection = await harness.connect()
    refreshing = await harness.begin_pending_write(connection)
    harness.failing.away = set()
    async with harness.running(harness.lifecycle):
        assert (await refreshing).pair_version == 2


async def test_scheduler_stores_rescue_file_of_another_process(harness: RefreshHarness) -> None:
    """The scheduler stores the rescue file of a stopped process within a minute, without a restart."""
    connection = await harness.connect()
    other = harness.make_lifecycle(store=harness.failing_store("save_refreshed"), process="process-2")
    async with harness.running(harness.lifecycle):
        refreshing = harness.begin(connection, by=other.coordinator)
        await harness.witness.until("pair.write_pending")
        other.core.stop.set()
        with pytest.raises(ShuttingDown):
            await refreshing
        assert len(harness.rescue.files) == 1
        await harness.pass_time(60, step=5)
        assert (await harness.now(connection)).pair_version == 2
    assert harness.rescue.files == {}


async def test_restore_concurrent_calls_store_each_pair_once(harness: RefreshHarness) -> None:
    """Concurrent restores of one folder load each file once, and none waits indefinitely."""
    connections = [await save(harness.store, a_connection(number)) for number in range(1, 6)]
    for connection in connections:
        _rescue(harness, a_refreshed(connection))
    await asyncio.wait_for(asyncio.gather(*(harness.lifecycle.pending_writes.restore() for _ in range(3))), WAIT_LIMIT)
    assert [event.fields for event in harness.witness.events] == [{"superseded": False}] * len(connections)
    assert [(await harness.now(connection)).pair_version for connection in connections] == [2] * len(connections)
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})


@pytest.mark.parametrize("row", ["none", "older"])
async def test_restore_missing_or_older_row_keeps_file_and_reports_orphan(harness: RefreshHarness, row: str) -> None:
    """The rescue file stays and is reported once if the row is missing or older, for example after a restore."""
    connection = await harness.connect()
    version = connection.pair_version + (5 if row == "older" else 0)
    name = connection.id if row == "older" else a_connection(7).id
    file = _rescue(harness, a_refreshed(connection, connection_id=name, pair_version=version))
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files.keys() == {file}
    assert harness.lifecycle.pending_writes.names == [file]
    assert harness.witness.names() == ["pair.orphaned"]
    assert harness.lifecycle.pending_writes.blocks(connection) is (row == "older")
    await harness.lifecycle.pending_writes.restore()
    assert harness.witness.names() == ["pair.orphaned"]


async def test_restore_file_with_read_error_does_not_block_other_files(harness: RefreshHarness) -> None:
    """A file with a read error is reported as unreadable, and the other files are stored."""
    connection = await harness.connect()
    _rescue(harness, a_refreshed(connection))

    def read() -> dict[str, bytes | None]:
        return {**harness.rescue.files, "x-1": None}

    lifecycle = harness.make_lifecycle(rescue=Override(harness.rescue, read=read))
    await lifecycle.pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2
    assert lifecycle.pending_writes.names == ["x-1"]
    assert sorted(harness.witness.names()) == ["pair.write_completed", "rescue.unreadable"]


async def test_pending_write_superseded_while_row_unreadable_is_dropped_later(harness: RefreshHarness) -> None:
    """A superseded pair stays pending until the row can be read, and is then dropped."""
    connection = await harness.connect()
    refreshing = await harness.begin_slow(connection)
    granted = await harness.connect()
    harness.failing.away = {"connection"}
    harness.amo.sandbox.go_on.set()
    await harness.witness.until("pair.write_pending")
    await harness.restore_store()
    assert await refreshing == granted
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})


async def test_orphan_without_file_is_kept_in_memory_until_written(harness: RefreshHarness) -> None:
    """An orphaned pair stays in memory while the disk is full, and is stored if the right database returns."""
    connection = await harness.connect()
    pending_writes = harness.lifecycle.pending_writes
    refreshing = await harness.begin_slow(connection)
    old = dataclasses.replace(await harness.now(connection), pair_version=0)
    harness.failing.answers = {"save_refreshed": None, "connection": old}
    harness.rescue.full = True
    harness.amo.sandbox.go_on.set()
    await harness.witness.until("pair.write_pending")
    assert not refreshing.done()
    harness.rescue.full = False
    await pending_writes.flush()
    await harness.witness.until("pair.orphaned")
    assert len(harness.rescue.files) == 1
    for _ in range(3):
        await pending_writes.restore()
    assert harness.witness.names().count("pair.orphaned") == 1
    assert len(pending_writes.names) == 1
    assert (await refreshing).pair_version == 0
    harness.failing.answers.clear()  # the right database has returned
    await pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2
    assert (pending_writes.names, harness.rescue.files) == ([], {})


async def test_restore_pair_of_needs_reauth_connection_reports_recovery(harness: RefreshHarness) -> None:
    """A rescued pair reactivates a `needs_reauth` connection, with an event and a webhook."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    first = harness.make_lifecycle(store=harness.failing_store("save_refreshed"))
    refreshing = harness.begin(connection, by=first.coordinator)
    await harness.witness.until("pair.write_pending")
    first.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing
    other = harness.make_lifecycle(process="process-2", rescue=MemoryRescue())
    other.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    await harness.fail(connection, NeedsReauth, by=other.coordinator)
    await harness.make_lifecycle(process="process-3").pending_writes.restore()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert harness.witness.names()[-2:] == ["pair.write_completed", "connection.recovered"]
    assert [webhook.type for webhook in await harness.store.webhooks(limit=9)] == [
        "connection.needs_reauth",
        "connection.recovered",
    ]


async def test_restore_pair_of_other_grant_with_same_version_is_dropped(harness: RefreshHarness) -> None:
    """After a database restore, a rescued pair with the version of a newer grant does not replace its pair."""
    connection = await harness.connect()
    _rescue(harness, a_refreshed(connection, grant_iat=1, pair_version=2))
    await harness.lifecycle.pending_writes.restore()
    assert harness.witness.names() == ["pair.orphaned"]
    newer: dict[str, Any] = {"sealed_pair": b"new", "connected_at": connection.connected_at + timedelta(days=1)}
    again = await save(harness.store, dataclasses.replace(connection, **newer), iat=2, code="again")
    assert again.pair_version == 2
    await harness.lifecycle.pending_writes.restore()
    assert await harness.now(connection) == again
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})


async def test_restore_refused_pair_with_unreadable_row_keeps_file(harness: RefreshHarness) -> None:
    """The rescue file stays if the store refuses its pair and the row cannot be read."""
    file = _rescue(harness, a_refreshed(a_connection(7)))
    harness.failing.away = {"connection"}
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files.keys() == {file}


async def test_restore_disconnected_connection_deletes_file(harness: RefreshHarness) -> None:
    """A rescue file of a disconnected connection is deleted, whatever its pair's version."""
    connection = await harness.connect()
    _rescue(harness, a_refreshed(connection, pair_version=connection.pair_version + 5))
    assert await harness.store.disconnect(connection, on_request=True)
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files == {}


async def test_save_missing_row_writes_rescue_file(harness: RefreshHarness) -> None:
    """A pair whose row is missing after the request is written to a rescue file."""
    connection = a_connection(7)
    pending_pair = a_refreshed(connection)
    assert await harness.lifecycle.pending_writes.save(pending_pair, connection=connection) is None
    assert harness.rescue.files.keys() == {file_name(pending_pair)}
    assert harness.witness.names() == ["pair.orphaned"]


@pytest.mark.parametrize("of", ["a later version", "another name"])
async def test_restore_unknown_format_or_renamed_file_is_unreadable(harness: RefreshHarness, of: str) -> None:
    """A rescue file of a later version, or a renamed file, is reported as unreadable and does not stop the start."""
    connection = await harness.connect()
    pending_pair = a_refreshed(connection)
    name = file_name(pending_pair) if of == "a later version" else f"{connection.id}-7"
    later = json.dumps({"refreshed": {"connection_id": connection.id, "scopes": "crm"}})
    harness.rescue.files[name] = (
        harness.cipher.seal(later.encode(), context=f"rescue:{name}")
        if of == "a later version"
        else seal_pending(pending_pair, harness.cipher)
    )
    await harness.lifecycle.pending_writes.restore()
    assert harness.lifecycle.pending_writes.names == [name]
    assert harness.witness.names() == ["rescue.unreadable"]
    assert await harness.now(connection) == connection
