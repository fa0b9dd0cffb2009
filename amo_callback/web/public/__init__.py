"""The public API: browsers, the app and AMO."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from amo_callback.web.health import HEALTHZ
from amo_callback.web.public.account import HOOK_ROUTE, USER_ROUTES
from amo_callback.web.public.callback import CALLBACK_ROUTES
from amo_callback.web.public.connect import CONNECT_ROUTES, START_ROUTE
from amo_callback.web.public.exchange import EXCHANGE_ROUTE
from amo_callback.web.public.return_page import RETURN_ROUTES
from amo_callback.web.route import both_methods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.web.route import Route


def public_routes(base: str, *, with_users: bool) -> Sequence[Route]:
    """Return all routes, under `base`; without JWTs there are none for the app's users."""
    routes = [*CALLBACK_ROUTES, *RETURN_ROUTES, EXCHANGE_ROUTE, HOOK_ROUTE, *CONNECT_ROUTES]
    if with_users:
        routes += [START_ROUTE, *USER_ROUTES]
    return [*(replace(route, path=base + route.path) for route in routes), *both_methods(HEALTHZ)]
