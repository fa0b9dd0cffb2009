"""What waits for a thread is done together: one group after the other, while the next one gathers.

To hand something to a thread and to hear of it again costs more than most statements do, and an fsync costs as much for
one unit as for fifty. So whoever comes while a group is under way goes with all who came meanwhile; who comes alone
goes at once, and waits for nobody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

W = TypeVar("W")

_LARGEST = 64
"""How many go together at most, so that the first of them need not wait for long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one of a group."""

    result: Any = None
    error: BaseException | None = None


class Groups(Generic[W]):
    """Gather works, and `run` them in groups; `run` returns an outcome for each, or raises what is told to all."""

    def __init__(self, run: Callable[[Sequence[W]], Awaitable[Sequence[Outcome]]], *, name: str) -> None:
        self._run = run
        self._name = name
        self._waiting: list[tuple[W, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    def join(self, work: W) -> asyncio.Future[Any]:
        """Return where the result of `work` will be; who has joined is run, whether anybody waits for it or not."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._running is None:
            self._start()
        return done

    def _start(self) -> None:
        self._running = asyncio.create_task(self._run_all(), name=self._name)
        self._running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        """Go on where somebody has come meanwhile; where the loop ends, also before a group began, nobody waits on."""
        self._running = None
        if running.cancelled():
            for _, done in self._waiting:
                done.cancel()
            self._waiting.clear()
        elif self._waiting:
            self._start()

    async def _run_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
            for outcome, (_, done) in zip(await self._outcomes(group), group, strict=True):
                _tell(done, outcome)

    async def _outcomes(self, group: Sequence[tuple[W, asyncio.Future[Any]]]) -> Sequence[Outcome]:
        try:
            return await self._run([work for work, _ in group])
        except Exception as error:  # noqa: BLE001 -- because whoever waits must hear of it, whatever it is
            return [Outcome(error=error)] * len(group)
        except BaseException:  # the loop ends
            for _, done in group:
                done.cancel()
            raise


def _tell(done: asyncio.Future[Any], outcome: Outcome) -> None:
    if done.done():
        return  # whoever waited has gone away
    if outcome.error is not None:
        done.set_exception(outcome.error)
    else:
        done.set_result(outcome.result)
