"""PostgreSQL's own ways: its clock, its locks, what instances hear of each other, and how it can be away."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from amo_callback.clock import DatabaseClock, SystemClock
from amo_callback.errors import ConfigurationError, StoreUnavailable
from amo_callback.events import connection_event
from amo_callback.model import ChangeNotice, Freeze, ImportedConnection
from amo_callback.rate_limit import WaiterKind
from amo_callback.refresh.leases import Leases
from amo_callback.store import open_store
from amo_callback.store.engine import Engine, load_statements
from amo_callback.store.meta import freeze_value
from amo_callback.store.migrate import load_migrations, migrate_postgres
from amo_callback.store.postgres_connection import Listener, connect, open_pool
from tests.builders import DAY, a_claim, a_connection, a_refreshed, now, present, save
from tests.fakes import START, FakeClock
from tests.postgres import connected, serving_postgres, with_option
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from amo_callback.store import Store
    from tests.postgres import Databases, Server

OVER = timedelta(0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
SCHEMA = """
SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
WHERE table_schema = 'public'
UNION ALL
SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2
"""


def opened(url: str, process: str = "one") -> AbstractAsyncContextManager[Store]:
    return open_store(url, folder=Path(), clock=FakeClock(), process=process)


# --- schema --------------------------------------------------------------------------------------


async def test_the_engine_takes_every_statement(url: str) -> None:
    """Also those that are run on bad days only."""
    async with opened(url), connected(url) as connection:
        for statement in load_statements(Engine.POSTGRES).values():
            await connection.prepare(statement.text)


async def test_a_fresh_schema_equals_a_migrated_one(postgres: Databases) -> None:
    """Whichever version a database was made with, it ends the same."""
    migrations = load_migrations(Engine.POSTGRES)
    found = []
    async with postgres.fresh() as one, postgres.fresh() as other:
        for url, steps in ((one, [len(migrations)]), (other, range(1, len(migrations) + 1))):
            async with asyncpg.create_pool(url, min_size=1) as pool, pool.acquire() as connection:
                for step in steps:
                    await migrate_postgres(connection, migrations[:step])
                found.append([tuple(row) for row in await connection.fetch(SCHEMA)])
    assert found[0] == found[1]
    assert {name for name, *_ in found[0]} >= {"connections", "events", "grants", "meta", "webhooks", "slots", "turns"}


async def test_instances_that_begin_at_once_make_one_schema(url: str) -> None:
    """Each finds it made, by itself or by another."""

    async def begin(number: int) -> int:
        async with opened(url, f"{number}") as store:
            return await store.count()

    assert await asyncio.gather(*map(begin, range(8))) == [0] * 8


async def test_a_migration_takes_its_time(url: str) -> None:
    """An index of a large table, or another instance that makes one, is waited for longer than other statements are."""
    pool = asyncpg.create_pool(url, min_size=0, command_timeout=3.0, server_settings={"statement_timeout": "3s"})
    async with pool, pool.acquire() as connection:
        await migrate_postgres(connection, [["SELECT pg_sleep(3.2)"]])
        assert await connection.fetchval("SELECT version FROM schema_version") == 1


SESSION = ("synchronous_commit", "default_transaction_isolation", "statement_timeout", "lock_timeout")


async def _sessions(url: str) -> list[tuple[str, ...]]:
    """Return the settings of a connection of the pool, and of one as the listener has it."""
    found = []
    async with open_pool(url) as pool, pool.acquire() as pooled:
        own = await connect(url)
        for connection in (pooled, own):
            found += [tuple([await connection.fetchval(f"SHOW {name}") for name in SESSION])]
        await own.close()
    return found


@pytest.mark.parametrize(
    ("server", "session"),
    [
        ("off", "on"),
        ("on", "on"),
        ("local", "local"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ],
)
async def test_each_session_sets_what_the_store_relies_on(url: str, server: str, session: str) -> None:
    """A commit that is answered is on the disk, and nothing is serialised, whatever the server's defaults are."""
    async with connected(url) as connection:
        for setting in (f"synchronous_commit = {server}", "default_transaction_isolation = 'serializable'"):
            await connection.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} SET {setting}")
    assert await _sessions(url) == [(session, "read committed", "5s", "3s")] * 2


async def test_what_the_url_sets_is_not_set_again(url: str) -> None:
    """Whoever writes it there means it."""
    named = with_option(with_option(url, "synchronous_commit=off"), "lock_timeout=1000")
    assert await _sessions(named) == [("off", "read committed", "5s", "1s")] * 2


async def test_a_database_that_does_not_take_every_text_is_refused(url: str) -> None:
    """An owner whom it cannot write down would keep his pair from being stored, after it was paid for."""
    name = f"{urlsplit(url).path[1:]}_1251"
    async with connected(url) as connection:
        how = "ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        await connection.execute(f"CREATE DATABASE {name} {how}")
        try:
            with pytest.raises(ConfigurationError, match="encoding is WIN1251: CREATE DATABASE"):
                async with opened(urlunsplit(urlsplit(url)._replace(path=f"/{name}"))):
                    pass
        finally:
            await connection.execute(f"DROP DATABASE {name}")


async def test_a_copy_in_another_database_is_frozen(postgres: Databases) -> None:
    """What was restored elsewhere spends nothing, until a person says that it may."""
    async with postgres.fresh() as url:
        async with opened(url) as store:
            assert await store.check_machine("here") is None
            assert await store.check_machine("on another host") is None
        async with connected(url) as connection:
            await connection.execute("UPDATE meta SET value = 'postgresql:another/cluster' WHERE name = 'machine'")
        async with opened(url) as store:
            frozen = present(await store.check_machine("here"))
            assert frozen.may_be_copy
            await store.thaw_all(machine="here")
            assert await store.check_machine("here") is None


# --- leases and turns ----------------------------------------------------------------------------


async def test_nobody_takes_over_before_the_databases_clock_says_so(url: str) -> None:
    """Whatever a process believes of the time; with each read it is told how much of the lease is left."""
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        assert await one.claim(a_claim(stored, lease=timedelta(seconds=60))) is not None
        seen = await now(other, stored)
        assert seen.lease_left is not None
        assert 30 < seen.lease_left <= 60
        assert await other.claim(a_claim(seen, attempt="2")) is None
        async with connected(url) as connection:
            await connection.execute("UPDATE connections SET lease_until = lease_until - 60 * 1000000")
        assert await other.claim(a_claim(seen, attempt="2")) is not None


async def test_an_instance_that_begins_leaves_every_attempt_alone_for_a_whole_lease(url: str) -> None:
    """Its lease may have ended while nobody could reach the database, and its owner still hold the pair it brought."""
    clock = FakeClock()
    async with opened(url) as one, connected(url) as connection:
        stored = await save(one, a_connection())
        assert await one.claim(a_claim(stored)) is not None
        await connection.execute("UPDATE connections SET lease_until = 0")
    async with open_store(url, folder=Path(), clock=clock, process="other") as other:
        leases = Leases(length=60.0, store=other, clock=clock)
        assert leases.remaining(await now(other, stored)) == 60.0
        clock.advance(60.0)
        assert leases.remaining(await now(other, stored)) == 0.0


async def test_what_is_due_is_given_to_one_instance_at_a_time(url: str) -> None:
    """Two that ask at once share it; none is told that what the other has is what comes next."""
    async with opened(url) as one, opened(url, "other") as other:
        for number in range(20):
            await save(one, a_connection(number))
        given = await asyncio.gather(*(store.due(now=START + DAY, limit=8, exclude=()) for store in (one, other) * 3))
        of_one = {connection.id for found in given[::2] for connection in found.refreshes}
        of_other = {connection.id for found in given[1::2] for connection in found.refreshes}
        assert of_one.isdisjoint(of_other)
        assert (await one.due(now=START + DAY, limit=20, exclude=tuple(of_one))).refreshes != []
        assert (await other.due(now=START + DAY, limit=20, exclude=tuple(of_other))).refreshes == []
        assert (await other.due(now=START - DAY, limit=0, exclude=tuple(of_other))).next_at is None


async def test_the_turn_of_an_instance_that_has_died_ends(url: str) -> None:
    """Another one has what it was given."""
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        assert (await one.due(now=START + DAY, limit=9, exclude=())).refreshes == [stored]
        assert (await other.due(now=START + DAY, limit=9, exclude=())).refreshes == []
        async with connected(url) as connection:
            await connection.execute("UPDATE turns SET until = until - 60 * 1000000")
        assert (await other.due(now=START + DAY, limit=9, exclude=(), turn=OVER)).refreshes == [stored]
        assert (await one.due(now=START + DAY, limit=9, exclude=())).refreshes == [stored]
        assert (await other.due(now=START + DAY, limit=9, exclude=())).refreshes == []


async def test_only_one_instance_is_given_probes_at_a_time(url: str) -> None:
    """While the breaker is open one probe leaves at a time for all instances; the turn ends by itself."""
    turn = timedelta(seconds=60)
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        assert await one.probe(exclude=(), turn=turn) == stored
        assert await other.probe(exclude=(), turn=turn) is None
        assert await one.probe(exclude=(), turn=turn) == stored
        async with connected(url) as connection:
            await connection.execute("UPDATE turns SET until = until - 60 * 1000000")
        assert await other.probe(exclude=(), turn=turn) == stored
        assert await one.probe(exclude=(), turn=turn) is None


# --- locks ---------------------------------------------------------------------------------------


async def test_whoever_freezes_waits_for_the_claims_that_are_under_way(url: str) -> None:
    """Once it is frozen, each claim is committed and can be waited for, or is refused."""
    async with opened(url) as store, connected(url) as claiming, connected(url) as watching:
        async with claiming.transaction():
            await claiming.execute(load_statements(Engine.POSTGRES)["lock_for_spending"].text)
            freezing = asyncio.create_task(store.freeze_all(why="a move"))
            await _until_somebody_waits(watching)
            assert not freezing.done()
        assert await freezing


async def test_whoever_thaws_does_so_by_the_mark_that_is_there_by_then(url: str) -> None:
    """Noted at this moment that all may live elsewhere: then all are due."""
    async with opened(url) as store, connected(url) as leaving:
        stored = await save(store, a_connection(next_refresh_at=FAR))
        await store.freeze_all(why="a move")
        async with leaving.transaction():
            await leaving.execute(load_statements(Engine.POSTGRES)["lock_for_freezing"].text)
            may_be_copy = freeze_value(Freeze(at=START, why="a move", may_be_copy=True))
            await leaving.execute("UPDATE meta SET value = $1 WHERE name = 'frozen'", may_be_copy)
            thawing = asyncio.create_task(store.thaw_all(machine=None))
            await _until_somebody_waits(leaving)
        assert await thawing
        assert ((await now(store, stored)).next_refresh_at or FAR) <= store.clock.now()


async def test_a_probe_that_another_instance_reserves_at_this_moment_is_not_reserved_twice(url: str) -> None:
    """What was read before that is no longer stored, and the reservation fails."""
    async with opened(url) as store, connected(url) as other:
        await store.begin_amo_block("shown", probe_every=OVER)
        async with other.transaction():
            await other.execute("UPDATE meta SET value = value || ' ' WHERE name = 'amo_block'")
            reserving = asyncio.create_task(store.take_amo_probe("a", every=DAY))
            await _until_somebody_waits(other)
        assert await reserving is False


async def test_two_who_claim_to_be_the_first_owner_are_not_both(url: str) -> None:
    """Each at another instance, at the same moment."""
    async with opened(url) as one, opened(url, "other") as other:
        for number in range(10):
            stored = await save(one, a_connection(number))
            bound = await asyncio.gather(
                *(
                    store.bind(stored.id, owner=owner, grant_no=1, first_only=True)
                    for store, owner in ((one, "7"), (other, "8"))
                )
            )
            assert sorted(bound) == [False, True]


async def test_a_warning_is_given_once_by_however_many(url: str) -> None:
    """Instances that look at the same moment do not both tell."""
    async with opened(url) as one, opened(url, "other") as other:
        for number in range(20):
            await save(one, a_connection(number, refresh_expires_at=START + DAY))
        told = await asyncio.gather(
            *(
                store.due_expiry_warnings(
                    days=1, before=START + DAY, event=lambda one: connection_event("connection.expiring", one)
                )
                for store in (one, other)
            )
        )
        assert sorted(event.connection_id or "" for events in told for event in events) == sorted(
            a_connection(number).id for number in range(20)
        )


async def test_what_a_stopped_process_has_locked_is_let_go(url: str) -> None:
    """A transaction in which nothing happens is ended by the server: the others wait no longer than for that."""
    async with connected(url) as stopped, opened(url) as store:
        stored = await save(store, a_connection())
        transaction = stopped.transaction()
        await transaction.start()
        await stopped.execute("SELECT 1 FROM connections FOR UPDATE")
        await stopped.execute("SET LOCAL idle_in_transaction_session_timeout = 200")
        assert await store.claim(a_claim(stored)) is not None


async def test_of_two_that_wait_for_each_other_the_one_that_is_undone_tries_again(url: str) -> None:
    """Both locked what the other one wants next: neither is at fault, and whoever asked is told of no failure."""
    first, second = sorted([a_connection(1), a_connection(2)], key=lambda one: one.id)
    locks = "SELECT 1 FROM connections WHERE id = $1 FOR UPDATE"
    late = with_option(url, "deadlock_timeout=2000")  # it looks once, and there has to be something to see by then
    async with opened(late) as store, connected(f"{url}&deadlock_timeout=20000") as other:
        stored = [await save(store, one) for one in (first, second)]
        brought = [
            ImportedConnection(connection=dataclasses.replace(one, sealed_pair=b"brought"), replaces=one)
            for one in stored
        ]
        async with other.transaction():
            await other.execute(locks, second.id)
            bringing = asyncio.create_task(store.import_connections(brought))
            await _until_somebody_waits(other)
            await other.execute(locks, first.id)
        assert await bringing == []
        assert {(await now(store, one)).sealed_pair for one in stored} == {b"brought"}
        assert store.last_write_error is None


async def _until_somebody_waits(connection: asyncpg.Connection) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(WAIT_LIMIT):
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 -- because it becomes so in the server
            await asyncio.sleep(0.01)


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.1); RETURN NEW; END';
CREATE TRIGGER slow BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def test_a_statement_that_takes_too_long_is_ended_unless_it_goes_through_a_whole_table(url: str) -> None:
    """Nobody waits for one connection's; but a large fleet is thawed, however long that takes."""
    async with opened(with_option(url, "statement_timeout=2000")) as store, connected(url) as connection:
        stored = await save(store, a_connection(next_refresh_at=FAR))
        await store.freeze_all(why="a copy", may_be_copy=True)
        await connection.execute(SLOW)
        with pytest.raises(StoreUnavailable, match="cannot be read or written"):
            await store.schedule_recheck(stored, at=START)
        assert store.last_write_error == "QueryCanceledError"
        assert await store.thaw_all(machine="here")
        assert ((await now(store, stored)).next_refresh_at or FAR) <= store.clock.now()


async def test_one_slow_statement_is_not_a_database_out_of_reach(url: str) -> None:
    """A statistics query that takes too long keeps nobody from storing a pair, so no lease begins anew for it."""
    async with opened(with_option(url, "statement_timeout=2000")) as store, connected(url) as connection:
        stored = await save(store, a_connection())
        opened_at = store.failed_at
        await connection.execute("ALTER TABLE connections RENAME TO rows")
        await connection.execute(
            "CREATE VIEW connections AS SELECT rows.* FROM rows, (SELECT pg_sleep(2.5) IS NULL AS no) AS slept WHERE no"
        )
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.stats(now=START, late=START)
        assert store.failed_at == opened_at
        await connection.execute("DROP VIEW connections")
        await connection.execute("ALTER TABLE rows RENAME TO connections")
        assert (await now(store, stored)).id == stored.id


async def test_writes_that_keep_failing_are_a_database_out_of_reach(url: str) -> None:
    """The first may be one slow statement; with the second nobody can store a pair, and leases begin anew."""
    clock = FakeClock()
    async with (
        open_store(with_option(url, "statement_timeout=2000"), folder=Path(), clock=clock) as store,
        connected(url) as connection,
    ):
        stored = await save(store, a_connection())
        opened_at = store.failed_at
        await connection.execute(SLOW)
        clock.advance(1)
        for failed_at in (opened_at, clock.monotonic()):
            with pytest.raises(StoreUnavailable):
                await store.schedule_recheck(stored, at=START)
            assert store.failed_at == failed_at


FULL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END';
CREATE TRIGGER refuse BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def test_that_a_slot_can_be_taken_does_not_say_that_a_pair_can_be_stored(url: str) -> None:
    """What keeps instances apart is written without a log: it may go on where nothing else does."""
    async with opened(url) as store, connected(url) as connection:
        stored = await save(store, a_connection())
        await connection.execute(FULL)
        with pytest.raises(StoreUnavailable):
            await store.save_refreshed(a_refreshed(stored))
        assert store.last_write_error == "DiskFullError"
        assert store.shared is not None
        await store.shared.request_slot(interval=0.2, waiting=(WaiterKind.PEOPLE,))
        await store.due(now=START, limit=1, exclude=())
        assert store.last_write_error == "DiskFullError"
        await store.record_time(now=lambda: START)
        assert store.last_write_error is None


# --- what the others hear ------------------------------------------------------------------------


class Ear:
    """What an instance hears of its own and others' changes."""

    def __init__(self, store: Store) -> None:
        self.heard: list[ChangeNotice] = []
        self._something = asyncio.Event()
        store.subscribe(self._take)

    def _take(self, changed: ChangeNotice) -> None:
        self.heard.append(changed)
        self._something.set()

    async def until(self, changed: ChangeNotice) -> None:
        async with asyncio.timeout(WAIT_LIMIT):
            while changed not in self.heard:
                self._something.clear()
                await self._something.wait()


async def test_a_change_is_heard_by_the_others_and_not_twice_by_whoever_made_it(url: str) -> None:
    """As it is committed."""
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        ear, own = Ear(other), Ear(one)
        await one.save_refreshed(a_refreshed(stored))
        changed = ChangeNotice(connections=frozenset({stored.id}), membership_changed=False)
        await ear.until(changed)
        await one.data_version()  # whatever was said so far has come
        assert own.heard == [changed]


async def test_a_freeze_is_heard_as_a_change_of_all(url: str) -> None:
    """Every connection is read with it."""
    async with opened(url) as one, opened(url, "other") as other:
        ear = Ear(other)
        await one.freeze_all(why="a move")
        await ear.until(ChangeNotice(connections=None, membership_changed=True))


async def test_a_clock_that_differs_is_known(url: str) -> None:
    """The tests' own stands still, some days ago or ahead."""
    async with opened(url) as store:
        await store.data_version()
        assert abs(store.clock_skew - (START - datetime.now(UTC)).total_seconds()) < 60


# --- away ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving_postgres() as served:
        yield served


async def test_a_database_that_is_away_is_told_at_once_and_is_used_again_when_it_is_back(server: Server) -> None:
    """Nobody waits for it; what it was away for is known; and whatever was remembered may be another by then."""
    clock = FakeClock()
    async with open_store(server.url(), folder=Path(), clock=clock) as store:
        stored = await save(store, a_connection())
        ear = Ear(store)
        clock.advance(1.0)
        await asyncio.to_thread(server.stop)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.connection(stored.id)
            with pytest.raises(StoreUnavailable):
                await store.claim(a_claim(stored))
        assert store.failed_at == clock.monotonic()
        assert store.last_write_error is not None
        await asyncio.to_thread(server.start)
        await ear.until(ChangeNotice(connections=None, membership_changed=True))
        assert await store.claim(a_claim(stored)) is not None
        assert store.last_write_error is None


async def test_of_several_hosts_the_one_that_takes_writes_is_used(server: Server) -> None:
    """Also where the URL does not say so: what a standby tells may be old."""
    with serving_postgres(settings=("fsync=off", "default_transaction_read_only=on")) as standby:
        hosts = ",".join(one.url().partition("?host=")[2] for one in (standby, server))
        async with opened(f"postgresql://postgres@/postgres?host={hosts}") as store:
            stored = await save(store, a_connection())
    async with opened(server.url()) as store:
        assert await now(store, stored) == stored


async def test_whatever_a_server_says_it_is_asked_again(url: str) -> None:
    """One that tells no version, on which the library stumbles, keeps nobody from its successor."""
    answers: list[Exception] = [AttributeError("server_version"), RuntimeError()]

    async def connect() -> asyncpg.Connection:
        if answers:
            raise answers.pop()
        return await asyncpg.connect(url)

    listener, heard = Listener(connect, clock=DatabaseClock(FakeClock())), asyncio.Event()
    listener.on_change(lambda _: heard.set())
    async with listener.listening(), asyncio.timeout(WAIT_LIMIT):
        await heard.wait()
        assert listener.down is None


async def test_a_listener_that_is_lost_is_replaced_and_nobody_else_is_kept_waiting(url: str) -> None:
    """Its connection was ended; the others work, and the store is not away for a moment."""
    async with opened(url) as store, connected(url) as connection:
        ear = Ear(store)
        listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%clock_timestamp()'"
        await store.data_version()
        await connection.execute(f"{listeners} AND pid <> pg_backend_pid() AND datname = current_database()")
        async with asyncio.timeout(WAIT_LIMIT):
            while ChangeNotice(connections=None, membership_changed=True) not in ear.heard:
                await store.count()
                await asyncio.sleep(0)


async def test_where_there_is_no_connection_to_spare_the_others_are_used() -> None:
    """A server whose connections are all taken takes no new listener; the store is not away for that."""

    async def connect() -> asyncpg.Connection:
        tried.set()
        raise asyncpg.TooManyConnectionsError

    tried = asyncio.Event()
    listener = Listener(connect, clock=DatabaseClock(FakeClock()))
    async with listener.listening(), asyncio.timeout(WAIT_LIMIT):
        for _ in range(2):
            tried.clear()
            await tried.wait()
        assert listener.down is None


async def test_a_database_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """It may be there soon: that is nothing to mend in the configuration."""
    with pytest.raises(StoreUnavailable):
        async with open_store(f"postgresql://postgres@/postgres?host={tmp_path}", folder=tmp_path, clock=SystemClock()):
            pass
