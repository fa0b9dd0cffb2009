"""The private API: backends and monitoring."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.identity import Scope
from amo_callback.web import authorizations, health
from amo_callback.web.openapi import OpenApi
from amo_callback.web.private import connections, events, imports, tokens
from amo_callback.web.route import Reply, Route, both_methods

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.config.settings import Settings
    from amo_callback.web.route import Call

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(call: Call[None, None]) -> web.Response:
    """Show what is counted, and the state of the service, in Prometheus's text format."""
    text = call.services.metrics.text(health.service_status(call.services))
    return web.Response(body=text, headers={"Content-Type": _METRICS_TYPE})


def private_routes(settings: Settings, document: Callable[[], str]) -> Sequence[Route]:
    """Return the routes; `document` returns the OpenAPI document, as JSON."""

    async def openapi(_call: Call[None, None]) -> web.Response:
        """Describe what both APIs take and answer: this document."""
        text = await asyncio.to_thread(document)  # the first time it takes longer than the loop may be blocked
        return web.Response(text=text, content_type="application/json")

    return [
        *tokens.ROUTES,
        *imports.ROUTES,
        *connections.ROUTES,
        *events.ROUTES,
        *authorizations.PRIVATE_ROUTES,
        Route(
            "GET",
            "/metrics",
            metrics,
            Scope.READ if settings.server.metrics_auth else None,
            replies={200: Reply(about="What is counted, and gauges.", type=str, media=("text/plain",))},
        ),
        Route("GET", "/openapi.json", openapi, Scope.READ, answer=OpenApi),
        *both_methods(health.HEALTHZ),
        *both_methods(health.READYZ),
    ]
