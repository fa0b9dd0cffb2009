"""The JSON envelope that the existing app reads."""

from __future__ import annotations

from aiohttp import web


def success(data: object, message: str) -> web.Response:
    """Answer `{"success": true, "data": …, "message": …}`."""
    return web.json_response({"success": True, "data": data, "message": message})


def failure(error: str, message: str, *, status: int) -> web.Response:
    """Answer `{"success": false, "error": CODE, "message": …}`."""
    return web.json_response({"success": False, "error": error, "message": message}, status=status)


def status_of(word: str) -> int:
    """Return the status for a deep link's error word: the person's or sender's fault, or ours."""
    return {"rate_limited": 429, "amo_unavailable": 503}.get(word, 400)
