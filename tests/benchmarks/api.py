"""Both APIs under load: hand-outs, also while connections are refreshed, and callbacks, also during a backlog."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial

import aiohttp

from amo_callback.clock import SystemClock
from amo_callback.crypto import Cipher, new_key
from amo_callback.store.engine import to_micros
from tests.benchmarks.database import count, fill, make_due, serving_amo
from tests.benchmarks.harness import WRK, Bench, Load, Server, cpu_of, lag_figures, load_figures, ratios
from tests.benchmarks.report import Figure, Outcome
from tests.service import API_KEY, environment

_PATHS = 100
"""The number of connections whose tokens are requested in turn; the database contains all connections."""
_KEY = {"Authorization": f"Bearer {API_KEY}"}
_NO_LIMIT = {"LIMITS__FAILED_CODES": "1000000"}


async def handout(bench: Bench, *, seconds: float = 4.0, connections: int = 1000, callers: int = 64) -> Outcome:
    """Measure access-token hand-outs from memory, and bare aiohttp with the same bytes and headers."""
    key, figures = new_key(), list[Figure]()
    curves: Mapping[str, Sequence[Sequence[float]]] = {}
    async with serving_amo() as (amo, fake):
        paths = (await fill(bench.folder, Cipher([key]), fake, connections=connections))[:_PATHS]
        environ, answer = environment(amo, key), bench.folder / "answer"
        async with bench.service(environ) as service, aiohttp.ClientSession(headers=_KEY) as http:
            answer.write_bytes(await (await http.get(service.private + paths[0], raise_for_status=True)).read())
        for access in (False, True):
            suffix = ", access lines on" if access else ""
            async with bench.bare("answer", str(answer)) as bare, bench.service(environ, access=access) as service:
                for server in (bare, service):  # the first hand-outs fill the cache
                    await bench.tokens(server, paths, callers=callers, seconds=1)

                async def load(server: Server, callers: int = callers) -> Load:
                    return await bench.seen(server, bench.tokens(server, paths, callers=callers, seconds=seconds))

                found = await bench.alternate(
                    what=f"hand-outs{suffix}", bare=lambda: load(bare), ours=lambda: load(service)
                )
                if not access:
                    servers = {"amo-callback": service, "bare aiohttp": bare}
                    curves = await bench.curves_of({name: partial(load, one) for name, one in servers.items()})
            ours, theirs = found["ours"], found["bare"]
            speeds = ([one.per_second for one, _ in loads] for loads in (ours, theirs))
            figures += [
                *load_figures(ours, what="hand-outs", suffix=suffix),
                *load_figures(theirs, what="hand-outs", suffix=f", bare{suffix}"),
                ratios(f"hand-outs, ours/bare{suffix}", *speeds, at_least=None if access else 0.6),
                ratios(f"CPU a request, ours/bare{suffix}", cpu_of(ours), cpu_of(theirs)),
                *lag_figures([seen for _, seen in ours], suffix=suffix, at_most=None if access else 20),
            ]
    note = f"{'wrk' if WRK else 'our own client'}, {callers} callers, {connections} connections"
    return Outcome(figures=figures, curves=curves, notes=[note])


async def refreshing(
    bench: Bench,
    *,
    seconds: float = 4.0,
    connections: int = 1000,
    per_second: int = 50,
    callers: int = 64,
    latency: float = 0.2,
) -> Outcome:
    """Measure hand-outs while backends request a refresh of every connection."""
    key = new_key()
    async with serving_amo(latency=latency) as (amo, fake):
        paths = await fill(bench.folder, Cipher([key]), fake, connections=connections)
        async with bench.service(environment(amo, key, AMO__REQUESTS_PER_SECOND=str(per_second))) as service:
            await bench.tokens(service, paths[:_PATHS], callers=callers, seconds=1)
            refreshes = asyncio.create_task(_refresh(service, paths))
            loads: list[Load] = []
            while True:
                asking = bench.tokens(service, paths[:_PATHS], callers=callers, seconds=seconds)
                load = await bench.seen(service, asking)
                if refreshes.done() and loads:
                    break  # the refreshes ended before this load did
                loads.append(load)
            figures = [
                *load_figures(loads, what="hand-outs"),
                Figure(name="refreshes", unit="1/s", values=[await refreshes]),
                *lag_figures([seen for _, seen in loads]),
            ]
    note = f"the values are of {len(loads)} loads, as many as the refreshes gave time for; {callers} callers"
    return Outcome(figures=figures, notes=[note])


async def _refresh(server: Server, paths: Sequence[str]) -> float:
    """Refresh all connections, as many at a time as the service does; return the refreshes per second."""
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=16)
    async with aiohttp.ClientSession(headers=_KEY, connector=connector, raise_for_status=True) as http:

        async def refresh(path: str) -> None:
            async with http.post(server.private + path.replace("/token", "/refresh")) as answer:
                await answer.read()

        await asyncio.gather(*map(refresh, paths))
    return len(paths) / (time.perf_counter() - began)


async def callback(bench: Bench, *, accounts: int = 2000, relay_accounts: int = 8000, callers: int = 16) -> Outcome:
    """Measure callbacks with their durable writes, and a relay that also calls AMO but stores nothing.

    Each callback is of a new account and adds a row. The relay gets more callbacks, because it is faster and CPU time
    is measured coarsely.
    """
    async with serving_amo() as (amo, fake):
        environ = environment(amo, new_key(), **_NO_LIMIT)
        async with bench.bare("relay", amo.endpoint) as relay, bench.service(environ) as service:
            for server in (relay, service):  # warm up before the first round
                await bench.callbacks(server, fake.callback_paths(100), callers=callers)

            async def load(server: Server, accounts: int, callers: int = callers) -> Load:
                return await bench.seen(server, bench.callbacks(server, fake.callback_paths(accounts), callers=callers))

            found = await bench.alternate(
                what="callbacks", relay=lambda: load(relay, relay_accounts), ours=lambda: load(service, accounts)
            )
            curves = await bench.curves_of(
                {
                    "amo-callback": partial(load, service, accounts // 2),
                    "bare relay": partial(load, relay, relay_accounts),
                }
            )
    return Outcome(
        figures=[
            *load_figures(found["ours"], what="callbacks"),
            *load_figures(found["relay"], what="callbacks", suffix=", relay"),
            ratios("CPU a request, ours/relay", cpu_of(found["ours"]), cpu_of(found["relay"]), at_most=3.0),
            *lag_figures([seen for _, seen in found["ours"]]),
        ],
        curves=curves,
        notes=[f"{callers} callers, {accounts} new accounts a load"],
    )


async def backlog(
    bench: Bench,
    *,
    seconds: float = 30.0,
    connections: int = 5000,
    per_second: float = 2.0,
    limit: float = 5.0,
    latency: float = 0.1,
) -> Outcome:
    """Measure callbacks while thousands of refreshes wait for the rate limit.

    Callbacks are due at even intervals, and do not wait for earlier answers. Latency counts from the due time.
    """
    key, dues = new_key(), [number / per_second for number in range(int(per_second * seconds))]
    async with serving_amo(latency=latency) as (amo, fake):
        await fill(bench.folder, Cipher([key]), fake, connections=connections)
        make_due(bench.folder)
        environ = environment(amo, key, AMO__REQUESTS_PER_SECOND=str(limit), **_NO_LIMIT)
        async with bench.service(environ) as service:

            async def load() -> Load:
                return await bench.seen(service, bench.callbacks(service, fake.callback_paths(len(dues)), dues=dues))

            loads = (await bench.alternate(what=f"callbacks while {connections} refreshes wait", ours=load))["ours"]
            left = count(bench.folder, "next_refresh_at <= ?", to_micros(SystemClock().now()))
            if not left:
                raise RuntimeError("no refresh waits any more: more connections are needed")
    over = [answers.p99 - latency * 1000 for answers, _ in loads]
    figures = [
        Figure(name="p50", unit="ms", values=[answers.p50 for answers, _ in loads]),
        Figure(name="p99", unit="ms", values=[answers.p99 for answers, _ in loads]),
        Figure(name="p99 over AMO's latency", unit="ms", values=over, at_most=300),
        *lag_figures([seen for _, seen in loads]),
    ]
    notes = [
        f"{limit:g} requests a second are allowed; callbacks come {per_second:g} a second, evenly",
        f"{left} of {connections} refreshes waited in the end",
    ]
    return Outcome(figures=figures, notes=notes)
