"""`GET {base}/return/{handle}`: the page that returns the user to the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from amo_callback.errors import AmoCallbackError, NotFound, OperatorError, RetryableError
from amo_callback.web.public.api import ERROR_PAGES, PREFETCHED, head_route, is_prefetch
from amo_callback.web.public.return_response import (
    ResponseKind,
    expired_page,
    failed,
    redirect,
    return_address,
    show,
    unavailable_page,
)
from amo_callback.web.route import Reply, Route

if TYPE_CHECKING:
    from amo_callback.grant import GrantResult
    from amo_callback.web.route import Call

_HTML = ("text/html",)


class PageQuery(BaseModel):
    """The query of the page; other parameters are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    again: Literal["1"] | None = None
    """Retry a temporary failure first."""


async def return_page(call: Call[None, None]) -> web.Response:
    """Show the result that the handle names, any number of times; with `?again=1` retry a failed one first."""
    retry = call.request.query.getall("again", []) == ["1"]
    if retry and is_prefetch(call.request):
        return web.Response(status=204)
    try:
        outcome = await call.services.oauth.connect.result(call.request.match_info["handle"])
    except NotFound:
        return expired_page(call)
    except (RetryableError, OperatorError) as error:
        return unavailable_page(call, error)
    if retry:
        return await _retry(call, outcome)
    return show(call, outcome, state=outcome.state, retry_url="?again=1")


async def _retry(call: Call[None, None], before: GrantResult) -> web.Response:
    """Exchange the grant's code once more, and redirect to the clean address, which shows the result."""
    try:
        outcome = await call.services.oauth.connect.retry(before.handle, address=call.address)
    except NotFound:
        return expired_page(call)  # its 20 minutes have just ended
    except AmoCallbackError as error:
        return failed(
            call,
            ResponseKind.PAGE,
            error=error.deep_link_error,
            state=before.app_state,
            support=before.support,
            fields=error.fields,
        )
    return redirect(303, return_address(call, outcome))


RETURN_ROUTES = (
    Route(
        "GET",
        "/return/{handle}",
        return_page,
        unparsed_query=PageQuery,
        replies={
            200: Reply(about="The page, with a link back to the app.", type=str, media=_HTML),
            204: PREFETCHED,
            303: Reply(about="It was retried: to the page that shows the result.", headers=("Location",)),
            404: Reply(about="The handle is unknown, or older than 20 minutes.", type=str, media=_HTML),
            **ERROR_PAGES,
        },
    ),
    head_route("/return/{handle}"),  # it retries nothing
)
