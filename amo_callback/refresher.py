"""The loop that keeps connections fresh: what is due, how many at once, beating."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError, Busy, StoreUnavailable
from amo_callback.model import Event, Level
from amo_callback.tasks import done_within

if TYPE_CHECKING:
    from amo_callback.keeper import Keeper
    from amo_callback.ports import Clock, Observer, Store

_KEEP_GRANTS = 86400.0
"""Seconds for which an expired code is still told apart from one never seen."""
_PRUNE_EVERY = 60.0


class Refresher:
    """Refresh what is due, for as long as the process lives."""

    def __init__(
        self,
        *,
        store: Store,
        keeper: Keeper,
        clock: Clock,
        observer: Observer,
        concurrency: int,
        poll_interval: float,
        put_aside: float,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._clock = clock
        self._observer = observer
        self._concurrency = concurrency
        self._poll_interval = poll_interval
        self._put_aside = put_aside
        self._running: dict[str, asyncio.Task[None]] = {}
        self._aside: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._pruned_at = clock.monotonic() - _PRUNE_EVERY
        self._beat_at = clock.monotonic()

    @property
    def beat_age(self) -> float:
        """Seconds since the loop last came round."""
        return self._clock.monotonic() - self._beat_at

    @property
    def stopped(self) -> bool:
        """Whether the loop was told to end."""
        return self._stopping

    def wake(self) -> None:
        """Look again now: a connection was added, or a refresh has ended."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no refresh from now on, and end the loop."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Sweep until stopped; an iteration that fails is logged, and the loop goes on."""
        while not self._stopping:
            self._beat_at = self._clock.monotonic()
            self._wake.clear()
            try:
                pause = await self._sweep()
            except Exception as error:  # noqa: BLE001 -- because the loop must outlive any bug in one round
                self._tell_failed(error)
                pause = self._poll_interval
            await self._sleep(pause)
        await asyncio.gather(*self._running.values())

    async def _sweep(self) -> float:
        """Start what is due, as far as there are places; return how long nothing more can be."""
        self._forget_aside()
        await self._prune()
        now = self._clock.now()
        places = self._concurrency - len(self._running)
        if places:
            for connection_id in await self._store.due(now=now, limit=places, apart_from=self._apart()):
                self._start(connection_id)
        if len(self._running) >= self._concurrency:
            return self._poll_interval  # the end of one wakes us
        upcoming = await self._store.next_due(now=now, apart_from=self._apart())
        if upcoming is None:
            return self._poll_interval
        return min(max((upcoming - self._clock.now()).total_seconds(), 0.0), self._poll_interval)

    def _apart(self) -> tuple[str, ...]:
        return (*self._running, *self._aside)

    def _start(self, connection_id: str) -> None:
        task = asyncio.create_task(self._refresh(connection_id), name=f"due:{connection_id}")
        self._running[connection_id] = task
        task.add_done_callback(lambda _: self._ended(connection_id))

    def _ended(self, connection_id: str) -> None:
        self._running.pop(connection_id, None)
        self.wake()

    async def _refresh(self, connection_id: str) -> None:
        """Refresh one connection; what went wrong with it was told, and is no concern of the others."""
        try:
            await self._keeper.refresh(connection_id, demand="schedule")
        except (StoreUnavailable, Busy):
            # Nothing could be written down about it: the row still looks due.
            self._aside[connection_id] = self._clock.monotonic() + self._poll_interval
        except AmoCallbackError:
            pass  # the keeper wrote down when to try again, and told
        except Exception:  # noqa: BLE001 -- because a bug in one refresh is not the others' end; the keeper told
            self._aside[connection_id] = self._clock.monotonic() + self._put_aside

    def _forget_aside(self) -> None:
        now = self._clock.monotonic()
        self._aside = {name: until for name, until in self._aside.items() if until > now}

    async def _prune(self) -> None:
        if self._clock.monotonic() - self._pruned_at >= _PRUNE_EVERY:
            self._pruned_at = self._clock.monotonic()
            await self._store.prune(now=self._clock.now(), keep_grants=_KEEP_GRANTS)

    async def _sleep(self, seconds: float) -> None:
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await done_within(woken, seconds=seconds, clock=self._clock)
        finally:
            woken.cancel()

    def _tell_failed(self, error: Exception) -> None:
        self._observer(
            Event(
                name="refresher.failed",
                level=Level.ERROR,
                fields={"error": error.code} if isinstance(error, AmoCallbackError) else {},
                error=None if isinstance(error, AmoCallbackError) else error,
            )
        )
