"""Jobs for a thread, executed in batches: one batch after the other, while the next one gathers.

To hand a job to a thread and to return its result costs more than most statements do, and an fsync costs as much for
one transaction as for fifty. So jobs that are submitted while a batch runs are executed together in the next one; a
single job is executed at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

J = TypeVar("J")

_LARGEST = 64
"""Jobs of a batch at most, so that the first of them need not wait for long."""


class Batcher(Generic[J]):
    """A queue of jobs; `run` returns the result of each of a batch, or its exception, or raises for all of them."""

    def __init__(self, run: Callable[[Sequence[J]], Awaitable[Sequence[Any]]], *, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: list[tuple[J, asyncio.Future[Any]]] = []
        self._batch: list[tuple[J, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, job: J) -> asyncio.Future[Any]:
        """Return the future result of a job, which is executed whether or not anything waits for it."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run_waiting(), name=self._name)
            self._task.add_done_callback(self._ended)
        return done

    async def _run_waiting(self) -> None:
        while self._waiting:
            self._batch, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
            jobs, futures = zip(*self._batch, strict=True)
            try:
                results = await self._run(jobs)
            except Exception as error:  # noqa: BLE001 -- because each caller must get it, whatever it is
                results = [error] * len(jobs)
            for result, done in zip(results, futures, strict=True):
                if done.done():
                    continue  # its caller was cancelled
                if isinstance(result, BaseException):
                    done.set_exception(result)
                else:
                    done.set_result(result)
        self._task = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Cancel whatever waits where the loop ends, also before a batch has begun."""
        if task.cancelled():
            self._task = None
            for _, done in (*self._batch, *self._waiting):
                done.cancel()
            self._waiting.clear()
