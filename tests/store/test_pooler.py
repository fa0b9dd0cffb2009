"""PgBouncer in front of PostgreSQL: in session mode the store works, in any other it says why it does not start."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from amo_callback.clock import SystemClock
from amo_callback.errors import ConfigurationError
from amo_callback.store import open_store
from tests.builders import a_claim, a_connection, save
from tests.pgbouncer import pooled, why_no_pgbouncer
from tests.postgres import GIVEN, why_not, with_option

if (why := why_not() or why_no_pgbouncer()) is not None:
    pytest.skip(why, allow_module_level=True)
if GIVEN in os.environ:
    pytest.skip("a server that was given is not ours to pool", allow_module_level=True)

import asyncpg

from amo_callback.store.postgres_server import USE_SESSIONS, Pooling, find_pooling, read_server
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.postgres import Databases


@pytest.fixture
async def direct(postgres: Databases) -> AsyncIterator[str]:
    async with postgres.fresh() as url:
        yield url


async def test_a_server_without_a_pooler_is_told_from_one_with(direct: str) -> None:
    """Nothing but the server is in between."""
    assert await find_pooling(direct) is Pooling.NONE


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [
        ("session", Pooling.SESSION),
        ("transaction", Pooling.TRANSACTION),
        ("statement", Pooling.TRANSACTION),
    ],
)
@pytest.mark.parametrize("options", ["", "server_round_robin = 1"], ids=["last", "round robin"])
async def test_how_a_pooler_pools_is_found_while_nobody_else_uses_it(
    mode: str, pooling: Pooling, options: str, direct: str
) -> None:
    """It is asked three times, since what was asked before has left it connections to the server."""
    with pooled(direct, mode=mode, options=options) as url:
        assert [await find_pooling(url) for _ in range(3)] == [pooling] * 3


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_how_a_pooler_pools_is_found_while_others_use_it(mode: str, direct: str) -> None:
    """Several connections to the server are at hand, and some are in use."""
    with pooled(direct, mode=mode) as url:
        async with AsyncExitStack() as stack:
            clients = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(8)]
            for client in clients:
                stack.push_async_callback(client.close)
                await client.execute("BEGIN")
            for client in clients[:5]:
                await client.execute("COMMIT")
            assert await find_pooling(url) is Pooling(mode)


async def test_a_pooler_without_room_is_not_taken_for_one_of_transactions(direct: str) -> None:
    """In session mode one client has the only connection: whoever comes after it waits in vain."""
    with pooled(direct, mode="session", size=1) as url:
        assert await find_pooling(url, wait_limit=1.0) is Pooling.SESSION


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_of_transactions_stops_the_start_by_its_name(mode: str, direct: str, tmp_path: Path) -> None:
    """Nothing of ours is in the database by then, and no session's parameters are another client's."""
    with pooled(direct, mode=mode) as url:
        with pytest.raises(ConfigurationError, match=r"PgBouncer.*set pool_mode = session.*or connect to the server"):
            async with open_store(url, folder=tmp_path, clock=SystemClock()):
                pass
        client = await asyncpg.connect(url, statement_cache_size=0)
        assert await client.fetchval("SELECT current_setting('statement_timeout')") == "0"
        await client.close()
    client = await asyncpg.connect(direct)
    assert await client.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await client.close()


async def test_a_server_behind_a_pooler_of_transactions_is_not_asked_about_itself(direct: str) -> None:
    """The error says what to do, and the connections of other clients stay as they were."""
    with pooled(direct, mode="transaction") as url:
        with pytest.raises(ConfigurationError) as raised:
            await read_server(url, wait_limit=WAIT_LIMIT, clock=SystemClock())
        client = await asyncpg.connect(url, statement_cache_size=0)
        assert await client.fetchval("SHOW default_transaction_read_only") == "off"
        await client.close()
    assert "PgBouncer" in str(raised.value)
    assert str(raised.value).endswith(USE_SESSIONS)


async def test_a_pooler_of_sessions_is_worked_through(direct: str, tmp_path: Path) -> None:
    """Nothing need be set there: what a session relies on is set once it has connected."""
    with pooled(direct, mode="session") as url:
        async with open_store(url, folder=tmp_path, clock=SystemClock()) as store:
            stored = await save(store, a_connection())
            assert await store.claim(a_claim(stored)) is not None
            client = await asyncpg.connect(direct)
            timeouts = await client.fetch("SELECT DISTINCT application_name FROM pg_stat_activity")
            assert "amo-callback" in {row[0] for row in timeouts}
            await client.close()


async def test_a_parameter_that_the_pooler_does_not_take_is_named(direct: str, tmp_path: Path) -> None:
    """One that the URL names is sent as the client connects."""
    named = pytest.raises(ConfigurationError, match=r"PgBouncer.*ignore_startup_parameters")
    with pooled(direct, mode="session") as url, named:
        async with open_store(with_option(url, "lock_timeout=1000"), folder=tmp_path, clock=SystemClock()):
            pass
