"""`GET /metrics`: what is counted and how the service does, in Prometheus's text format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.identity import Scope
from amo_callback.web.health import READINESS
from amo_callback.web.keys import METRICS
from amo_callback.web.operation import Operation, Reply, describe
from amo_callback.web.private.authorization import require
from amo_callback.web.private.operation import operation

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COUNTED = {200: Reply(about="What is counted, and how the service does.", shape=str, media=("text/plain",))}


def routes(*, guarded: bool) -> Sequence[web.RouteDef]:
    """Return this module's routes; where it is `guarded`, an API key is asked for."""
    return [web.get("/metrics", metrics_for_readers if guarded else metrics, allow_head=False)]


@describe(Operation(id="metrics", replies=_COUNTED))
async def metrics(request: web.Request) -> web.Response:
    """Tell what is counted and how the service does, in Prometheus's text format."""
    return web.Response(
        body=request.app[METRICS].text(request.app[READINESS].condition()), headers={"Content-Type": _TYPE}
    )


@operation("metrics", scope=Scope.READ, answer=None, more=_COUNTED)
async def metrics_for_readers(request: web.Request) -> web.Response:
    """Tell what is counted and how the service does, in Prometheus's text format."""
    require(request, Scope.READ)
    return await metrics(request)
