"""How many claims a second a store gives, with few connections and with a million: the ratio is what matters.

A batch is what the refresher does: one question for what is due, then a claim of each, one committed write after the
other. `few due`: a thousand connections are due, whatever their number; `all due`: every one is, as after a day off.
What was claimed is refreshed between batches, outside of the time that is told, and is due again, as the last.
Databases write as in production (`synchronous=FULL`, `fsync=on`), where the temporary folder is.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.clock import SystemClock
from amo_callback.store import open_store
from amo_callback.store.engine import to_micros
from tests.benchmarks.figures import Bar, Figure, Outcome
from tests.benchmarks.options import option
from tests.builders import DAY, a_claim, a_refreshed
from tests.postgres import Databases, serving_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from amo_callback.store import Store
    from tests.benchmarks.bench import Bench
    from tests.postgres import Server

BATCH = 16
"""Connections that are claimed in one round of the refresher: its default concurrency."""
BATCHES = 20
DUE = 1000
_BAR = Bar(at_most=1.5)
_ENGINES = ("sqlite", "postgresql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How claims are measured."""

    rows: tuple[int, ...] = option((1000, 1_000_000), quick=(1000, 5000), told="connections in the database")
    engine: tuple[str, ...] = option(_ENGINES, told="of the database", choices=_ENGINES)


_SQLITE = """
INSERT INTO connections (
    id, account_id, user_id, domain, client_id, status, sealed_pair, access_issued_at, access_expires_at,
    refresh_expires_at, next_refresh_at, connected_at
)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :rows)
SELECT lower(hex(randomblob(16))), n, '1', 'a' || n || '.amocrm.ru', 'c619', 'active', randomblob(1000), :issued,
    :expires + n, :dies + n, CASE WHEN n <= :due THEN :past + n ELSE :future + n END, :issued
FROM numbers
"""
_POSTGRES = """
INSERT INTO connections (
    id, account_id, user_id, domain, client_id, status, sealed_pair, access_issued_at, access_expires_at,
    refresh_expires_at, next_refresh_at, connected_at
)
SELECT md5(random()::text), n::text, '1', 'a' || n || '.amocrm.ru', 'c619', 'active',
    decode(repeat(md5(n::text), 62), 'hex'), $2, $3 + n, $4 + n, CASE WHEN n <= $5 THEN $6 + n ELSE $7 + n END, $2
FROM generate_series(1, $1::bigint) AS n
"""


def _times(now: datetime, *, rows: int, due: int) -> dict[str, int]:
    day = DAY // DAY.resolution
    return {
        "rows": rows,
        "issued": to_micros(now) - day // 2,
        "expires": to_micros(now) + day // 2,
        "dies": to_micros(now) + 89 * day,
        "due": due,
        "past": to_micros(now) - day // 24,
        "future": to_micros(now) + day // 4,
    }


def _fill_sqlite(file: Path, times: dict[str, int]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DELETE FROM connections")
        database.execute(_SQLITE, times)
        database.execute("ANALYZE")


async def _fill_postgres(url: str, times: dict[str, int]) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE connections, turns")
    order = ("rows", "issued", "expires", "dies", "due", "past", "future")
    await connection.execute(_POSTGRES, *(times[name] for name in order))
    await connection.execute("VACUUM ANALYZE connections")
    await connection.close()


async def _round(store: Store) -> float:
    """Return how many claims a second some batches take, the refreshes after each left aside."""
    clock, seconds = SystemClock(), 0.0
    for _ in range(BATCHES):
        began = time.perf_counter()
        due = (await store.due(now=clock.now(), limit=BATCH, apart_from=())).refreshes
        claimed = [await store.claim(a_claim(connection)) for connection in due]
        seconds += time.perf_counter() - began
        assert len(due) == BATCH
        for connection in claimed:
            assert connection is not None
            await store.save_refreshed(a_refreshed(connection, at=clock.now(), next_refresh_at=clock.now()))
    return BATCH * BATCHES / seconds


@asynccontextmanager
async def _opened(url: str, folder: Path, times: dict[str, int]) -> AsyncIterator[Store]:
    """Open a store with so many connections in it."""
    async with open_store(url, folder=folder, clock=SystemClock()) as store:
        if url.startswith("sqlite:"):
            await asyncio.to_thread(_fill_sqlite, folder / url.removeprefix("sqlite:///"), times)
        else:
            await _fill_postgres(url, times)
        yield store


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, on each engine: databases with ever more connections, in alternation."""
    figures: list[Figure] = []
    for engine in options.engine:
        with serving_postgres(settings=()) if engine == "postgresql" else nullcontext() as server:
            for what in ("few due", "all due"):
                bench.say(f"claims, {engine}, {what}")
                figures += await _compare(options, bench, server, what=what)
    return Outcome(figures=figures)


async def _compare(options: Options, bench: Bench, server: Server | None, *, what: str) -> Sequence[Figure]:
    numbers = sorted(options.rows)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(dir=bench.folder)))  # a million take more than a gigabyte
        stores = []
        for rows in numbers:
            url = f"sqlite:///{rows}.db"
            if server is not None:
                url = await stack.enter_async_context(Databases(address=server.url()).fresh())
            times = _times(SystemClock().now(), rows=rows, due=rows if what == "all due" else DUE)
            stores.append(await stack.enter_async_context(_opened(url, folder, times)))
        for store in stores:
            await _round(store)  # so that all begin warm
        rounds = [[await _round(store) for store in stores] for _ in range(bench.rounds)]
    of = f"{'sqlite' if server is None else 'postgresql'}, {what}"
    claims = [
        Figure(name=f"claims, {of}, {rows:,} connections", unit="1/s", values=[one[number] for one in rounds])
        for number, rows in enumerate(numbers)
    ]
    ratio = [one[0] / one[-1] for one in rounds]
    bar = _BAR if what == "few due" else None
    return [*claims, Figure(name=f"claims, {of}, fewest/most", unit="ratio", values=ratio, bar=bar)]
