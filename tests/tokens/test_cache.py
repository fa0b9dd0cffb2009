"""The connection cache: cached hand-outs, and changes by this process and by others."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amo_callback.crypto import Cipher
from amo_callback.errors import NotFound, StoreUnavailable
from amo_callback.model import Connection, TokenPair
from amo_callback.store import Store, open_store
from amo_callback.tokens.cache import ConnectionCache, OpenConnection, open_connection
from tests.builders import a_connection, a_refreshed, bind, now, present, save
from tests.fakes import FakeClock
from tests.refresh.harness import RefreshHarness

READS = ("connection", "connections_of", "connections_named")


class CountingCipher(Cipher):
    """A cipher that counts the decrypted pairs."""

    opened = 0

    def decrypt_pair(self, connection: Connection) -> TokenPair | None:
        self.opened += 1
        return super().decrypt_pair(connection)


@pytest.fixture
async def other_store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    """Return another process's store on the same file."""
    async with open_store("sqlite:///amo-callback.db", folder=tmp_path, clock=clock) as opened:
        yield opened


async def _fill_cache(harness: RefreshHarness, *selectors: str) -> None:
    for selector in selectors:
        for _ in range(2):
            await harness.hand_out(selector)


async def _connect_owned(harness: RefreshHarness) -> tuple[Connection, list[str]]:
    """Return a connection with an owner, and its selectors, all of them cached."""
    connection = await harness.connect()
    await bind(harness.store, connection.id, "42")
    selectors = [connection.id, f"account:{connection.account_id}", "owner:42"]
    await _fill_cache(harness, *selectors)
    return connection, selectors


def _count_reads(harness: RefreshHarness) -> int:
    return sum(harness.traffic.calls[name] for name in READS)


async def test_cached_hand_out_neither_reads_nor_decrypts(harness: RefreshHarness, encryption_key: str) -> None:
    """A cached hand-out by any selector neither reads the store nor decrypts a pair."""
    cipher = CountingCipher([encryption_key])
    harness.lifecycle = harness.make_lifecycle(cipher=cipher)
    connection, selectors = await _connect_owned(harness)
    reads, opened = _count_reads(harness), cipher.opened
    for _ in range(10):
        harness.clock.advance(0.5)
        for selector in selectors:
            assert (await harness.hand_out(selector)).token.value == harness.pair(connection).access_token
    assert (_count_reads(harness), cipher.opened) == (reads, opened)


@pytest.mark.parametrize(("away", "error"), [(False, NotFound), (True, StoreUnavailable)], ids=["reachable", "outage"])
async def test_cache_disconnect_by_this_process_applies_at_once(
    harness: RefreshHarness, error: type[Exception], *, away: bool
) -> None:
    """A connection that this process has disconnected is not handed out from the cache."""
    connection, selectors = await _connect_owned(harness)
    assert await harness.store.disconnect(connection, on_request=True)
    harness.failing.away = {*READS, "data_version"} if away else set()
    for selector in selectors:
        with pytest.raises(error):
            await harness.hand_out(selector)


async def test_cache_owner_change_by_this_process_applies_at_once(harness: RefreshHarness) -> None:
    """A bound owner gets tokens at once, and an unbound owner gets none."""
    connection, _ = await _connect_owned(harness)
    await bind(harness.store, connection.id, "43")
    await _fill_cache(harness, "owner:43")
    harness.clock.advance(0.1)
    await harness.store.unbind("42")
    with pytest.raises(NotFound):
        await harness.hand_out("owner:42")
    assert (await harness.hand_out("owner:43")).connection.id == connection.id


@pytest.mark.parametrize("everything", [True, False])
async def test_cache_freeze_by_this_process_applies_at_once(harness: RefreshHarness, *, everything: bool) -> None:
    """A freeze by this process is visible in the next hand-out."""
    connection, selectors = await _connect_owned(harness)
    if everything:
        await harness.store.freeze_all(why="a test")
    else:
        await harness.store.freeze(connection.id, at=harness.clock.now())
    for selector in selectors:
        assert (await harness.hand_out(selector)).connection.frozen


async def test_cache_refresh_or_grant_by_this_process_applies_at_once(harness: RefreshHarness) -> None:
    """A pair of a refresh or a grant is handed out at once, also that of another user of the account."""
    connection, selectors = await _connect_owned(harness)
    for granted in (False, True):
        brought = await (harness.connect() if granted else harness.refresh(connection))
        for selector in selectors:
            assert (await harness.hand_out(selector)).token.value == harness.pair(brought).access_token
    harness.amo.account.user_id += 1
    harness.clock.advance(10)
    other = await harness.connect()
    found = (await harness.hand_out(f"account:{connection.account_id}")).connection.id
    assert (found == other.id, other.id != connection.id) == (True, True)


async def test_cache_refresh_by_another_process_applies_within_a_second(
    harness: RefreshHarness, other_store: Store
) -> None:
    """A pair that another process stored is handed out within a second."""
    connection, selectors = await _connect_owned(harness)
    sealed = harness.cipher.seal_pair(harness.pair(connection), connection_id=connection.id)
    next_pair = a_refreshed(connection, at=harness.clock.now(), sealed_pair=sealed)
    refreshed = present(await other_store.save_refreshed(next_pair))
    harness.clock.advance(1)
    for selector in selectors:
        assert (await harness.hand_out(selector)).connection.pair_version == refreshed.pair_version


async def test_cache_disconnect_by_another_process_applies_within_a_second(
    harness: RefreshHarness, other_store: Store
) -> None:
    """A disconnect by another process applies within a second, even if this process has just checked for changes."""
    connection, selectors = await _connect_owned(harness)
    harness.clock.advance(0.9)
    await _fill_cache(harness, *selectors)
    assert await other_store.disconnect(await now(other_store, connection), on_request=True)
    harness.clock.advance(0.5)
    await harness.lifecycle.access_tokens.token(selectors[0], min_ttl=0)
    await harness.traffic.until_quiet()
    harness.clock.advance(0.5)
    for selector in selectors:
        with pytest.raises(NotFound):
            await harness.hand_out(selector)


@pytest.mark.parametrize("seconds", [0.5, 2])
async def test_cache_store_outage_hands_out_stale_token(harness: RefreshHarness, seconds: float) -> None:
    """A cached token is handed out as stale until its expiry while the store is unreachable."""
    connection, selectors = await _connect_owned(harness)
    harness.failing.away = {*READS, "data_version"}
    harness.clock.advance(seconds)
    with pytest.raises(StoreUnavailable):
        await harness.hand_out("account:1")
    for selector in selectors:
        handed_out = await harness.hand_out(selector)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, True)
        assert handed_out.reason == StoreUnavailable.code
    harness.failing.away = set()
    assert not (await harness.hand_out(connection.id)).stale
    harness.failing.away = {*READS, "data_version"}
    harness.clock.advance(86_400)
    with pytest.raises(StoreUnavailable):
        await harness.hand_out(connection.id)


async def test_cache_changed_entry_in_store_outage_is_introspected(harness: RefreshHarness) -> None:
    """A cached token of a changed row is handed out as stale during a store outage if AMO accepts it."""
    connection, selectors = await _connect_owned(harness)
    await harness.store.schedule_recheck(await harness.now(connection), at=None)
    harness.failing.away = {*READS, "data_version"}
    asked = harness.amo.sandbox.introspections
    for selector in selectors:
        handed_out = await harness.hand_out(selector)
        assert (handed_out.token.value, handed_out.stale) == (harness.pair(connection).access_token, True)
    assert harness.amo.sandbox.introspections == asked + 1
    harness.clock.advance(5)
    harness.refresh_elsewhere(connection)
    for selector in selectors:
        with pytest.raises(StoreUnavailable):
            await harness.hand_out(selector)


async def test_cache_read_overtaken_by_write_is_not_cached(harness: RefreshHarness) -> None:
    """The result of a read that a write has overtaken is not cached."""
    connection = await harness.connect()
    go_on = harness.failing.after["connection"] = asyncio.Event()
    asking = asyncio.create_task(harness.lifecycle.access_tokens.token(connection.id, min_ttl=0))
    await harness.failing.until_waiting("connection")
    next_pair = a_refreshed(connection, at=harness.clock.now(), sealed_pair=connection.sealed_pair)
    refreshed = present(await harness.store.save_refreshed(next_pair))
    go_on.set()
    await asking
    assert (await harness.hand_out(connection.id)).connection.pair_version == refreshed.pair_version


async def test_cache_put_with_mark_before_write_is_ignored(harness: RefreshHarness) -> None:
    """A row that was read before a write is not cached after it, under any selector."""
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
    cache.put(stored.id, None, mark)
    assert cache.get_stale(stored.id) == stale
    cache.put(stored.id, None, cache.mark())
    assert cache.get_stale(stored.id) is None


async def test_cache_account_entry_ends_with_change_of_any_connection(harness: RefreshHarness) -> None:
    """A change of any connection of an account ends the account's entry, because another one may now come first."""
    first, second = await harness.connect_users(2)
    selector = f"account:{first.account_id}"
    assert (await harness.hand_out(selector)).connection.id == second.id
    harness.clock.advance(0.5)
    await harness.refresh(first)
    stale = present(harness.lifecycle.cache.get_stale(selector))
    assert (stale.found.connection.id, stale.changed) == (second.id, True)
    assert harness.lifecycle.cache.get(selector) is None
    assert (await harness.hand_out(selector)).connection.id == second.id


async def test_cache_above_limit_evicts_oldest_entries(harness: RefreshHarness) -> None:
    """The least recently used entries are evicted above the limit."""
    cache = ConnectionCache(store=harness.store, clock=harness.clock, limit=3)
    for number in range(5):
        stored = await save(harness.store, a_connection(number))
        cache.put(stored.id, _open(harness, stored), cache.mark())
    assert len(cache) == 3
    known = [cache.get_stale(a_connection(number).id) is not None for number in range(5)]
    assert known == [False, False, True, True, True]


async def test_cache_contains_access_token_only_and_hides_it_in_repr(harness: RefreshHarness) -> None:
    """The cache contains neither the sealed pair nor the refresh token, and no `repr` shows the access token."""
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
