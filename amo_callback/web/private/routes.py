"""All routes of the private API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, ClassVar

from aiohttp import web
from pydantic import Field

from amo_callback.errors import RetryableError
from amo_callback.identity import MAX_USER, Scope
from amo_callback.web import health
from amo_callback.web.authorization_body import AuthorizationBody, AuthorizationStarted, show_started
from amo_callback.web.openapi import OpenApi
from amo_callback.web.parsing import invalid
from amo_callback.web.private import connections, events, imports, tokens, webhooks
from amo_callback.web.route import Reply, Route, both_methods

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.config.settings import Settings
    from amo_callback.web.route import Call

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class OwnedAuthorizationBody(AuthorizationBody):
    """An authorization request for one of the backend's users."""

    wanted: ClassVar[str] = (
        'the body is {"owner": "…"}, with "state", "code_challenge" and "code_challenge_method" as text or not at all'
    )
    names_field: ClassVar[bool] = True

    owner: Annotated[str, Field(min_length=1, max_length=MAX_USER)] | int


async def start_grant(call: Call[None, OwnedAuthorizationBody]) -> AuthorizationStarted:
    """Start an authorization for `owner`, who becomes an owner of the connection once it is completed."""
    owner = str(call.body.owner)
    if len(owner) > MAX_USER or not owner.isprintable():
        raise invalid("owner", f"at most {MAX_USER} printable characters")
    request = call.body.to_request(user=owner, vouched=True)
    started = await call.services.oauth.authorizations.start(request)
    call.services.log.info("grant.started", key=call.caller, owner=owner)
    return show_started(started)


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
        *webhooks.ROUTES,
        Route(
            "GET",
            "/metrics",
            metrics,
            Scope.READ if settings.server.metrics_auth else None,
            replies={200: Reply(about="What is counted, and gauges.", type=str, media=("text/plain",))},
        ),
        Route(
            "POST",
            "/authorizations",
            start_grant,
            Scope.TOKEN,
            body=OwnedAuthorizationBody,
            answer=AuthorizationStarted,
            errors=(RetryableError,),
        ),
        Route("GET", "/openapi.json", openapi, Scope.READ, answer=OpenApi),
        *both_methods(health.HEALTHZ),
        *both_methods(health.READYZ),
    ]
