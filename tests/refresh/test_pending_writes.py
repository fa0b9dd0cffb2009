"""Pairs that the store does not take: held, handed out, written to their files, offered again, and stored once."""

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
    """A folder from which nothing can be removed, until it can."""

    stuck = True

    def remove(self, name: str) -> None:
        if self.stuck:
            raise PermissionError(13, f"Permission denied: {name}")
        super().remove(name)


def _rescue(harness: RefreshHarness, pending_pair: PendingPair) -> str:
    """Leave a pair in a file, as a process that ended did; return the file's name."""
    name = file_name(pending_pair)
    harness.rescue.files[name] = seal_pending(pending_pair, harness.cipher)
    return name


async def _pending_writes(harness: RefreshHarness) -> tuple[Connection, asyncio.Task[Connection]]:
    """Refresh a connection whose new pair the store does not take."""
    connection = await harness.connect()
    refreshing = await harness.begin_unsaved(connection)
    return connection, refreshing


async def test_an_unsaved_pair_is_held_and_in_its_file(harness: RefreshHarness) -> None:
    """Readiness names it, it is told once with whether it is in its file, and offered every second until stored."""
    connection, refreshing = await _pending_writes(harness)
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
async def test_an_unsaved_pair_is_handed_out_before_the_stored_one(harness: RefreshHarness, *, readable: bool) -> None:
    """Whoever asks by connection or by account gets the new pair, whether or not the store can be read."""
    connection, refreshing = await _pending_writes(harness)
    if not readable:
        harness.failing.away |= {"connection", "connections_of"}
    for selector in (connection.id, f"account:{connection.account_id}"):
        handed_out = await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
        assert handed_out.token.value == harness.amo.fake.ledger.access_tokens[-1]
    if not readable:
        with pytest.raises(StoreUnavailable):
            await harness.lifecycle.access_tokens.token("another customer", min_ttl=0)
    await harness.bring_store_back()
    await refreshing


async def test_the_stored_pair_is_not_presented_while_its_successor_is_unsaved(harness: RefreshHarness) -> None:
    """It has been spent: a refresh waits for the store, also in a process that has found the successor's file."""
    connection, refreshing = await _pending_writes(harness)
    other = harness.make_lifecycle()
    await other.pending_writes.restore()
    for lifecycle in (harness.lifecycle, other):
        assert lifecycle.pending_writes.blocks(connection)
    await harness.fail(connection, StoreUnavailable, by=other.coordinator, trigger=RefreshTrigger.FORCED)
    for lifecycle in (harness.lifecycle, other):
        await harness.bring_store_back(lifecycle)
    await refreshing
    await other.pending_writes.drain()
    assert harness.amo.fake.ledger.doubles() == 0
    assert (await harness.now(connection)).pair_version == 2


async def test_a_pair_whose_commit_was_not_answered_is_stored(harness: RefreshHarness) -> None:
    """The row is read again: our own pair is there, so it succeeded, and nothing is left to store."""
    connection = await harness.connect()
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_refreshed"}
    stored = await harness.refresh(connection, by=lifecycle.coordinator)
    assert stored.pair_version == 2
    assert harness.amo.fake.is_good(harness.pair(stored).refresh_token)
    assert (harness.rescue.files, lifecycle.pending_writes.names) == ({}, [])
    assert set(harness.witness.names()) & {"pair.write_pending", "refresh.superseded"} == set()


async def test_a_pair_of_an_unanswered_commit_has_succeeded_though_it_was_replaced(harness: RefreshHarness) -> None:
    """The store is out of reach after the commit, and another process refreshes meanwhile: the history tells."""
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
    [told] = harness.witness.named("pair.write_completed")
    assert told.fields["superseded"] is False


async def test_a_granted_pair_whose_commit_was_not_answered_is_stored(harness: RefreshHarness) -> None:
    """The same of a new grant."""
    granted = await harness.grant()
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_connected"}
    stored = await lifecycle.pending_writes.save(granted, connection=granted.connection)
    assert stored is not None
    assert stored.sealed_pair == granted.connection.sealed_pair
    assert (harness.rescue.files, lifecycle.pending_writes.names) == ({}, [])


async def test_a_claim_whose_commit_was_not_answered_is_given_back(harness: RefreshHarness) -> None:
    """Nothing is presented for it, and nobody has to wait until its lease ends."""
    connection = await harness.connect()
    lifecycle, harness.failing.lost = harness.lifecycle, {"claim"}
    await harness.fail(connection, StoreUnavailable, by=lifecycle.coordinator)
    assert ((await harness.now(connection)).attempt, harness.presented()) == (None, [])
    assert (await harness.refresh(connection, by=lifecycle.coordinator)).pair_version == 2


async def test_a_terminal_answer_whose_commit_was_not_answered_is_stored(harness: RefreshHarness) -> None:
    """The token is not presented a second time to hear the same again."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    harness.fade(connection)
    presented = len(harness.presented())
    lifecycle, harness.failing.lost = harness.lifecycle, {"save_failure"}
    for _ in range(2):
        await harness.fail(connection, NeedsReauth, by=lifecycle.coordinator)
    assert len(harness.presented()) == presented + 1
    assert "refresh.result_not_stored" not in harness.witness.names()


@pytest.mark.parametrize("call", ["save_refreshed", "connection"], ids=["of the save", "of the look that follows it"])
async def test_a_bug_in_the_store_lets_go_of_no_pair(harness: RefreshHarness, call: str) -> None:
    """It is told with its trace, and the pair is offered again: also where the store did not say why it took none."""
    connection = await harness.connect()
    flight = await harness.begin_slow(connection)
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
    assert (await flight).pair_version == 2


async def test_an_observer_that_fails_costs_no_pair(harness: RefreshHarness) -> None:
    """A pair is in its file before anybody is told of it, so that a restart stores it whatever the log does."""
    connection = await harness.connect()

    def observer(event: Event) -> None:
        if event.name == "pair.write_pending":
            raise RuntimeError("the log is broken")

    lifecycle = harness.make_lifecycle(observer=observer)
    harness.failing.away = {"save_refreshed"}
    await harness.fail(connection, RuntimeError, by=lifecycle.coordinator)
    harness.failing.away = set()
    await harness.make_lifecycle().pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2


async def test_the_end_leaves_a_pair_in_its_file(harness: RefreshHarness) -> None:
    """A process that is to end waits no longer for the store; the next one stores what it finds."""
    connection, refreshing = await _pending_writes(harness)
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


async def test_the_end_waits_for_what_was_left_in_a_file(harness: RefreshHarness) -> None:
    """The store stays open for as long as a pair of the process before is on its way into it."""
    connection, refreshing = await _pending_writes(harness)
    harness.lifecycle.core.stop.set()
    with pytest.raises(ShuttingDown):
        await refreshing
    restarted = harness.make_lifecycle()
    await restarted.pending_writes.restore()
    draining = asyncio.create_task(restarted.coordinator.drain())
    await harness.traffic.until_quiet()
    assert not draining.done()
    await harness.bring_store_back(restarted)
    await draining
    assert (await harness.now(connection)).pair_version == 2


async def test_the_end_waits_for_a_pair_that_is_nowhere_else(harness: RefreshHarness) -> None:
    """Where its file cannot be written either, the process keeps it, tells so once, and goes on trying."""
    harness.rescue.full = True
    connection, refreshing = await _pending_writes(harness)
    harness.lifecycle.core.stop.set()
    await harness.clock.tick(1, times=3)
    await harness.clock.until_sleeping(1)
    assert not refreshing.done()
    harness.failing.away = set()
    harness.clock.advance(1)
    await harness.lifecycle.drain()
    assert (await refreshing).pair_version == 2
    assert (await harness.now(connection)).pair_version == 2
    [told] = harness.witness.named("pair.write_pending")
    assert told.fields["rescued"] is False


async def test_the_end_is_free_once_the_file_can_be_written(harness: RefreshHarness) -> None:
    """Each try tries the file, too: as soon as there is room, nobody waits any more."""
    harness.rescue.full = True
    connection, refreshing = await _pending_writes(harness)
    harness.lifecycle.core.stop.set()
    await harness.clock.until_sleeping(1)
    harness.rescue.full = False
    harness.clock.advance(1)
    with pytest.raises(ShuttingDown):
        await refreshing
    assert list(harness.rescue.files) == [f"{connection.id}-1"]


async def test_the_end_gives_a_silent_store_two_seconds(harness: RefreshHarness) -> None:
    """A pair that it has not taken by then goes to its rescue file; before the end a slow store is waited for."""
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


async def test_a_pair_is_at_risk_from_the_request_to_the_store(harness: RefreshHarness) -> None:
    """Also while AMO has yet to answer, and no longer than that."""
    connection = await harness.connect()
    harness.amo.sandbox.faults.add(Fault.SLOW)
    refreshing = harness.begin(connection)
    await harness.amo.sandbox.until_asked(harness.amo.sandbox.requests + 1)
    assert (harness.lifecycle.pending_writes.at_risk, harness.lifecycle.pending_writes.unsafe) == (True, [])
    harness.amo.sandbox.go_on.set()
    await refreshing
    assert not harness.lifecycle.pending_writes.at_risk


async def test_settling_offers_every_pair_at_once(harness: RefreshHarness) -> None:
    """Before anything new is spent each pair has its try, without a wait; one that fails is held on."""
    _, refreshing = await _pending_writes(harness)
    offered = harness.traffic.calls["save_refreshed"]
    await harness.lifecycle.pending_writes.flush()
    assert harness.traffic.calls["save_refreshed"] == offered + 1
    assert not refreshing.done()
    await harness.bring_store_back()
    assert (await refreshing).pair_version == 2


async def test_a_file_that_stayed_does_not_bury_what_came_of_its_pair(harness: RefreshHarness) -> None:
    """A granted pair's file that could not be removed is offered again after a restart, and is superseded."""
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


async def test_two_processes_that_hold_one_granted_pair_store_it_once(harness: RefreshHarness) -> None:
    """The second one's late save changes nothing of what the first has made of the pair meanwhile."""
    pending_pair = await harness.grant()
    store, other_store = harness.away("save_connected"), harness.away("save_connected")
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


async def test_a_pair_that_a_newer_one_replaced_is_let_go(harness: RefreshHarness) -> None:
    """The person connects again while the refreshed pair is unsaved: the grant's pair stays."""
    connection, refreshing = await _pending_writes(harness)
    granted = await harness.connect()
    await harness.bring_store_back()
    assert await refreshing == granted
    assert await harness.now(connection) == granted
    assert harness.rescue.files == {}


async def test_an_unreadable_file_is_told_and_keeps_its_pair_from_being_spent(harness: RefreshHarness) -> None:
    """Readiness names it, the file stays, and only the pair that it replaces is left alone: it has been spent."""
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


async def test_an_unreadable_file_of_a_grant_keeps_nothing_from_being_refreshed(harness: RefreshHarness) -> None:
    """A grant spends no stored pair: whoever connects again is kept fresh."""
    connection = await harness.connect()
    name = f"{connection.id}-gdeadbeef"
    harness.rescue.files[name] = b"sealed with a key that is gone"
    await harness.lifecycle.pending_writes.restore()
    granted = await harness.connect()
    harness.clock.advance(43_200)
    assert (await harness.refresh(granted)).pair_version == granted.pair_version + 1
    assert harness.lifecycle.pending_writes.names == [name]


async def test_a_folder_that_cannot_be_read_is_told_at_the_start(harness: RefreshHarness) -> None:
    """The configuration is named as the fault, before anything is spent."""

    def read() -> dict[str, bytes]:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ConfigurationError, match=r"storage\.rescue: cannot be read"):
        await harness.make_lifecycle(rescue=Override(harness.rescue, read=read)).pending_writes.restore()


async def test_a_file_that_cannot_be_removed_is_logged_once_and_removed_later(harness: RefreshHarness) -> None:
    """The pair is in the store, and the caller gets it; each look into the folder tries again, without a line."""
    connection, rescue = await harness.connect(), StuckRescue()
    lifecycle = harness.make_lifecycle(rescue=rescue)
    refreshing = await harness.begin_unsaved(connection, by=lifecycle.coordinator)
    await harness.bring_store_back(lifecycle)
    assert (await refreshing).status is Status.ACTIVE
    offered = harness.failing.asked["save_refreshed"]
    for _ in range(3):
        await lifecycle.pending_writes.restore()
    told = ["pair.write_pending", "refresh.succeeded", "pair.write_completed", "rescue.not_removed"]
    assert harness.witness.names() == told
    rescue.stuck = False
    await lifecycle.pending_writes.restore()
    assert (rescue.read(), harness.failing.asked["save_refreshed"], lifecycle.pending_writes.names) == ({}, offered, [])


async def test_the_loop_offers_unsaved_pairs_before_it_spends_anything(harness: RefreshHarness) -> None:
    """The store is back: what waits for it is stored by the next round itself, however long its own next try is off."""
    connection = await harness.connect()
    refreshing = await harness.begin_unsaved(connection)
    harness.failing.away = set()
    async with harness.running(harness.lifecycle):
        assert (await refreshing).pair_version == 2


async def test_the_loop_finds_what_another_process_has_left(harness: RefreshHarness) -> None:
    """It was told to stop while the store was away: its file is stored within a minute, without any restart."""
    connection = await harness.connect()
    other = harness.make_lifecycle(store=harness.away("save_refreshed"), process="process-2")
    async with harness.running(harness.lifecycle):
        flight = harness.begin(connection, by=other.coordinator)
        await harness.witness.until("pair.write_pending")
        other.core.stop.set()
        with pytest.raises(ShuttingDown):
            await flight
        assert len(harness.rescue.files) == 1
        await harness.pass_time(60, step=5)
        assert (await harness.now(connection)).pair_version == 2
    assert harness.rescue.files == {}


async def test_many_that_look_into_the_folder_at_once_store_each_pair_once(harness: RefreshHarness) -> None:
    """The loop, and refreshes after a dead process, all look: no file is offered twice, and nobody waits for ever."""
    connections = [await save(harness.store, a_connection(number)) for number in range(1, 6)]
    for connection in connections:
        _rescue(harness, a_refreshed(connection))
    await asyncio.wait_for(asyncio.gather(*(harness.lifecycle.pending_writes.restore() for _ in range(3))), WAIT_LIMIT)
    assert [event.fields for event in harness.witness.events] == [{"superseded": False}] * len(connections)
    assert [(await harness.now(connection)).pair_version for connection in connections] == [2] * len(connections)
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})


@pytest.mark.parametrize("row", ["none", "older"])
async def test_a_pair_that_another_database_does_not_take_stays_in_its_file(harness: RefreshHarness, row: str) -> None:
    """An empty database, or an old one that was put back: the file may be all that is left, so it is told and kept."""
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


async def test_a_file_that_cannot_be_read_is_told_and_stops_nothing(harness: RefreshHarness) -> None:
    """A wrong owner, a bad sector: it counts as unreadable, and the others are stored."""
    connection = await harness.connect()
    _rescue(harness, a_refreshed(connection))

    def read() -> dict[str, bytes | None]:
        return {**harness.rescue.files, "x-1": None}

    lifecycle = harness.make_lifecycle(rescue=Override(harness.rescue, read=read))
    await lifecycle.pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2
    assert lifecycle.pending_writes.names == ["x-1"]
    assert sorted(harness.witness.names()) == ["pair.write_completed", "rescue.unreadable"]


async def test_a_superseded_pair_is_no_orphan_because_the_store_cannot_be_read(harness: RefreshHarness) -> None:
    """Whether a newer pair is stored cannot be told at the moment: it is asked again, and then let go."""
    connection = await harness.connect()
    flight = await harness.begin_slow(connection)
    again = await harness.connect()
    harness.failing.away = {"connection"}
    harness.amo.sandbox.go_on.set()
    await harness.witness.until("pair.write_pending")
    await harness.bring_store_back()
    assert await flight == again
    assert (harness.lifecycle.pending_writes.names, harness.rescue.files) == ([], {})


async def test_an_orphan_is_held_until_it_has_a_file(harness: RefreshHarness) -> None:
    """An old database was put back, and the disk is full: its pair is not let go before it has a file."""
    connection = await harness.connect()
    pending_writes = harness.lifecycle.pending_writes
    flight = await harness.begin_slow(connection)
    old = dataclasses.replace(await harness.now(connection), pair_version=0)
    harness.failing.answers = {"save_refreshed": None, "connection": old}
    harness.rescue.full = True
    harness.amo.sandbox.go_on.set()
    await harness.witness.until("pair.write_pending")
    assert not flight.done()
    harness.rescue.full = False
    await pending_writes.flush()
    await harness.witness.until("pair.orphaned")
    assert len(harness.rescue.files) == 1
    for _ in range(3):
        await pending_writes.restore()
    assert harness.witness.names().count("pair.orphaned") == 1
    assert len(pending_writes.names) == 1
    assert (await flight).pair_version == 0
    harness.failing.answers.clear()  # and now the right one again
    await pending_writes.restore()
    assert (await harness.now(connection)).pair_version == 2
    assert (pending_writes.names, harness.rescue.files) == ([], {})


async def test_a_rescued_pair_that_mends_a_connection_is_told(harness: RefreshHarness) -> None:
    """Given up by another process while its pair lay in a file: whoever stores it tells that it is well again."""
    connection = await harness.connect(api_domain=API_DOMAIN)
    first = harness.make_lifecycle(store=harness.away("save_refreshed"))
    flight = harness.begin(connection, by=first.coordinator)
    await harness.witness.until("pair.write_pending")
    first.core.stop.set()
    with pytest.raises(ShuttingDown):
        await flight
    may_be_copy = harness.make_lifecycle(process="process-2", rescue=MemoryRescue())
    may_be_copy.leases.remaining(await harness.now(connection))
    harness.clock.advance(60)
    await harness.fail(connection, NeedsReauth, by=may_be_copy.coordinator)
    await harness.make_lifecycle(process="process-3").pending_writes.restore()
    assert (await harness.now(connection)).status is Status.ACTIVE
    assert harness.witness.names()[-2:] == ["pair.write_completed", "connection.recovered"]
    assert [webhook.type for webhook in await harness.store.webhooks(limit=9)] == [
        "connection.needs_reauth",
        "connection.recovered",
    ]


async def test_an_old_databases_pair_does_not_replace_a_new_grants(harness: RefreshHarness) -> None:
    """A backup was put back, and the person connected again: the versions are alike, the grants are not."""
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


async def test_a_store_that_goes_away_before_it_tells_why_costs_no_pair(harness: RefreshHarness) -> None:
    """Not taken, and nobody can be asked whether something newer is there: the file stays."""
    file = _rescue(harness, a_refreshed(a_connection(7)))
    harness.failing.away = {"connection"}
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files.keys() == {file}


async def test_what_a_person_has_erased_is_erased_from_the_rescue_folder_too(harness: RefreshHarness) -> None:
    """Disconnected in an old database that was put back, whatever its pair's version: no file outlives that."""
    connection = await harness.connect()
    _rescue(harness, a_refreshed(connection, pair_version=connection.pair_version + 5))
    assert await harness.store.disconnect(connection, on_request=True)
    await harness.lifecycle.pending_writes.restore()
    assert harness.rescue.files == {}


async def test_a_pair_whose_row_has_gone_while_it_was_paid_for_is_put_in_a_file(harness: RefreshHarness) -> None:
    """Another database was put in the place of ours: the new pair is all that is left of its connection."""
    connection = a_connection(7)
    pending_pair = a_refreshed(connection)
    assert await harness.lifecycle.pending_writes.save(pending_pair, connection=connection) is None
    assert harness.rescue.files.keys() == {file_name(pending_pair)}
    assert harness.witness.names() == ["pair.orphaned"]


@pytest.mark.parametrize("of", ["a later version", "another name"])
async def test_a_file_that_this_version_does_not_understand_is_told_and_stops_nothing(
    harness: RefreshHarness, of: str
) -> None:
    """After a step back to the version before, or renamed by hand, it is unreadable, and the service starts."""
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
