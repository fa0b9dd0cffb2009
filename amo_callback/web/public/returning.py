"""`GET {base}/return/{handle}`: the page that returns the person to the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from amo_callback.errors import AmoCallbackError, NotFound, OperatorError, RetryableError
from amo_callback.web.keys import CONNECT, PROXIES
from amo_callback.web.operation import Reply
from amo_callback.web.public.look import is_prefetch, without_work
from amo_callback.web.public.operation import PAGES, PREFETCH, page_operation
from amo_callback.web.public.way_back import Way, away, fail, gone, return_address, send_on, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.grant import Outcome


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes; HEAD is not GET here, or it would try again what has failed."""
    return [
        web.get(f"{base}/return/{{handle}}", page, allow_head=False),
        web.head(f"{base}/return/{{handle}}", without_work),
    ]


class PageQuery(BaseModel):
    """What may be asked of the page; whatever else stands there is ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    again: Literal["1"] | None = None
    """Try first what has failed for a passing reason."""


_HTML = ("text/html",)
_Handle = Annotated[str, Field(min_length=1, description="Which outcome is shown.")]


@page_operation(
    "return_page",
    path={"handle": _Handle},
    query=PageQuery,
    replies={
        200: Reply(about="The page, with a link back to the app.", shape=str, media=_HTML),
        204: PREFETCH,
        303: Reply(about="It was tried again: to the page that shows how it ended.", headers=("Location",)),
        404: Reply(about="The handle is unknown, or older than 20 minutes.", shape=str, media=_HTML),
        **PAGES,
    },
)
async def page(request: web.Request) -> web.Response:
    """Show the outcome that the handle names, any number of times; with `?again=1` try first what has failed."""
    again = request.query.getall("again", []) == ["1"]
    if again and is_prefetch(request):
        return web.Response(status=204)
    try:
        outcome = await request.app[CONNECT].returned(request.match_info["handle"])
    except NotFound:
        return gone(request)
    except (RetryableError, OperatorError) as error:
        return away(request, error)
    if again:
        return await _try_again(request, outcome)
    return show(request, outcome, state=outcome.state, again="?again=1")


async def _try_again(request: web.Request, before: Outcome) -> web.Response:
    """Try with the grant's code once more, and send the person on to the clean address, where its end is shown."""
    try:
        outcome = await request.app[CONNECT].again(before.handle, address=request.app[PROXIES].client_of(request))
    except NotFound:
        return gone(request)  # its 20 minutes have just ended
    except AmoCallbackError as error:
        return fail(
            request,
            Way.PAGE,
            error=error.deep_link_error,
            state=before.handed_back,
            support=before.support,
            fields=error.fields,
        )
    return send_on(303, return_address(request, outcome))
