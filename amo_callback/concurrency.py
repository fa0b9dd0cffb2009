"""Shared tasks, work that must not be cancelled, and waits with a time limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from amo_callback.clock import Clock

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Tasks by key: concurrent callers with the same key share one task."""

    def __init__(self, name: str, *, on_end: Callable[[str, asyncio.Task[T]], None]) -> None:
        self._name = name
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[tuple[str, asyncio.Task[T]]]:
        return iter(list(self._tasks.items()))

    def start(self, key: str, work: Callable[[], Coroutine[object, object, T]]) -> tuple[asyncio.Task[T], bool]:
        """Return the task for `key`, and whether this call started it."""
        running = self._tasks.get(key)
        if running is not None and not running.done():
            return running, False
        task = asyncio.create_task(work(), name=f"{self._name}:{key[:8]}")
        self._tasks[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))
        return task, True

    def _ended(self, key: str, task: asyncio.Task[T]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        self._on_end(key, task)

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks.values())


async def run_to_completion(work: Awaitable[T]) -> T:
    """Run `work` to completion even if the caller is cancelled; `CancelledError` is raised after `work` ends."""
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
            task.exception()  # retrieve the exception so that asyncio does not warn
        raise


async def wait_at_most(task: asyncio.Future[T], *, seconds: float, clock: Clock) -> bool:
    """Wait for `task` for at most `seconds` without cancelling it; return whether it is done."""
    timer = asyncio.ensure_future(clock.sleep(seconds))
    both: set[asyncio.Future[T] | asyncio.Future[None]] = {task, timer}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
    if not task.done():
        timer.result()  # raise a clock error; otherwise, the caller may loop without waiting
    return task.done()


async def sleep_until_woken(woken: asyncio.Event, *, seconds: float, clock: Clock) -> None:
    """Wait until `woken` is set, for at most `seconds`."""
    waiting = asyncio.ensure_future(woken.wait())
    try:
        await wait_at_most(waiting, seconds=seconds, clock=clock)
    finally:
        waiting.cancel()


async def wait_or_stop(
    work: Coroutine[object, object, object],
    *,
    stop: asyncio.Event,
    grace: float,
    clock: Clock,
    limit: float | None = None,
) -> bool:
    """Run `work` for at most `limit` seconds, and for at most `grace` seconds after `stop` is set.

    Returns whether `work` is done; unfinished work is cancelled.
    """
    futures: list[asyncio.Future[object]] = [asyncio.ensure_future(work)]
    task = futures[0]
    try:
        await asyncio.sleep(0)
        if not task.done():  # most work is done by now and needs no timers
            futures.append(asyncio.ensure_future(_after(stop, grace, clock)))
            if limit is not None:
                futures.append(asyncio.ensure_future(clock.sleep(limit)))
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        for ended in [future for future in futures if future.done()]:
            ended.result()  # raise a clock error; otherwise, the caller may loop without waiting
        return task.done()
    finally:
        for future in futures:
            future.cancel()


async def _after(stop: asyncio.Event, grace: float, clock: Clock) -> None:
    await stop.wait()
    if grace > 0:
        await clock.sleep(grace)
