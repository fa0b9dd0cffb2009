"""Errors of the public door into the envelope that the app reads.

A bug is logged with its trace, and answered without it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.web.answers import failure
from amo_callback.web.keys import LOG

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

_CODES = {404: "not_found", 405: "method_not_allowed"}


@web.middleware
async def envelope_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors in the envelope."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _http_error(error)
    except ConnectionError:
        raise  # the client has gone away in the middle
    except Exception as bug:  # noqa: BLE001 -- because nobody outside may see a trace
        request.app[LOG].error("http.bug", exc_info=bug)
        return failure("internal_error", "Something went wrong on our side. Please try again.", status=500)


def _http_error(error: web.HTTPException) -> web.Response:
    phrase = HTTPStatus(error.status).phrase
    answer = failure(_CODES.get(error.status, "invalid_request"), f"{error.status} {phrase}", status=error.status)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer
