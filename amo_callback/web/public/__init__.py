"""The public API: browsers, the app and AMO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.web.health import HEALTHZ
from amo_callback.web.public.account import hook_routes, user_routes
from amo_callback.web.public.callback import callback_routes
from amo_callback.web.public.connect import connect_routes, start_route
from amo_callback.web.public.exchange import exchange_routes
from amo_callback.web.public.return_page import return_routes
from amo_callback.web.route import both_methods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.web.route import Route


def public_routes(base: str, *, with_users: bool) -> Sequence[Route]:
    """Return all routes; without JWTs there are none for the app's users."""
    routes = [
        *callback_routes(base),
        *return_routes(base),
        *exchange_routes(base),
        *hook_routes(base),
        *connect_routes(base),
        *both_methods(HEALTHZ),
    ]
    return [*routes, start_route(base), *user_routes(base)] if with_users else routes
