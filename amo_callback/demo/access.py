"""Access control of the demo's servers: their own host names, and changes only from their own pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Container

    from aiohttp.typedefs import Handler, Middleware

_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""The host names of each server; the first is the one in the demo's URLs."""
_FROM_ITSELF = frozenset({"same-origin", "none"})
"""Values of `Sec-Fetch-Site` for requests of the server's own pages and of the user, such as a typed URL."""
_SAFE = frozenset({"GET", "HEAD"})


def guard(address: str, *, changes: Container[str] = ()) -> Middleware:
    """Return a middleware for the server at `address`.

    It accepts only the server's own host names: otherwise, a website whose name resolves to 127.0.0.1 could read the
    API key from the panel. It accepts POST requests, and GET requests for the paths in `changes`, only from the
    server's own pages, and from clients that are not browsers.
    """
    hosts = own_hosts(address)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        named = [host.lower() for host in request.headers.getall("Host", [])]
        if len(named) != 1 or named[0] not in hosts:
            return web.Response(status=421, text=f"This host name is not accepted here: open http://{address}/\n")
        is_safe = request.method in _SAFE
        if not (is_safe and request.path not in changes) and not _is_from_itself(request, named[0]):
            return web.Response(status=403, text=f"Another website sent this request: open http://{address}/\n")
        if is_safe and not named[0].startswith(_NAMES[0]):
            # The pages of the servers refer to each other, and are allowed to frame each other, by this name.
            return web.Response(status=307, headers={"Location": f"http://{address}{request.raw_path}"})
        return await handler(request)

    return check


def own_hosts(address: str) -> frozenset[str]:
    """Return the values of `Host` that a browser on this machine sends to the server at `address`."""
    port = address.rpartition(":")[2]
    with_port = frozenset(f"{name}:{port}" for name in _NAMES)
    return with_port.union(_NAMES) if port == "80" else with_port


def _is_from_itself(request: web.Request, host: str) -> bool:
    """Return whether the request is from a page of this server; browsers report the sender in these headers."""
    sites, origins = request.headers.getall("Sec-Fetch-Site", []), request.headers.getall("Origin", [])
    return _FROM_ITSELF.issuperset(sites) and all(origin == f"http://{host}" for origin in origins)
