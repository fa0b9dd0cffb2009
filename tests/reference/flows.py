"""Count the service's own calls and SQL statements in a callback, a refresh, a hand-out and an idle sweep.

    python -m tests.reference.flows

Only calls of functions in the package are counted, without those in the stand-in for AMO and the demo. Resuming a
coroutine is not a call.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import amo_callback
from amo_callback.crypto import new_key
from tests.fakes import ShiftedClock
from tests.service import Amo, Running, run_service, serve_amo

_PACKAGE = f"{Path(amo_callback.__file__).parent}/"
_LEFT_OUT = ("amo/sandbox/", "demo/")


@dataclass(frozen=True)
class Flow:
    """The calls of one flow, by module and qualified name, and its statements."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    statements: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """Return the figures as one line of a table."""
        modules = {module for module, _ in self.calls}
        classes = {(module, name.split(".")[0]) for module, name in self.calls if "." in name and "<" not in name}
        in_store = sum(number for (module, _), number in self.calls.items() if module.startswith("store/"))
        figures = (self.calls.total(), in_store, len(modules), len(classes), len(self.statements))
        return f"| {name} | {' | '.join(map(str, figures))} |"


@asynccontextmanager
async def recorded(app: Running) -> AsyncIterator[Flow]:
    """Record the calls on the threads of the loop and the database, and the statements that SQLite runs."""
    flow = Flow()

    def profile(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(_PACKAGE) or frame.f_lasti > _FIRST_INSTRUCTIONS:
            return
        module = file.removeprefix(_PACKAGE)
        if not module.startswith(_LEFT_OUT):
            flow.calls[module, frame.f_code.co_qualname] += 1

    store: Any = app.service.services.store
    connections = [store._writer, store._reader]  # noqa: SLF001 -- because no other way shows its statements
    for connection in connections:
        await connection.set_trace_callback(flow.statements.append)
        await connection.run(lambda _: sys.setprofile(profile))
    sys.setprofile(profile)
    try:
        yield flow
    finally:
        sys.setprofile(None)
        for connection in connections:
            await connection.run(lambda _: sys.setprofile(None))
            await connection.set_trace_callback(None)


_FIRST_INSTRUCTIONS = 4
"""The highest instruction offset at which a call starts; a resumed coroutine continues at a higher offset."""
_ALMOST = 4.0
"""Seconds before a refresh is due; less than the poll interval, so the scheduler sleeps until the due time."""
_SETTLED = 0.5
"""Seconds of real time for other tasks that become due when the clock advances by hours."""


async def until_almost_due(app: Running, connection_id: str) -> None:
    """Advance to just before a refresh, so that other tasks due after hours are done before the measurement."""
    await asyncio.sleep(_SETTLED)  # advancing the clock wakes only tasks that already sleep
    connection = await app.service.services.store.connection(connection_id)
    if connection is None or connection.next_refresh_at is None:
        raise RuntimeError(connection_id)
    left = (connection.next_refresh_at - app.clock.now()).total_seconds()
    app.clock.advance(left - _ALMOST)
    await app.clock.until_sleeping(_ALMOST)
    await asyncio.sleep(_SETTLED)


async def measured(app: Running) -> dict[str, Flow]:
    """Measure each flow once, after it has run before."""
    flows: dict[str, Flow] = {}
    for name in ("first", "callback to 303"):
        async with recorded(app) as flows[name]:
            answer = await app.callback(app.query(), html=True)
        if answer.status != 303:
            raise RuntimeError(answer.status)
        await app.witness.until("connection.connected", times=len(flows))
    connection = str(app.witness.named("connection.connected")[-1].connection_id)
    for name in ("first", "background refresh"):
        await until_almost_due(app, connection)
        times = len(app.witness.named("refresh.succeeded"))
        async with recorded(app) as flows[name]:
            app.clock.advance(_ALMOST)
            await app.witness.until("refresh.succeeded", times=times + 1)
            await app.clock.until_sleeping(5)
    for name in ("first", "first", "warm token"):
        async with recorded(app) as flows[name]:
            await app.private(f"/connections/{connection}/token")
    async with recorded(app) as flows["idle sweep"]:
        app.clock.advance(5)
        await app.clock.until_sleeping(5)
    del flows["first"]
    return flows


@asynccontextmanager
async def serve_apart(clock: ShiftedClock) -> AsyncIterator[Amo]:
    """Serve the stand-in on a separate thread, because it uses the package's listener and must not be counted."""
    serving: Future[Amo] = Future()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serve_amo(clock) as amo:
            serving.set_result(amo)
            await ended.wait()

    thread = Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        yield await asyncio.wrap_future(serving)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


async def main() -> None:
    clock = ShiftedClock()
    with tempfile.TemporaryDirectory() as name:
        async with serve_apart(clock) as amo, run_service(amo, new_key(), Path(name), clock=clock) as app:
            flows = await measured(app)
    lines = ["| flow | own calls | of these in store | modules | classes | SQL statements |", "| --- |" + " ---: |" * 5]
    for name, flow in flows.items():
        lines.append(flow.line(name))
        if "--calls" in sys.argv:
            lines += [f"    {number:4} {module} {call}" for (module, call), number in flow.calls.most_common()]
        if "--statements" in sys.argv:
            lines += [f"    {' '.join(statement.split())[:110]}" for statement in flow.statements]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
