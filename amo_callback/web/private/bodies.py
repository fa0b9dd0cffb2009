"""JSON bodies of backends: small, in time, and of the shape that was agreed on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from amo_callback.errors import InvalidRequest

Body = TypeVar("Body", bound=BaseModel)

_PATIENCE = 10.0
_MAX_NAME = 64


async def read_body(request: web.Request, shape: type[Body], *, wanted: str) -> Body:
    """Read a request's JSON, nothing being `{}`; raises `InvalidRequest`: the field, and what is `wanted`."""
    try:
        content = await asyncio.wait_for(request.read(), _PATIENCE)
        return shape.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise misshapen(error, wanted) from None
    except (TimeoutError, web.RequestPayloadError):
        raise unread() from None


def misshapen(error: ValidationError, wanted: str) -> InvalidRequest:
    """Return the error for a body of another shape: it names the field, and says what is `wanted`."""
    [first, *_] = error.errors(include_url=False, include_input=False)
    return misnamed(str(first["loc"][0]) if first["loc"] else "body", wanted)


def misnamed(name: str, wanted: str) -> InvalidRequest:
    """Return the error for a field by its name, which may be anything."""
    return invalid(name[:_MAX_NAME], wanted)


def unread() -> InvalidRequest:
    """Return the error for a body that could not be read."""
    return invalid("body", "it did not come in time, or not whole")
