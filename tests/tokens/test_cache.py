"""The hand-out from memory: nothing is read twice, and nothing that has changed is handed out as live."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amo_callback.crypto import Cipher
from amo_callback.errors import NotFound, StoreUnavailable
from amo_callback.model import Connection, TokenPair
from amo_callback.store import Store, open_store
from amo_callback.tokens.access_tokens import HandOut
from amo_callback.tokens.cache import ConnectionCache, OpenConnection, open_connection
from tests.builders import a_connection, a_refreshed, now, present, save
from tests.fakes import FakeClock
from tests.refresh.harness import RefreshHarness

READS = ("connection", "connections_of", "connections_owned")


class CountingCipher(Cipher):
    """A cipher that counts the pairs that it opens."""

    opened = 0

    def decrypt_pair(self, connection: Connection) -> TokenPair | None:
        self.opened += 1
        return super().decrypt_pair(connection)


@pytest.fixture
async def may_be_copy(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    """Return another process's store on the same file."""
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=clock) as opened:
        yield opened


async def _token(harness: RefreshHarness, selector: str) -> HandOut:
    handed_out = await harness.lifecycle.access_tokens.token(selector, min_ttl=0)
    await harness.traffic.until_quiet()  # whether another process has changed anything is looked at in the background
    return handed_out


async def _warm(harness: RefreshHarness, *selectors: str) -> None:
    for selector in selectors:
        for _ in range(2):
            await _token(harness, selector)


async def _owned(harness: RefreshHarness) -> tuple[Connection, list[str]]:
    """Return a connection, and all that names it, remembered."""
    connection = await harness.connect()
    await harness.store.bind(connection.id, owner="42", grant_no=1, first_only=False)
    selectors = [connection.id, f"account:{connection.account_id}", "owner:42"]
    await _warm(harness, *selectors)
    return connection, selectors


def _reads(harness: RefreshHarness) -> int:
    return sum(harness.traffic.calls[name] for name in READS)


async def test_a_warm_hand_out_reads_and_opens_nothing(harness: RefreshHarness, encryption_key: str) -> None:
    """Whatever names the connection, and for as long as nobody changes anything."""
    cipher = CountingCipher([encryption_key])
    harness.lifecycle = harness.make_lifecycle(cipher=cipher)
    connection, selectors = await _owned(harness)
    reads, opened = _reads(harness), cipher.opened
    for _ in range(10):
        harness.clock.advance(0.5)
        for selector in selectors:
            assert (await _token(harness, selector)).token.value == harness.pair(connection).access_token
    assert (_reads(harness), cipher.opened) == (reads, opened)


@pytest.mark.parametrize(("away", "error"), [(False, NotFound), (True, StoreUnavailable)], ids=["there", "away"])
async def test_this_process_sees_its_own_disconnect_at_once(
    harness: RefreshHarness, error: type[Exception], *, away: bool
) -> None:
    """Its tokens were erased on request: that they are remembered, and live, is no reason to hand them out."""
    connection, selectors = await _owned(harness)
    assert await harness.store.disconnect(connection, on_request=True)
    harness.failing.away = {*READS, "data_version"} if away else set()
    for selector in selectors:
        with pytest.raises(error):
            await _token(harness, selector)


async def test_this_process_sees_at_once_whose_a_connection_is(harness: RefreshHarness) -> None:
    """Who is bound gets tokens, and who has left gets none, while the other owner does."""
    connection, _ = await _owned(harness)
    await harness.store.bind(connection.id, owner="43", grant_no=1, first_only=False)
    await _warm(harness, "owner:43")
    harness.clock.advance(0.1)
    await harness.store.unbind("42")
    with pytest.raises(NotFound):
        await _token(harness, "owner:42")
    assert (await _token(harness, "owner:43")).connection.id == connection.id


@pytest.mark.parametrize("everything", [True, False])
async def test_this_process_sees_a_freeze_at_once(harness: RefreshHarness, *, everything: bool) -> None:
    """A frozen connection's token may have been refreshed elsewhere: it is doubted."""
    connection, selectors = await _owned(harness)
    if everything:
        await harness.store.freeze_all(why="a test")
    else:
        await harness.store.freeze(connection.id, at=harness.clock.now())
    for selector in selectors:
        assert (await _token(harness, selector)).connection.frozen


async def test_this_process_sees_its_own_refresh_and_a_new_grant_at_once(harness: RefreshHarness) -> None:
    """Also another user's connection of the same account, which is the fresher one."""
    connection, selectors = await _owned(harness)
    for granted in (False, True):
        brought = await (harness.connect() if granted else harness.refresh(connection))
        for selector in selectors:
            assert (await _token(harness, selector)).token.value == harness.pair(brought).access_token
    harness.amo.account.user_id += 1
    harness.clock.advance(10)
    other = await harness.connect()
    found = (await _token(harness, f"account:{connection.account_id}")).connection.id
    assert (found == other.id, other.id != connection.id) == (True, True)


async def test_another_processs_change_is_seen_within_a_second(harness: RefreshHarness, may_be_copy: Store) -> None:
    """A pair that is superseded there is handed out here for less than a second."""
    connection, selectors = await _owned(harness)
    sealed = harness.cipher.seal_pair(harness.pair(connection), connection_id=connection.id)
    next_pair = a_refreshed(connection, at=harness.clock.now(), sealed_pair=sealed)
    refreshed = present(await may_be_copy.save_refreshed(next_pair))
    harness.clock.advance(1)
    for selector in selectors:
        assert (await _token(harness, selector)).connection.pair_version == refreshed.pair_version


async def test_another_processs_disconnect_is_seen_within_a_second(harness: RefreshHarness, may_be_copy: Store) -> None:
    """However busy this process is with looking: also where it has looked just before."""
    connection, selectors = await _owned(harness)
    harness.clock.advance(0.9)
    await _warm(harness, *selectors)
    assert await may_be_copy.disconnect(await now(may_be_copy, connection), on_request=True)
    harness.clock.advance(0.5)
    await harness.lifecycle.access_tokens.token(selectors[0], min_ttl=0)
    await harness.traffic.until_quiet()
    harness.clock.advance(0.5)
    for selector in selectors:
        with pytest.raises(NotFound):
            await _token(harness, selector)


@pytest.mark.parametrize("seconds", [0.5, 2])
async def test_what_is_remembered_is_handed_out_while_the_store_is_away(
    harness: RefreshHarness, seconds: float
) -> None:
    """As stale, also within the second for which it was certain, and only while it lives: it may be replaced."""
    connection, selectors = await _owned(harness)
    harness.failing.away = {*READS, "data_version"}
    harness.clock.advance(seconds)
    with pytest.raises(StoreUnavailable):
        await _token(harness, "account:1")
    for selector in selectors:
        handed_out = await _token(harness, selector)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, True)
        assert handed_out.reason == StoreUnavailable.code
    harness.failing.away = set()
    assert not (await _token(harness, connection.id)).stale
    harness.failing.away = {*READS, "data_version"}
    harness.clock.advance(86_400)
    with pytest.raises(StoreUnavailable):
        await _token(harness, connection.id)


async def test_what_was_changed_as_the_store_went_away_is_handed_out_if_amo_knows_it(harness: RefreshHarness) -> None:
    """Another pair may have taken its place, and nobody can read which: AMO is asked whether this one lives."""
    connection, selectors = await _owned(harness)
    await harness.store.schedule_recheck(await harness.now(connection), at=None)
    harness.failing.away = {*READS, "data_version"}
    asked = harness.amo.sandbox.introspections
    for selector in selectors:
        handed_out = await _token(harness, selector)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, True)
    assert harness.amo.sandbox.introspections == asked + 1
    harness.clock.advance(5)
    harness.fade(connection)
    for selector in selectors:
        with pytest.raises(StoreUnavailable):
            await _token(harness, selector)


async def test_a_read_that_a_write_overtook_is_not_remembered(harness: RefreshHarness) -> None:
    """It may be of before the write; whoever asks next reads again."""
    connection = await harness.connect()
    go_on = harness.failing.after["connection"] = asyncio.Event()
    asking = asyncio.create_task(harness.lifecycle.access_tokens.token(connection.id, min_ttl=0))
    await harness.failing.until_waiting("connection")
    next_pair = a_refreshed(connection, at=harness.clock.now(), sealed_pair=connection.sealed_pair)
    refreshed = present(await harness.store.save_refreshed(next_pair))
    go_on.set()
    await asking
    assert (await _token(harness, connection.id)).connection.pair_version == refreshed.pair_version


async def test_a_read_of_before_a_write_is_not_remembered_after_it(harness: RefreshHarness) -> None:
    """What was found in the meantime may be of before: it is read again, by whatever name it was asked for."""
    cache = ConnectionCache(store=harness.store, clock=harness.clock)
    stored = await harness.connect()
    mark = cache.mark()
    before = _open(harness, await harness.now(stored))
    await harness.store.save_refreshed(a_refreshed(stored))
    cache.put(stored.id, before, mark)
    cache.put("account:1", before, mark)
    assert (len(cache), cache.get_stale(stored.id), cache.get_stale("account:1")) == (0, None, None)
    cache.put(stored.id, _open(harness, await harness.now(stored)), cache.mark())
    stale = present(cache.get_stale(stored.id))
    assert (stale.found.connection.pair_version, stale.changed) == (stored.pair_version + 1, False)


async def test_a_change_of_any_connection_of_an_account_ends_its_entry(harness: RefreshHarness) -> None:
    """Another of its connections may come first by it."""
    first, second = await harness.connect_users(2)
    selector = f"account:{first.account_id}"
    assert (await _token(harness, selector)).connection.id == second.id
    harness.clock.advance(0.5)
    await harness.refresh(first)
    stale = present(harness.lifecycle.cache.get_stale(selector))
    assert (stale.found.connection.id, stale.changed) == (second.id, True)
    assert harness.lifecycle.cache.get(selector) is None
    assert (await _token(harness, selector)).connection.id == first.id


async def test_the_cache_is_bounded(harness: RefreshHarness) -> None:
    """What was asked for longest ago is forgotten first."""
    cache = ConnectionCache(store=harness.store, clock=harness.clock, limit=3)
    for number in range(5):
        stored = await save(harness.store, a_connection(number))
        cache.put(stored.id, _open(harness, stored), cache.mark())
    assert len(cache) == 3
    known = [cache.get_stale(a_connection(number).id) is not None for number in range(5)]
    assert known == [False, False, True, True, True]


async def test_the_cache_holds_neither_the_sealed_pair_nor_the_refresh_token(harness: RefreshHarness) -> None:
    """What it holds is the access token, which no repr shows."""
    cache = ConnectionCache(store=harness.store, clock=harness.clock)
    stored = await harness.connect()
    cache.put(stored.id, _open(harness, stored), cache.mark())
    stale = present(cache.get_stale(stored.id))
    held, token = stale.found, present(stale.found.token)
    assert (token.value, held.connection.sealed_pair) == (harness.pair(stored).access_token, None)
    assert harness.pair(stored).refresh_token not in repr(dataclasses.asdict(held))
    assert token.value not in repr((cache, stale))


def _open(harness: RefreshHarness, connection: Connection) -> OpenConnection:
    return open_connection(connection, harness.lifecycle.core)
