"""Log lines for events that a stranger can repeat without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.clock import Clock

_MINUTE = 60.0


class LogThrottle:
    """Log the first of many equal events immediately, then their total every minute."""

    def __init__(self, write: Callable[[int], None], *, clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._unwritten = 0
        self._waiting: asyncio.Task[None] | None = None

    def count(self) -> None:
        """Count one event."""
        self._unwritten += 1
        if self._waiting is None or self._waiting.done():
            self._flush()
            self._waiting = asyncio.create_task(self._flush_later(), name="log throttle")

    def close(self) -> None:
        """Log what is not logged yet."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._flush()

    async def _flush_later(self) -> None:
        while True:
            await self._clock.sleep(_MINUTE)
            if not self._unwritten:
                return
            self._flush()

    def _flush(self) -> None:
        count, self._unwritten = self._unwritten, 0
        if count:
            self._write(count)
