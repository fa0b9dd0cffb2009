"""The service's start time and memory.

The start time is from the start of the process to its `READY=1` for systemd. Memory is the resident set, measured when
the service is ready and after the token of each connection has been handed out.
"""

from amo_callback.crypto import Cipher, new_key
from tests.benchmarks.database import BigVendor, fill, serving_amo
from tests.benchmarks.harness import AMO_CALLBACK, Bench, ObservedClient, lag_figures
from tests.benchmarks.report import Figure, Outcome
from tests.service import environment


async def start(bench: Bench, *, connections: int = 100_000, callers: int = 16) -> Outcome:
    """Measure the service without connections, then with all connections."""
    key = new_key()
    async with serving_amo() as (amo, _):
        environ = environment(amo, key)

        async def empty() -> tuple[float, float]:
            async with bench.service(environ, python=AMO_CALLBACK) as server:
                return server.ready - server.began, server.resident

        async def full() -> tuple[float, float, float]:
            async with bench.service(environ, python=AMO_CALLBACK) as server:
                ready, memory = server.ready - server.began, server.resident
                await bench.tokens(server, paths, callers=callers, seconds=None)
                return ready, memory, server.resident

        async def watched() -> ObservedClient:
            """Measure lags in a separate run, because the sampler's memory must not be counted."""
            async with bench.service(environ) as server:
                _, seen = await bench.seen(server, bench.tokens(server, paths, callers=callers, seconds=None))
                return seen

        await empty()  # creates the database and compiles the modules
        starts = (await bench.alternate(what="starts with no connection", empty=empty))["empty"]
        paths = await fill(bench.folder, Cipher([key]), BigVendor(), connections=connections)
        what = f"starts and {connections} hand-outs"
        fulls = (await bench.alternate(what=what, full=full))["full"]
        lags = (await bench.alternate(what=what, watched=watched))["watched"]
    many = f", {connections:,} connections"
    ready, memory, after = zip(*fulls, strict=True)
    return Outcome(
        figures=[
            Figure(name="seconds to READY=1", unit="s", values=[one for one, _ in starts], at_most=0.8),
            Figure(name="memory", unit="MB", values=[one for _, one in starts], at_most=70),
            Figure(name=f"seconds to READY=1{many}", unit="s", values=ready),
            Figure(name=f"memory{many}", unit="MB", values=memory),
            Figure(name=f"memory{many} handed out", unit="MB", values=after, at_most=150),
            *lag_figures(lags, suffix=f"{many} handed out"),
        ]
    )
