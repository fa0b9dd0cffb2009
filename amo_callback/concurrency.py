"""Work that must not be cut off, and waits that must not be endless."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from amo_callback.clock import Clock

T = TypeVar("T")


async def unbroken(work: Awaitable[T]) -> T:
    """Run `work` to its end even where the caller is cancelled meanwhile; the cancellation follows then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn: the caller is gone
        raise


async def done_within(task: asyncio.Future[T], *, seconds: float, clock: Clock) -> bool:
    """Wait for `task` at most `seconds`; return whether it is done. It goes on where it is not."""
    timer = asyncio.ensure_future(clock.sleep(seconds))
    both: set[asyncio.Future[T] | asyncio.Future[None]] = {task, timer}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
    if not task.done():
        timer.result()  # a clock that fails must not make its caller spin
    return task.done()


async def rest(woken: asyncio.Event, *, seconds: float, clock: Clock) -> None:
    """Wait until `woken` is set, at most `seconds`."""
    waiting = asyncio.ensure_future(woken.wait())
    try:
        await done_within(waiting, seconds=seconds, clock=clock)
    finally:
        waiting.cancel()


async def done_unless(
    work: Coroutine[object, object, object],
    *,
    stop: asyncio.Event,
    grace: float,
    clock: Clock,
    limit: float | None = None,
) -> bool:
    """Wait for `work`, at most `limit` seconds, and `grace` seconds once `stop` is set; return whether it is done.

    Where it is not, it is cancelled.
    """
    task: asyncio.Future[object] = asyncio.ensure_future(work)
    ends: list[asyncio.Future[None]] = []
    try:
        await asyncio.sleep(0)
        if not task.done():  # else it was done at once, as nearly always, and needs no timers
            ends.append(asyncio.ensure_future(_after(stop, grace, clock)))
            if limit is not None:
                ends.append(asyncio.ensure_future(clock.sleep(limit)))
            both: list[asyncio.Future[object] | asyncio.Future[None]] = [task, *ends]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        task.cancel()
        for end in ends:
            end.cancel()


async def _after(stop: asyncio.Event, grace: float, clock: Clock) -> None:
    await stop.wait()
    if grace > 0:
        await clock.sleep(grace)
