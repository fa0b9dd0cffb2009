"""Starting an authorization: `POST {base}/authorizations` for the app, `GET {base}/connect` as a plain link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import ValidationError

from amo_callback.errors import AmoCallbackError, InvalidRequest, RetryableError, TooManyAttempts
from amo_callback.grant import CallbackParams
from amo_callback.web.auth import Jwt
from amo_callback.web.authorization_body import AuthorizationBody, AuthorizationStarted, show_started
from amo_callback.web.public.api import ERROR_PAGES, PREFETCHED, TO_APP, head_route, is_prefetch
from amo_callback.web.public.envelope import Success
from amo_callback.web.public.return_response import choose, failed, redirect
from amo_callback.web.route import Reply, Route

if TYPE_CHECKING:
    from amo_callback.web.route import Call


async def start(call: Call[None, AuthorizationBody]) -> Success[AuthorizationStarted]:
    """Start an authorization for the app's user: where to send the browser, and the state that will come back."""
    started = await call.services.oauth.authorizations.start(call.body.to_request(user=call.caller))
    return Success(data=show_started(started), message="Open authorize_url in a browser.")


async def connect(call: Call[None, None]) -> web.Response:
    """Start an authorization for the user who follows a link, and redirect to AMO's consent page."""
    if is_prefetch(call.request):
        return web.Response(status=204)
    try:
        request = _read_query(call.request).to_request()
        started = await call.services.oauth.authorizations.start(request, address=call.address)
    except AmoCallbackError as error:
        kind = choose(call, CallbackParams())
        return failed(call, kind, error=error.deep_link_error, state=None, fields=error.fields)
    return redirect(303, started.authorize_url)


def _read_query(request: web.Request) -> AuthorizationBody:
    """Read the query: each parameter once; others are ignored."""
    given = {name: request.query.getall(name) for name in AuthorizationBody.model_fields if name in request.query}
    try:
        if any(len(values) > 1 for values in given.values()):
            raise InvalidRequest
        return AuthorizationBody.model_validate({name: values[0] for name, values in given.items()})
    except ValidationError:
        raise InvalidRequest from None


START_ROUTE = Route(
    "POST",
    "/authorizations",
    start,
    Jwt.REQUIRED,
    body=AuthorizationBody,
    answer=Success[AuthorizationStarted],
    errors=(TooManyAttempts, RetryableError),
)
CONNECT_ROUTES = (
    Route(
        "GET",
        "/connect",
        connect,
        unparsed_query=AuthorizationBody,
        replies={
            204: PREFETCHED,
            302: TO_APP,
            303: Reply(about="To AMO's consent page.", headers=("Location",)),
            **ERROR_PAGES,
        },
    ),
    head_route("/connect"),  # it issues no state
)
