"""Keys that were refused: counted, and told once a minute, since whoever tries many would else fill the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web
    from structlog.typing import FilteringBoundLogger

    from amo_callback.ports import Clock, Metrics

_MINUTE = 60.0


class Refusals:
    """Count refused keys; nobody is slowed or locked out by that: a neighbour with an old key harms no other."""

    def __init__(self, *, clock: Clock, log: FilteringBoundLogger, metrics: Metrics) -> None:
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._untold = 0
        self._telling: asyncio.Task[None] | None = None

    def count(self) -> None:
        """Count one: the first is told at once, more of them with the minute's end."""
        self._metrics.key_refused()
        self._untold += 1
        if self._telling is None or self._telling.done():
            self._tell()
            self._telling = asyncio.create_task(self._tell_later(), name="refusals")

    async def close(self, _app: web.Application) -> None:
        """Tell what is left to tell."""
        if self._telling is not None:
            self._telling.cancel()
        self._tell()

    async def _tell_later(self) -> None:
        while True:
            await self._clock.sleep(_MINUTE)
            if not self._untold:
                return
            self._tell()

    def _tell(self) -> None:
        if self._untold:
            text = "a key that is not in api.keys: an old one of a backend of yours, or somebody else's try"
            self._log.warning("authorization.refused", count=self._untold, text=text)
        self._untold = 0
