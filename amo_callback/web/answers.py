"""The JSON envelope that the existing app reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.model import Status

if TYPE_CHECKING:
    from datetime import datetime

    from amo_callback.model import Connection


def success(data: object, message: str) -> web.Response:
    """Answer `{"success": true, "data": …, "message": …}`."""
    return web.json_response({"success": True, "data": data, "message": message})


def failure(error: str, message: str, *, status: int) -> web.Response:
    """Answer `{"success": false, "error": CODE, "message": …}`."""
    return web.json_response({"success": False, "error": error, "message": message}, status=status)


def told_connection(connection: Connection | None, now: datetime) -> dict[str, object]:
    """Return a connection as the app knows it."""
    if connection is None or connection.status is Status.DISCONNECTED:
        return {"connected": False, "hasTokens": False, "domain": None, "accountId": None}
    expires_at = connection.access_expires_at
    return {
        "connected": connection.status is Status.ACTIVE,
        "hasTokens": connection.sealed_pair is not None and expires_at is not None and expires_at > now,
        "domain": connection.domain,
        "accountId": connection.account_id,
    }


def status_of(word: str) -> int:
    """Return the status for a deep link's error word: the person's or sender's fault, or ours."""
    return {"rate_limited": 429, "amo_unavailable": 503}.get(word, 400)
