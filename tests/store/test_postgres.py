"""PostgreSQL's clock, locks and notifications, and an unavailable server."""

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
from tests.builders import DAY, a_claim, a_connection, a_refreshed, bind, now, present, save
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


async def test_statements_are_valid_in_postgres(url: str) -> None:
    """PostgreSQL prepares every statement, also the rarely used ones."""
    async with opened(url), connected(url) as connection:
        for statement in load_statements(Engine.POSTGRES).values():
            await connection.prepare(statement.text)


async def test_migrate_fresh_schema_equals_migrated_schema(postgres: Databases) -> None:
    """A fresh schema and one migrated step by step are equal."""
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


async def test_open_concurrent_instances_create_one_schema(url: str) -> None:
    """Instances that start at once create one schema and all open it."""

    async def begin(number: int) -> int:
        async with opened(url, f"{number}") as store:
            return await store.count()

    assert await asyncio.gather(*map(begin, range(8))) == [0] * 8


async def test_migration_ignores_statement_timeout(url: str) -> None:
    """A migration, or the wait for another instance's, may take longer than the statement timeout."""
    pool = asyncpg.create_pool(url, min_size=0, command_timeout=3.0, server_settings={"statement_timeout": "3s"})
    async with pool, pool.acquire() as connection:
        await migrate_postgres(connection, [["SELECT pg_sleep(3.2)"]])
        assert await connection.fetchval("SELECT version FROM schema_version") == 1


SESSION = ("synchronous_commit", "default_transaction_isolation", "statement_timeout", "lock_timeout")


async def _sessions(url: str) -> list[tuple[str, ...]]:
    """Return the session parameters of a pooled connection and of a single connection."""
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
async def test_session_sets_required_parameters(url: str, server: str, session: str) -> None:
    """Each session commits to disk and uses read committed, whatever the server's defaults are."""
    async with connected(url) as connection:
        for setting in (f"synchronous_commit = {server}", "default_transaction_isolation = 'serializable'"):
            await connection.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} SET {setting}")
    assert await _sessions(url) == [(session, "read committed", "5s", "3s")] * 2


async def test_session_keeps_parameters_of_url(url: str) -> None:
    """A parameter set in the URL is not overridden."""
    named = with_option(with_option(url, "synchronous_commit=off"), "lock_timeout=1000")
    assert await _sessions(named) == [("off", "read committed", "5s", "1s")] * 2


async def test_open_database_with_other_encoding_is_refused(url: str) -> None:
    """A database whose encoding cannot store every owner is refused, because storing a pair could fail."""
    name = f"{urlsplit(url).path[1:]}_1251"
    async with connected(url) as connection:
        how = "ENCODING 'WIN1251' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        await connection.execute(f"CREATE DATABASE {name} {how}")
        try:
            with pytest.raises(ConfigurationError, match="encoding is WIN1251; create a database with ENCODING 'UTF8'"):
                async with opened(urlunsplit(urlsplit(url)._replace(path=f"/{name}"))):
                    pass
        finally:
            await connection.execute(f"DROP DATABASE {name}")


async def test_check_machine_freezes_restored_database(postgres: Databases) -> None:
    """A database restored in another cluster is frozen until the operator thaws it."""
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


async def test_claim_before_lease_end_by_database_clock_is_refused(url: str) -> None:
    """A claim is refused until the lease ends by the database's clock, and each read returns the remaining lease."""
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


async def test_leases_of_new_instance_last_one_full_lease(url: str) -> None:
    """A new instance waits a full lease for each attempt, as the attempt's process may hold an unsaved pair."""
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


async def test_due_concurrent_instances_get_disjoint_connections(url: str) -> None:
    """Instances that query at once get disjoint connections, and `next_at` ignores other instances' connections."""
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


async def test_due_turn_of_ended_instance_expires(url: str) -> None:
    """Another instance gets the connections of an instance whose turn has expired."""
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        assert (await one.due(now=START + DAY, limit=9, exclude=())).refreshes == [stored]
        assert (await other.due(now=START + DAY, limit=9, exclude=())).refreshes == []
        async with connected(url) as connection:
            await connection.execute("UPDATE turns SET until = until - 60 * 1000000")
        assert (await other.due(now=START + DAY, limit=9, exclude=(), turn=OVER)).refreshes == [stored]
        assert (await one.due(now=START + DAY, limit=9, exclude=())).refreshes == [stored]
        assert (await other.due(now=START + DAY, limit=9, exclude=())).refreshes == []


async def test_probe_is_returned_to_one_instance_at_a_time(url: str) -> None:
    """While the circuit breaker is open, one instance at a time gets a probe until its turn expires."""
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


async def test_freeze_all_waits_for_claims_in_progress(url: str) -> None:
    """A freeze waits for claims in progress, so each later claim is committed or refused."""
    async with opened(url) as store, connected(url) as claiming, connected(url) as watching:
        async with claiming.transaction():
            await claiming.execute(load_statements(Engine.POSTGRES)["lock_for_spending"].text)
            freezing = asyncio.create_task(store.freeze_all(why="a move"))
            await _until_lock_is_awaited(watching)
            assert not freezing.done()
        assert await freezing


async def test_thaw_all_uses_freeze_mark_after_lock(url: str) -> None:
    """A thaw reads the freeze mark after it has the lock: a possible copy makes all connections due."""
    async with opened(url) as store, connected(url) as leaving:
        stored = await save(store, a_connection(next_refresh_at=FAR))
        await store.freeze_all(why="a move")
        async with leaving.transaction():
            await leaving.execute(load_statements(Engine.POSTGRES)["lock_for_freezing"].text)
            frozen = freeze_value(Freeze(at=START, why="a move", may_be_copy=True))
            await leaving.execute("UPDATE meta SET value = $1 WHERE name = 'frozen'", frozen)
            thawing = asyncio.create_task(store.thaw_all(machine=None))
            await _until_lock_is_awaited(leaving)
        assert await thawing
        assert ((await now(store, stored)).next_refresh_at or FAR) <= store.clock.now()


async def test_take_amo_probe_concurrent_change_fails(url: str) -> None:
    """A reservation fails if another instance changes the block in between."""
    async with opened(url) as store, connected(url) as other:
        await store.begin_amo_block("shown", probe_every=OVER)
        async with other.transaction():
            await other.execute("UPDATE meta SET value = value || ' ' WHERE name = 'amo_block'")
            reserving = asyncio.create_task(store.take_amo_probe("a", every=DAY))
            await _until_lock_is_awaited(other)
        assert await reserving is False


async def test_bind_first_only_concurrent_instances_bind_one(url: str) -> None:
    """Of two instances that bind a first owner at once, one succeeds."""
    async with opened(url) as one, opened(url, "other") as other:
        for number in range(10):
            stored = await save(one, a_connection(number))
            bound = await asyncio.gather(
                *(bind(store, stored.id, owner, first_only=True) for store, owner in ((one, "7"), (other, "8")))
            )
            assert sorted(bound) == [False, True]


async def test_expiry_warning_concurrent_instances_send_once(url: str) -> None:
    """Instances that query at once produce one warning per connection."""
    async with opened(url) as one, opened(url, "other") as other:
        for number in range(20):
            await save(one, a_connection(number, refresh_expires_at=START + DAY))
        result = await asyncio.gather(
            *(
                store.due_expiry_warnings(
                    days=1, before=START + DAY, event=lambda one: connection_event("connection.expiring", one)
                )
                for store in (one, other)
            )
        )
        assert sorted(event.connection_id or "" for events in result for event in events) == sorted(
            a_connection(number).id for number in range(20)
        )


async def test_claim_waits_for_idle_transaction_timeout(url: str) -> None:
    """A lock of a stopped process lasts until the server ends its idle transaction."""
    async with connected(url) as stopped, opened(url) as store:
        stored = await save(store, a_connection())
        transaction = stopped.transaction()
        await transaction.start()
        await stopped.execute("SELECT 1 FROM connections FOR UPDATE")
        await stopped.execute("SET LOCAL idle_in_transaction_session_timeout = 200")
        assert await store.claim(a_claim(stored)) is not None


async def test_transaction_after_deadlock_is_retried(url: str) -> None:
    """The transaction that a deadlock aborts is retried, and its caller gets no error."""
    first, second = sorted([a_connection(1), a_connection(2)], key=lambda one: one.id)
    locks = "SELECT 1 FROM connections WHERE id = $1 FOR UPDATE"
    late = with_option(url, "deadlock_timeout=2000")  # the server checks once, when both must already wait
    async with opened(late) as store, connected(f"{url}&deadlock_timeout=20000") as other:
        stored = [await save(store, one) for one in (first, second)]
        brought = [
            ImportedConnection(connection=dataclasses.replace(one, sealed_pair=b"brought"), replaces=one)
            for one in stored
        ]
        async with other.transaction():
            await other.execute(locks, second.id)
            bringing = asyncio.create_task(store.import_connections(brought))
            await _until_lock_is_awaited(other)
            await other.execute(locks, first.id)
        assert await bringing == []
        assert {(await now(store, one)).sealed_pair for one in stored} == {b"brought"}
        assert store.last_write_error is None


async def _until_lock_is_awaited(connection: asyncpg.Connection) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(WAIT_LIMIT):
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 -- the state is the server's
            await asyncio.sleep(0.01)


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.1); RETURN NEW; END';
CREATE TRIGGER slow BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION slow();
"""


async def test_statement_timeout_applies_except_to_table_wide_statements(url: str) -> None:
    """A slow statement is cancelled, but a thaw of a large fleet may take longer."""
    async with opened(with_option(url, "statement_timeout=2000")) as store, connected(url) as connection:
        stored = await save(store, a_connection(next_refresh_at=FAR))
        await store.freeze_all(why="a copy", may_be_copy=True)
        await connection.execute(SLOW)
        with pytest.raises(StoreUnavailable, match="cannot be read or written"):
            await store.schedule_recheck(stored, at=START)
        assert store.last_write_error == "QueryCanceledError"
        assert await store.thaw_all(machine="here")
        assert ((await now(store, stored)).next_refresh_at or FAR) <= store.clock.now()


async def test_read_timeout_does_not_mark_store_unavailable(url: str) -> None:
    """A cancelled statistics query does not mark the store unavailable, so no lease is restarted."""
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


async def test_write_failing_twice_marks_store_unavailable(url: str) -> None:
    """The second failed write in a row marks the store unavailable, so leases are restarted."""
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


async def test_slot_write_does_not_clear_last_write_error(url: str) -> None:
    """Unlogged writes of slots and turns succeed on a full disk, so they do not clear the write error."""
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


# --- notifications --------------------------------------------------------------------------------


class NoticeRecorder:
    """A recorder of the change notices that an instance receives."""

    def __init__(self, store: Store) -> None:
        self.changes: list[ChangeNotice] = []
        self._received = asyncio.Event()
        store.subscribe(self._add)

    def _add(self, changed: ChangeNotice) -> None:
        self.changes.append(changed)
        self._received.set()

    async def until(self, changed: ChangeNotice) -> None:
        async with asyncio.timeout(WAIT_LIMIT):
            while changed not in self.changes:
                self._received.clear()
                await self._received.wait()


async def test_change_is_published_to_other_instances_once(url: str) -> None:
    """A committed change is published to other instances, and once to the instance that made it."""
    async with opened(url) as one, opened(url, "other") as other:
        stored = await save(one, a_connection())
        recorder, own = NoticeRecorder(other), NoticeRecorder(one)
        await one.save_refreshed(a_refreshed(stored))
        changed = ChangeNotice(connections=frozenset({stored.id}), membership_changed=False)
        await recorder.until(changed)
        await one.data_version()  # waits for all notifications sent so far
        assert own.changes == [changed]


async def test_freeze_is_published_as_change_of_all(url: str) -> None:
    """A freeze is published as a change of every connection."""
    async with opened(url) as one, opened(url, "other") as other:
        recorder = NoticeRecorder(other)
        await one.freeze_all(why="a move")
        await recorder.until(ChangeNotice(connections=None, membership_changed=True))


async def test_clock_skew_is_measured(url: str) -> None:
    """The difference between the process's clock and the database's is measured."""
    async with opened(url) as store:
        await store.data_version()
        assert abs(store.clock_skew - (START - datetime.now(UTC)).total_seconds()) < 60


# --- unavailable server ---------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving_postgres() as served:
        yield served


async def test_server_restart_fails_calls_immediately_and_recovers(server: Server) -> None:
    """During a restart calls fail at once; afterwards the store works and publishes a change of all."""
    clock = FakeClock()
    async with open_store(server.url(), folder=Path(), clock=clock) as store:
        stored = await save(store, a_connection())
        recorder = NoticeRecorder(store)
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
        await recorder.until(ChangeNotice(connections=None, membership_changed=True))
        assert await store.claim(a_claim(stored)) is not None
        assert store.last_write_error is None


async def test_url_with_several_hosts_uses_writable_server(server: Server) -> None:
    """Of several hosts the writable one is used, because a standby's data may be outdated."""
    with serving_postgres(settings=("fsync=off", "default_transaction_read_only=on")) as standby:
        hosts = ",".join(one.url().partition("?host=")[2] for one in (standby, server))
        async with opened(f"postgresql://postgres@/postgres?host={hosts}") as store:
            stored = await save(store, a_connection())
    async with opened(server.url()) as store:
        assert await now(store, stored) == stored


async def test_listener_retries_after_any_error(url: str) -> None:
    """The listener reconnects after any error, including those of the library."""
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


async def test_listener_lost_connection_is_replaced_without_downtime(url: str) -> None:
    """A terminated listener connection is replaced while other queries keep running."""
    async with opened(url) as store, connected(url) as connection:
        recorder = NoticeRecorder(store)
        listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%clock_timestamp()'"
        await store.data_version()
        await connection.execute(f"{listeners} AND pid <> pg_backend_pid() AND datname = current_database()")
        async with asyncio.timeout(WAIT_LIMIT):
            while ChangeNotice(connections=None, membership_changed=True) not in recorder.changes:
                await store.count()
                await asyncio.sleep(0)


async def test_listener_without_free_connection_does_not_mark_store_down() -> None:
    """A server without a free connection for the listener does not make the store unavailable."""

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


async def test_open_missing_server_is_unavailable(tmp_path: Path) -> None:
    """A missing server is reported as unavailable, not as a configuration error."""
    with pytest.raises(StoreUnavailable):
        async with open_store(f"postgresql://postgres@/postgres?host={tmp_path}", folder=tmp_path, clock=SystemClock()):
            pass
