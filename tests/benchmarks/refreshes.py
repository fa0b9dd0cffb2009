"""Refreshes by the scheduler: a sweep of all connections, and the claims of a store."""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from datetime import datetime
from functools import partial
from pathlib import Path

import asyncpg

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher, new_key
from amo_callback.store import Store, open_store
from amo_callback.store.engine import to_micros
from tests.benchmarks.database import count, fill, make_due, serving_amo, settle
from tests.benchmarks.harness import Bench, ObservedClient, lag_figures, ratios
from tests.benchmarks.report import Figure, Outcome
from tests.builders import DAY, a_claim, a_refreshed
from tests.postgres import Databases, Server, serving_postgres
from tests.service import environment

BATCH, BATCHES = 16, 20
"""Connections claimed in one round of the scheduler (its default concurrency), and the number of rounds."""
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) "
    "SELECT n, randomblob(1000) AS pair FROM numbers)",
    "postgresql": "(SELECT n, decode(repeat(md5(n::text), 62), 'hex') AS pair "
    "FROM generate_series(1, {rows}) AS n) AS t",
}
_INSERT = """
INSERT INTO connections (
    id, account_id, user_id, domain, client_id, status, sealed_pair, access_issued_at, access_expires_at,
    refresh_expires_at, next_refresh_at, connected_at
)
SELECT 'id' || n, n, '1', 'a' || n || '.amocrm.ru', 'c619', 'active', pair, {issued}, {expires} + n, {dies} + n,
    CASE WHEN n <= {due} THEN {past} + n ELSE {future} + n END, {issued}
FROM {numbers}
"""


async def sweep(bench: Bench, *, connections: int = 10_000, concurrency: int = 64, latency: float = 0.1) -> Outcome:
    """Measure refreshes when every connection is due; the service is restarted for each round."""
    key, version = new_key(), 1
    async with serving_amo(latency=latency) as (amo, fake):
        await fill(bench.folder, Cipher([key]), fake, connections=connections)
        environ = environment(amo, key, REFRESH__CONCURRENCY=str(concurrency))

        async def swept() -> None:
            async with asyncio.timeout(600):
                stored = "pair_version = ? AND status = 'active' AND attempt IS NULL"
                while count(bench.folder, stored, version) < connections:
                    await asyncio.sleep(0.05)

        async def first_asked(times: int) -> datetime:
            await amo.sandbox.until_asked(times)
            return fake.now()

        async def measure() -> tuple[float, ObservedClient]:
            nonlocal version
            version += 1
            make_due(bench.folder)
            settle()
            noted = len(fake.ledger.entries)
            first = asyncio.create_task(first_asked(amo.sandbox.requests + 1))
            async with bench.service(environ) as service:
                _, seen = await bench.seen(service, swept())
            entries = fake.ledger.entries[noted:]
            if len(entries) != connections or not all(entry.spent for entry in entries):
                raise RuntimeError(f"AMO was asked {len(entries)} times for {connections} refreshes")
            return connections / (entries[-1].at - await first).total_seconds(), seen

        rounds = (await bench.alternate(what=f"sweep of {connections} connections", ours=measure))["ours"]
    possible, speeds = concurrency / latency, [speed for speed, _ in rounds]
    return Outcome(
        figures=[
            Figure(name="refreshes", unit="1/s", values=speeds),
            ratios("refreshes, of what is possible", speeds, [possible] * len(speeds), at_least=0.9),
            Figure(name="CPU a refresh", unit="us", values=[seen.cpu / connections * 1e6 for _, seen in rounds]),
            *lag_figures([seen for _, seen in rounds]),
        ],
        notes=[f"{concurrency} at once, {latency} s each: {possible:.0f} refreshes a second are possible"],
    )


async def claims(bench: Bench, *, rows: int = 1_000_000, due: int = 1000) -> Outcome:
    """Measure the ratio of claims with a thousand connections to claims with very many, on each engine.

    A batch does the same as the scheduler: one query for due connections, then a claim of each, in successive
    committed writes. Between batches, outside the measured time, the claimed connections are refreshed and become the
    last due ones. Databases write as in production (`synchronous=FULL`, `fsync=on`), to the temporary folder's disk.
    """
    figures: list[Figure] = []
    for engine in ("sqlite", "postgresql"):
        name = f"claims, {engine}"
        async with AsyncExitStack() as stack:
            server = stack.enter_context(serving_postgres(settings=())) if engine == "postgresql" else None
            stores = [await _filled(stack, bench.folder, server, rows=one, due=due) for one in (1000, rows)]
            for store in stores:
                await _claims(store)  # warm up before the first round
            few, many = (partial(_claims, store) for store in stores)
            found = await bench.alternate(what=name, few=few, many=many)
        figures += [
            Figure(name=f"{name}, 1,000 connections", unit="1/s", values=found["few"]),
            Figure(name=f"{name}, {rows:,} connections", unit="1/s", values=found["many"]),
            ratios(f"{name}, fewest/most", found["few"], found["many"], at_most=1.5),
        ]
    return Outcome(figures=figures)


async def _filled(stack: AsyncExitStack, folder: Path, server: Server | None, *, rows: int, due: int) -> Store:
    """Open a store that contains `rows` connections, of which `due` are due."""
    now, day = to_micros(SystemClock().now()), DAY // DAY.resolution
    engine = "postgresql" if server else "sqlite"
    insert = _INSERT.format(
        numbers=_NUMBERS[engine].format(rows=rows),
        issued=now - day // 2,
        expires=now + day // 2,
        dies=now + 89 * day,
        due=due,
        past=now - day // 24,
        future=now + day // 4,
    )
    url = f"sqlite:///{rows}.db"
    if server is not None:
        url = await stack.enter_async_context(Databases(address=server.url()).fresh())
    store = await stack.enter_async_context(open_store(url, folder=folder, clock=SystemClock()))
    if server is None:
        await asyncio.to_thread(_run_sqlite, folder / f"{rows}.db", [insert, "ANALYZE"])
    else:
        connection = await asyncpg.connect(url)
        for statement in (insert, "VACUUM ANALYZE connections"):
            await connection.execute(statement)
        await connection.close()
    return store


def _run_sqlite(file: Path, statements: Sequence[str]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)


async def _claims(store: Store) -> float:
    """Return the claims per second over all batches, without the time of the refreshes after each batch."""
    clock, seconds = SystemClock(), 0.0
    for _ in range(BATCHES):
        began = time.perf_counter()
        due = (await store.due(now=clock.now(), limit=BATCH, exclude=())).refreshes
        claimed = [await store.claim(a_claim(connection)) for connection in due]
        seconds += time.perf_counter() - began
        assert len(due) == BATCH
        for connection in claimed:
            assert connection is not None
            await store.save_refreshed(a_refreshed(connection, at=clock.now(), next_refresh_at=clock.now()))
    return BATCH * BATCHES / seconds
