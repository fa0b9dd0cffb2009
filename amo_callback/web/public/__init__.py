"""The public API: browsers, the app and AMO."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from amo_callback.web import authorizations
from amo_callback.web.health import HEALTHZ
from amo_callback.web.public import account, callback
from amo_callback.web.route import Jwt, both_methods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.web.route import Route


def public_routes(base: str, *, with_users: bool) -> Sequence[Route]:
    """Return all routes, under `base`; without JWTs there are none for the app's users."""
    routes = [*callback.ROUTES, *account.ROUTES, *authorizations.PUBLIC_ROUTES]
    return [
        *(replace(route, path=base + route.path) for route in routes if with_users or route.access is not Jwt.REQUIRED),
        *both_methods(HEALTHZ),
    ]
