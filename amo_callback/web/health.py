"""Alive, and ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import AmoCallbackError
from amo_callback.tasks import done_within

if TYPE_CHECKING:
    from amo_callback.ports import Clock, Store
    from amo_callback.refresher import Refresher

_STORE_PATIENCE = 2.0


class Readiness:
    """Tell whether the service can do its work."""

    def __init__(self, *, store: Store, refresher: Refresher, clock: Clock, poll_interval: float) -> None:
        self._store = store
        self._refresher = refresher
        self._clock = clock
        self._oldest_beat = max(3 * poll_interval, 15.0)

    async def checks(self) -> dict[str, dict[str, object]]:
        """Return each check by its name: whether it is `ok`, and a `detail` for people."""
        store, refresher = await self._check_store(), self._check_refresher()
        return {
            name: {"ok": ok, "detail": detail}
            for name, (ok, detail) in {"store": store, "refresher": refresher}.items()
        }

    async def _check_store(self) -> tuple[bool, str]:
        ping = asyncio.ensure_future(self._store.ping())
        if not await done_within(ping, seconds=_STORE_PATIENCE, clock=self._clock):
            ping.cancel()
            return False, f"no answer within {_STORE_PATIENCE:g} s"
        error = ping.exception()
        if isinstance(error, AmoCallbackError):
            return False, error.code
        ping.result()
        return True, "readable"

    def _check_refresher(self) -> tuple[bool, str]:
        age = self._refresher.beat_age
        return age <= self._oldest_beat, f"last beat {age:.1f} s ago"


READINESS = web.AppKey("readiness", Readiness)


async def healthz(_request: web.Request) -> web.Response:
    """Answer that the process is alive."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Answer 200 where every check is good, else 503."""
    checks = await request.app[READINESS].checks()
    ready = all(check["ok"] for check in checks.values())
    return web.json_response(
        {"status": "ready" if ready else "not ready", "checks": checks}, status=200 if ready else 503
    )
