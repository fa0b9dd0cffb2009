"""`GET {base}/return/{handle}`: the page that returns the person to the app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import MustMend, MustWait, NotFound
from amo_callback.web.keys import CONNECT, PAGES, SETTINGS
from amo_callback.web.public.way_back import LATE, show

if TYPE_CHECKING:
    from collections.abc import Sequence


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get(f"{base}/return/{{handle}}", page)]


async def page(request: web.Request) -> web.Response:
    """Show the outcome that the handle names, any number of times."""
    pages = request.app[PAGES]
    try:
        outcome = await request.app[CONNECT].returned(request.match_info["handle"])
    except NotFound:
        return pages.render("gone", status=404)
    except (MustWait, MustMend):
        return pages.render(LATE, status=503)
    return show(request.app[SETTINGS].app, pages, outcome, state=outcome.state)
