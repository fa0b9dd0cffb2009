"""Both doors, built and not started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.identity import ApiKeys, read_api_keys
from amo_callback.web import health, openapi
from amo_callback.web.keys import (
    AMO,
    API_KEYS,
    AUTHORIZATIONS,
    CIPHER,
    CLOCK,
    CONNECT,
    CUSTODY,
    HANDOUT,
    LOG,
    METRICS,
    PAGES,
    PROXIES,
    REDEEMER,
    SETTINGS,
    STORE,
    USERS,
)
from amo_callback.web.pages.render import Pages
from amo_callback.web.peer import TrustedProxies
from amo_callback.web.private import authorizations as private_authorizations
from amo_callback.web.private import connections, events, freezing, imports, metrics, notices, tokens
from amo_callback.web.private.authorization import authorize
from amo_callback.web.private.errors import problem_errors
from amo_callback.web.private.refusals import Refusals
from amo_callback.web.probe import answer_probe
from amo_callback.web.public import authorizations, callback, exchange, hooks, returning, users
from amo_callback.web.public.errors import envelope_errors
from amo_callback.web.public.headers import protect
from amo_callback.web.requests import log_requests

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware
    from structlog.typing import FilteringBoundLogger

    from amo_callback.config import Settings
    from amo_callback.web.keys import Services

BODY_LIMIT = 64 * 1024
"""Bytes of a request's body that are read at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Apps:
    """The two doors as applications."""

    public: web.Application
    private: web.Application


def make_apps(settings: Settings, services: Services, log: FilteringBoundLogger) -> Apps:
    """Build both doors."""
    apps = Apps(public=_public(settings, services, log), private=_private(settings, services, log))
    apps.private[openapi.DOCUMENT] = openapi.Document(
        public=apps.public, private=apps.private, redirect_uri=settings.amo.redirect_uri
    )
    return apps


def _public(settings: Settings, services: Services, log: FilteringBoundLogger) -> web.Application:
    app = _app(settings, services, log, door="public", errors=envelope_errors)
    app[AMO] = services.amo
    app[CONNECT] = services.connecting.connect
    app[CUSTODY] = services.custody
    app[STORE] = services.store
    app[AUTHORIZATIONS] = services.connecting.authorizations
    app[REDEEMER] = services.connecting.redeemer
    app[CIPHER] = services.cipher
    app[PAGES] = Pages(app_name=settings.app.name)
    base = settings.server.base_path
    app.add_routes(
        [
            *callback.routes(base),
            *returning.routes(base),
            *exchange.routes(base),
            *hooks.routes(base),
            *authorizations.routes(base),
            web.get("/healthz", health.healthz),
        ]
    )
    if services.users is not None:
        app[USERS] = services.users
        app.add_routes([*authorizations.app_routes(base), *users.routes(base)])
    app.on_response_prepare.append(protect)
    app.on_response_prepare.append(answer_probe)
    return app


def _private(settings: Settings, services: Services, log: FilteringBoundLogger) -> web.Application:
    app = _app(settings, services, log, door="private", errors=problem_errors)
    refusals = Refusals(clock=services.clock, log=log, metrics=services.metrics)
    open_paths = {"/healthz", "/readyz", *(() if settings.server.metrics_auth else ("/metrics",))}
    app.middlewares.append(authorize(open_paths=open_paths, refusals=refusals))
    app.on_cleanup.append(refusals.close)
    app[AUTHORIZATIONS] = services.connecting.authorizations
    app[HANDOUT] = services.custody.handout
    app[CUSTODY] = services.custody
    app[STORE] = services.store
    app[AMO] = services.amo
    app[CIPHER] = services.cipher
    app[API_KEYS] = ApiKeys(read_api_keys(settings.api.keys.get_secret_value()))
    app[health.READINESS] = health.Readiness(
        store=services.store,
        custody=services.custody,
        poll_interval=settings.refresh.poll_interval,
        notices_delivered=settings.webhook.url is not None,
    )
    app.add_routes(
        [
            *tokens.routes(),
            *imports.routes(),
            *connections.routes(),
            *freezing.routes(),
            *events.routes(),
            *notices.routes(),
            *metrics.routes(guarded=settings.server.metrics_auth),
            *private_authorizations.routes(),
            *openapi.routes(),
            web.get("/healthz", health.healthz),
            web.get("/readyz", health.readyz),
        ]
    )
    app.on_response_prepare.append(answer_probe)
    return app


def _app(
    settings: Settings, services: Services, log: FilteringBoundLogger, *, door: str, errors: Middleware
) -> web.Application:
    app = web.Application(
        middlewares=[log_requests(log, door=door, access=settings.log.access), errors],
        client_max_size=BODY_LIMIT,
    )
    app[SETTINGS] = settings
    app[PROXIES] = TrustedProxies(settings.server.trusted_proxies)
    app[CLOCK] = services.clock
    app[LOG] = log
    app[METRICS] = services.metrics
    return app
