"""The routes on the hosts of https deep links: the files for phones, and the page that a browser shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, urlsplit

from aiohttp import web

from amo_callback.app_links import ANDROID_FILE, IOS_FILE, app_link_files, host_of, link_paths
from amo_callback.deeplink import is_web_link
from amo_callback.grant import MAX_CODE, MAX_STATE
from amo_callback.web.public.callback import raw_query
from amo_callback.web.public.return_response import app_link_page
from amo_callback.web.route import Reply, Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.config.settings import App
    from amo_callback.web.route import Call, Handler

_CACHE_CONTROL = "public, max-age=300"
_QUERY_SAFE = "%&=+"
"""The characters of a received query that are kept in the page's link, besides the unreserved ones."""
_MAX_QUERY = 3 * (MAX_CODE + MAX_STATE) + len("code=&state=")
"""The length of the longest query that the service appends to a deep link."""


async def apple_app_site_association(call: Call[None, None]) -> web.Response:
    """Return the apps that can claim the https deep links on iOS."""
    return _file(call, IOS_FILE)


async def asset_links(call: Call[None, None]) -> web.Response:
    """Return the app that can claim the https deep links on Android."""
    return _file(call, ANDROID_FILE)


def app_link_routes(app: App) -> Sequence[Route]:
    """Return the routes for the configured https deep links; without such a link, there are none."""
    files = {
        IOS_FILE: Route("GET", IOS_FILE, apple_app_site_association, replies={200: _reply(dict[str, Any])}),
        ANDROID_FILE: Route("GET", ANDROID_FILE, asset_links, replies={200: _reply(list[dict[str, Any]])}),
    }
    routes = [files[path] for path in app_link_files(app)]
    page = Reply(about="A page with a link that opens the app.", type=str, media=("text/html",))
    for number, path in enumerate(link_paths(app), start=1):
        links = [link for link in app.https_links if urlsplit(link).path == path]
        operation = f"app_link_{number}"
        routes.append(Route("GET", path, _page_of(links), replies={200: page}, operation=operation))
    return routes


def _page_of(links: Sequence[str]) -> Handler:
    """Return the handler for a path, which several hosts can have."""

    async def app_link(call: Call[None, None]) -> web.Response:
        """Show a page that opens the app, to a browser that has opened an https deep link itself.

        The query is only copied into the page's link; no code is exchanged.
        """
        host = call.request.headers.get("Host", "").lower().removesuffix(":443")
        requested = next((link for link in links if host_of(link) == host), links[0])
        # Browsers do not open the app for a link to the host of the page.
        link = next((one for one in call.services.settings.app.deep_link if not is_web_link(one)), requested)
        query = quote_from_bytes(raw_query(call.request), safe=_QUERY_SAFE)
        return app_link_page(call, f"{link}?{query}" if 0 < len(query) <= _MAX_QUERY else link)

    return app_link


def _reply(kind: object) -> Reply:
    return Reply(about="The file, which phones request from the host of an https deep link.", type=kind)


def _file(call: Call[None, None], path: str) -> web.Response:
    content = app_link_files(call.services.settings.app)[path].encode()
    headers = {"Cache-Control": _CACHE_CONTROL}
    # The body is bytes, because a text would add the parameter `charset`, which phones need not accept.
    return web.Response(body=content, content_type="application/json", headers=headers)
