"""PgBouncer in front of PostgreSQL: the store runs in session mode and refuses other modes at the start."""

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
    pytest.skip("a given server cannot be put behind a pooler", allow_module_level=True)

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


async def test_find_pooling_without_pooler_is_none(direct: str) -> None:
    """A direct connection to the server is found to have no pooler."""
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
async def test_find_pooling_of_idle_pooler_finds_mode(mode: str, pooling: Pooling, options: str, direct: str) -> None:
    """The pooling mode is found three times in a row, although the pooler keeps the earlier server connections."""
    with pooled(direct, mode=mode, options=options) as url:
        assert [await find_pooling(url) for _ in range(3)] == [pooling] * 3


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_find_pooling_of_busy_pooler_finds_mode(mode: str, direct: str) -> None:
    """The pooling mode is found while other clients use some of the server connections."""
    with pooled(direct, mode=mode) as url:
        async with AsyncExitStack() as stack:
            clients = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(8)]
            for client in clients:
                stack.push_async_callback(client.close)
                await client.execute("BEGIN")
            for client in clients[:5]:
                await client.execute("COMMIT")
            assert await find_pooling(url) is Pooling(mode)


async def test_find_pooling_of_exhausted_session_pooler_is_session(direct: str) -> None:
    """A session pooler without a free server connection is recognized as a session pooler."""
    with pooled(direct, mode="session", size=1) as url:
        assert await find_pooling(url, wait_limit=1.0) is Pooling.SESSION


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_open_store_through_transaction_pooler_is_refused(mode: str, direct: str, tmp_path: Path) -> None:
    """The error names PgBouncer; no table is created and no other client's session parameter is changed."""
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


async def test_read_server_through_transaction_pooler_is_refused(direct: str) -> None:
    """The error names the fix, and other clients' connections are not changed."""
    with pooled(direct, mode="transaction") as url:
        with pytest.raises(ConfigurationError) as raised:
            await read_server(url, wait_limit=WAIT_LIMIT, clock=SystemClock())
        client = await asyncpg.connect(url, statement_cache_size=0)
        assert await client.fetchval("SHOW default_transaction_read_only") == "off"
        await client.close()
    assert "PgBouncer" in str(raised.value)
    assert str(raised.value).endswith(USE_SESSIONS)


async def test_open_store_through_session_pooler_succeeds(direct: str, tmp_path: Path) -> None:
    """A session pooler needs no settings, because session parameters are set after the connect."""
    with pooled(direct, mode="session") as url:
        async with open_store(url, folder=tmp_path, clock=SystemClock()) as store:
            stored = await save(store, a_connection())
            assert await store.claim(a_claim(stored)) is not None
            client = await asyncpg.connect(direct)
            timeouts = await client.fetch("SELECT DISTINCT application_name FROM pg_stat_activity")
            assert "amo-callback" in {row[0] for row in timeouts}
            await client.close()


async def test_open_store_with_parameter_refused_by_pooler_names_setting(direct: str, tmp_path: Path) -> None:
    """A parameter of the URL that PgBouncer refuses at the connect is reported with its setting."""
    named = pytest.raises(ConfigurationError, match=r"PgBouncer.*ignore_startup_parameters")
    with pooled(direct, mode="session") as url, named:
        async with open_store(with_option(url, "lock_timeout=1000"), folder=tmp_path, clock=SystemClock()):
            pass
