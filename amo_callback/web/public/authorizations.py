"""Starting a grant: `POST {base}/authorizations` for the app, `GET {base}/connect` as a plain link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import ValidationError

from amo_callback.errors import AmoCallbackError, InvalidRequest
from amo_callback.grant import Redirect
from amo_callback.web.answers import FailureCode, success
from amo_callback.web.keys import AUTHORIZATIONS, PROXIES, SETTINGS
from amo_callback.web.operation import Jwt, Reply
from amo_callback.web.public.bodies import read_body
from amo_callback.web.public.look import is_prefetch, without_work
from amo_callback.web.public.operation import PAGES, PREFETCH, TO_APP, app_operation, page_operation
from amo_callback.web.public.users import user_of
from amo_callback.web.public.way_back import choose_way, fail, send_on
from amo_callback.web.starting import STARTED, StartBody, StartedShape, read_request, started_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

_WANTED = 'The body may hold "state" and, together, "code_challenge" and "code_challenge_method": "S256"; each is text.'


def app_routes(base: str) -> Sequence[web.RouteDef]:
    """Return the routes that are there where users' JWTs are configured."""
    return [web.post(f"{base}/authorizations", start)]


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return the routes that are always there; HEAD is not GET here, or it would issue a state."""
    return [web.get(f"{base}/connect", connect, allow_head=False), web.head(f"{base}/connect", without_work)]


@app_operation(
    "start",
    jwt=Jwt.REQUIRED,
    body=StartBody,
    answer=StartedShape,
    example=STARTED,
    failures={429: [FailureCode.RATE_LIMITED], 503: [FailureCode.AMO_UNAVAILABLE]},
)
async def start(request: web.Request) -> web.Response:
    """Start a grant for the app's user: where to send the browser, and the state that will come back."""
    user = await user_of(request)
    given = read_request(await read_body(request, StartBody, wanted=_WANTED), user=user)
    started = await request.app[AUTHORIZATIONS].start(given)
    return success(started_shape(started), "Open authorize_url in a browser.")


@page_operation(
    "connect",
    query=StartBody,
    replies={
        204: PREFETCH,
        302: TO_APP,
        303: Reply(about="To AMO's consent page.", headers=("Location",)),
        **PAGES,
    },
)
async def connect(request: web.Request) -> web.Response:
    """Start a grant for whoever follows a link, and lead to AMO's consent page."""
    if is_prefetch(request):
        return web.Response(status=204)
    try:
        address = request.app[PROXIES].client_of(request)
        started = await request.app[AUTHORIZATIONS].start(read_request(_start_of(request)), address=address)
    except AmoCallbackError as error:
        way = choose_way(request.app[SETTINGS].app, Redirect(), request)
        return fail(request, way, error=error.deep_link_error, state=None, fields=error.fields)
    return send_on(303, started.authorize_url)


def _start_of(request: web.Request) -> StartBody:
    """Read the query: each parameter once; what else is there is ignored."""
    given = {name: request.query.getall(name) for name in StartBody.model_fields if name in request.query}
    try:
        if any(len(values) > 1 for values in given.values()):
            raise InvalidRequest
        return StartBody.model_validate({name: values[0] for name, values in given.items()})
    except ValidationError:
        raise InvalidRequest from None
