"""How many claims a second a store gives, with few connections and with a million: the ratio is what matters.

A batch is what the refresher does: one question for what is due, then a claim of each, one committed write after the
other. `few due`: a thousand connections are due, whatever their number; `all due`: every one is, as after a day off.
What was claimed is refreshed between batches, outside of the time that is told, and is due again, as the last.
Databases write as in production (`synchronous=FULL`, `fsync=on`), where the temporary folder is.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from amo_callback.clock import SystemClock
from amo_callback.store import open_store
from amo_callback.store.rows import ticks
from tests.benchmarks.figures import Bar, Figure, Outcome
from tests.benchmarks.options import option
from tests.builders import DAY, a_claim, a_refreshed
from tests.postgres import serving_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from amo_callback.ports import Store
    from tests.benchmarks.bench import Bench

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
        "issued": ticks(now) - day // 2,
        "expires": ticks(now) + day // 2,
        "dies": ticks(now) + 89 * day,
        "due": due,
        "past": ticks(now) - day // 24,
        "future": ticks(now) + day // 4,
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


async def _round(store: Store, clock: SystemClock) -> float:
    """Return how many claims a second some batches take, the refreshes after each left aside."""
    seconds = 0.0
    for _ in range(BATCHES):
        began = time.perf_counter()
        due = await store.due(now=clock.now(), limit=BATCH, apart_from=())
        claimed = [await store.claim(a_claim(connection)) for connection in due]
        seconds += time.perf_counter() - began
        assert len(due) == BATCH
        for connection in claimed:
            assert connection is not None
            await store.save_refreshed(a_refreshed(connection, at=clock.now(), next_refresh_at=clock.now()))
    return BATCH * BATCHES / seconds


@asynccontextmanager
async def _opened(url: str, folder: Path, times: dict[str, int]) -> AsyncIterator[Store]:
    async with open_store(url, folder=folder, clock=SystemClock()) as store:
        if url.startswith("sqlite:"):
            await asyncio.to_thread(_fill_sqlite, folder / "claims.db", times)
        else:
            await _fill_postgres(url, times)
        yield store


async def measure(options: Options, bench: Bench) -> Outcome:
    """Measure, on each engine, and compare the most connections with the fewest."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        for engine in options.engine:
            url = "sqlite:///claims.db"
            if engine == "postgresql":
                url = stack.enter_context(serving_postgres(settings=())).url()
            for what in ("few due", "all due"):
                found = []
                for rows in sorted(options.rows):
                    bench.say(f"claims, {engine}, {rows:,} connections, {what}")
                    claims = await _claims(bench, url, rows=rows, due=rows if what == "all due" else DUE)
                    name = f"claims, {engine}, {what}, {rows:,}"
                    found.append(Figure(name=name, unit="1/s", values=claims))
                figures += [*found, _ratio(found, engine=engine, what=what)]
    return Outcome(figures=figures)


def _ratio(found: Sequence[Figure], *, engine: str, what: str) -> Figure:
    """Tell how many times as fast the fewest are as each round of the most."""
    few = statistics.median(found[0].values)
    return Figure(
        name=f"claims, {engine}, {what}, fewest/most",
        unit="ratio",
        values=[few / value for value in found[-1].values],
        bar=_BAR if what == "few due" else None,
    )


async def _claims(bench: Bench, url: str, *, rows: int, due: int) -> Sequence[float]:
    clock = SystemClock()
    async with _opened(url, bench.folder, _times(clock.now(), rows=rows, due=due)) as store:
        await _round(store, clock)  # so that all begin warm
        return [await _round(store, clock) for _ in range(bench.rounds)]
