"""JSON bodies of the app: small, in time, and of the shape that was agreed on."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from amo_callback.errors import InvalidRequest

Body = TypeVar("Body", bound=BaseModel)

_PATIENCE = 4.0
"""Seconds that a body may take: it is small, and who stalls with it would also hold up the end of the process."""


async def read_body(request: web.Request, shape: type[Body], *, wanted: str) -> Body:
    """Read a request's JSON; raises `InvalidRequest`, which says what is `wanted`."""
    try:
        content = await asyncio.wait_for(request.read(), _PATIENCE)
        return shape.model_validate_json(content or b"{}")
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except (ValidationError, UnicodeEncodeError, web.RequestPayloadError):
        raise InvalidRequest(wanted) from None
