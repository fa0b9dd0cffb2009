"""The routes, the OpenAPI document and the listeners of both APIs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.identity import Scope
from amo_callback.web import authorizations, health
from amo_callback.web.client_connections import ListenerOptions
from amo_callback.web.listener import HttpListener, open_listener
from amo_callback.web.openapi import OpenApi, document_text
from amo_callback.web.parsing import Query
from amo_callback.web.private import connections, events, imports, oauth_token, tokens
from amo_callback.web.private.api import PrivateApi
from amo_callback.web.public import account, callback
from amo_callback.web.public.api import PublicApi
from amo_callback.web.public.app_links import app_link_routes
from amo_callback.web.route import Jwt, Reply, Route

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping, Sequence

    from amo_callback.config.settings import Settings
    from amo_callback.web.composition import Services
    from amo_callback.web.route import Call

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_apis(services: Services) -> tuple[PublicApi, PrivateApi]:
    settings = services.settings
    return PublicApi(services, _public_routes(settings)), PrivateApi(services, _private_routes(settings))


def openapi_text(settings: Settings) -> str:
    """Return the OpenAPI document of both APIs with this configuration."""
    apis = ((PrivateApi, _private_routes(settings)), (PublicApi, _public_routes(settings)))
    return document_text(apis, settings.amo.redirect_uri)


@asynccontextmanager
async def open_listeners(
    services: Services, sockets: Mapping[str, Sequence[socket.socket]], max_connections: int
) -> AsyncIterator[Sequence[HttpListener]]:
    """Open the listeners of both APIs, and close them concurrently on exit."""
    server, opened = services.settings.server, []
    public, private = make_apis(services)
    async with AsyncExitStack() as stack:
        for api, address in ((public, server.public), (private, server.private)):
            options = ListenerOptions(
                socket_mode=int(server.socket_mode, 8),
                max_connections=max_connections,
                closed=partial(services.metrics.client_closed, api.name),
            )
            listener = await stack.enter_async_context(
                open_listener(
                    api.make_app(),
                    address,
                    name=api.name,
                    clock=services.core.clock,
                    log=services.log,
                    sockets=sockets.get(api.name, ()),
                    options=options,
                )
            )
            services.metrics.watch_clients(api.name, listener.count_connections)
            opened.append(listener)
        try:
            yield opened
        finally:
            await asyncio.gather(*(listener.close() for listener in opened))


def _public_routes(settings: Settings) -> Sequence[Route]:
    """Return the routes of the public API, all below the base path except `/healthz` and those for https deep links.

    Routes that require a JWT are omitted unless JWTs are configured.
    """
    base, with_users = settings.server.base_path, settings.app.jwt_audience is not None
    routes = [*callback.ROUTES, *account.ROUTES, *authorizations.PUBLIC_ROUTES]
    return [
        *(replace(route, path=base + route.path) for route in routes if with_users or route.access is not Jwt.REQUIRED),
        health.HEALTHZ,
        *app_link_routes(settings.app),
    ]


def _private_routes(settings: Settings) -> Sequence[Route]:
    document = cache(partial(openapi_text, settings))

    async def openapi(_call: Call[None, None]) -> web.Response:
        """Return the OpenAPI document of both APIs."""
        text = await asyncio.to_thread(document)  # the first call generates the document, which is slow
        return web.Response(text=text, content_type="application/json")

    routes = (
        *tokens.ROUTES,
        *oauth_token.ROUTES,
        *imports.ROUTES,
        *connections.ROUTES,
        *events.ROUTES,
        *authorizations.PRIVATE_ROUTES,
        Route(
            "GET",
            "/metrics",
            metrics,
            Scope.READ if settings.server.metrics_auth else None,
            replies={200: Reply(about="The metrics in Prometheus's text format.", type=str, media=("text/plain",))},
        ),
        Route("GET", "/openapi.json", openapi, Scope.READ, answer=OpenApi, obeys_limits=True),
        health.HEALTHZ,
        health.READYZ,
    )
    # Every route parses its query, because a misspelled parameter must not be ignored.
    return [route if route.query is not None else replace(route, query=Query) for route in routes]


async def metrics(call: Call[None, None]) -> web.Response:
    """Return the metrics in Prometheus's text format."""
    text = call.services.metrics.text(health.service_status(call.services))
    return web.Response(body=text, headers={"Content-Type": _METRICS_TYPE})
