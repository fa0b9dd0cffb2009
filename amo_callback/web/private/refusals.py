"""Keys that were refused: counted, and told once a minute, since whoever tries many would else fill the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.web.log_throttle import LogThrottle

if TYPE_CHECKING:
    from aiohttp import web
    from structlog.typing import FilteringBoundLogger

    from amo_callback.clock import Clock
    from amo_callback.observe.metrics import Metrics


class Refusals:
    """Count refused keys; nobody is slowed or locked out by that: a neighbour with an old key harms no other."""

    def __init__(self, *, clock: Clock, log: FilteringBoundLogger, metrics: Metrics) -> None:
        text = "a key that is not in api.keys: an old one of a backend of yours, or somebody else's try"
        self._log = LogThrottle(lambda count: log.warning("authorization.refused", count=count, text=text), clock=clock)
        self._metrics = metrics

    def count(self) -> None:
        """Count one: the first is told at once, more of them with the minute's end."""
        self._metrics.key_refused()
        self._log.count()

    async def close(self, _app: web.Application) -> None:
        """Tell what is left to tell."""
        self._log.close()
