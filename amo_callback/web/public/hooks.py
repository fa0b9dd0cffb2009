"""`GET {base}/hooks/disconnect`: AMO tells that the integration was switched off in an account."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import StoreUnavailable
from amo_callback.web.answers import failure, success
from amo_callback.web.keys import AMO, CUSTODY

if TYPE_CHECKING:
    from collections.abc import Sequence

_ACCOUNT_ID = re.compile(r"[0-9]{1,20}")
_SIGNATURE = re.compile(r"[0-9A-Fa-f]{64}")


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get(f"{base}/hooks/disconnect", disconnect, allow_head=False)]


async def disconnect(request: web.Request) -> web.Response:
    """Start a check of the account's connections: the signature never changes, so it may be a replay."""
    account_id, signature = _one(request, "account_id"), _one(request, "signature")
    client_id = _one(request, "client_uuid") or _one(request, "client_id")
    well_formed = _ACCOUNT_ID.fullmatch(account_id) and _SIGNATURE.fullmatch(signature)
    if not well_formed or not request.app[AMO].is_hook(account_id=account_id, client_id=client_id, signature=signature):
        return failure("forbidden", "The signature is not AMO's.", status=403)
    try:
        await request.app[CUSTODY].switched_off(account_id)
    except StoreUnavailable:
        return failure("store_unavailable", "Not now. Please tell us again.", status=503)
    return success(None, "The account's connections are being checked.")


def _one(request: web.Request, name: str) -> str:
    """Return a parameter that came once, else nothing."""
    values = request.query.getall(name, [])
    return values[0] if len(values) == 1 else ""
