"""Queries and JSON bodies; a pydantic model validates and documents each of them."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, TypeVar, cast

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from amo_callback.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.config import JsonDict

_MAX_NAME = 64
"""The maximum number of characters of a field's name in an error message."""

Item = TypeVar("Item")
QueryModel = TypeVar("QueryModel", bound="Query")
BodyModel = TypeVar("BodyModel", bound="Body")
KnownModel = TypeVar("KnownModel", bound=BaseModel)


def _whole_number(given: object) -> object:
    """Reject text that is not 1 to 9 digits, because pydantic also accepts notations such as `1_000`."""
    if isinstance(given, str) and not re.fullmatch(r"[0-9]{1,9}", given):
        raise ValueError("not a whole number")
    return given


INTEGER = BeforeValidator(_whole_number)
Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]
"""Text without control characters."""
Number = Annotated[str, Field(pattern="^[0-9]{1,18}$")]
"""The cursor of a list that is ordered by number."""


class Query(BaseModel):
    """Query parameters; an attribute's docstring is its OpenAPI description and the error for an invalid value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class Page(Query):
    """The query of a paginated list."""

    limit: Annotated[int, Field(ge=1, le=200), INTEGER] = 50
    """must be a whole number from 1 to 200 (the maximum number of items)"""


class Body(BaseModel):
    """A JSON body; unknown fields are ignored unless a subclass forbids them."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    wanted: ClassVar[str]
    """The error message for an invalid body."""
    media: ClassVar[str] = "application/json"
    """The documented media type; a body is parsed in the same way whatever its Content-Type is.

    There is one, because with two media types, a client of OpenAPI Generator sends no form.
    """
    names_field: ClassVar[bool] = True
    """Whether the error message begins with the name of the field."""
    max_size: ClassVar[int] = 64 * 1024
    seconds: ClassVar[float] = 10.0
    """Seconds within which the body must arrive; without a limit, a stalled client would delay the shutdown."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Parse a body; an empty body means `{}`."""
        return cls.model_validate_json(content or b"{}")


def schema_of_texts(*names: str) -> JsonDict:
    """Return the JSON schema of an object in which these members are texts."""
    return {"required": [*names], "properties": {name: {"type": "string"} for name in names}}


def paginate(found: Sequence[Item], limit: int) -> tuple[Sequence[Item], Item | None]:
    """Return the first `limit` items, and the last of them if `found` contains more items, otherwise `None`."""
    return found[:limit], found[limit - 1] if len(found) > limit else None


def read_query(request: web.Request, model: type[QueryModel]) -> QueryModel:
    """Parse the query of a request; raises `InvalidRequest`, whose message names the parameter."""
    if not request.query_string:
        return cast("QueryModel", _defaults(model))
    known = model.model_fields
    for name in request.query:
        if name not in known:
            valid = f"valid parameters are {', '.join(sorted(known))}" if known else "this route has no parameters"
            raise invalid(name, f"unknown parameter; {valid}")
        if len(request.query.getall(name)) > 1:
            raise invalid(name, "must be given only once")
    try:
        return model.model_validate(dict(request.query))
    except ValidationError as error:
        name = _first_field(error)
        raise invalid(name, known[name].description or "invalid value") from None


def read_known_query(request: web.Request, model: type[KnownModel]) -> KnownModel:
    """Parse the query parameters of a model, and ignore others.

    Raises `InvalidRequest` for an invalid value or a repeated parameter.
    """
    given = {name: request.query.getall(name) for name in model.model_fields if name in request.query}
    try:
        if any(len(values) > 1 for values in given.values()):
            raise InvalidRequest
        return model.model_validate({name: values[0] for name, values in given.items()})
    except ValidationError:
        raise InvalidRequest from None


@cache
def _defaults(model: type[Query]) -> Query:
    return model()


async def read_body(request: web.Request, model: type[BodyModel]) -> BodyModel:
    """Read and parse a JSON body, regardless of its Content-Type.

    Raises `InvalidRequest`, and aiohttp's errors for HTTP 408 and 413.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(model.seconds):
            async for chunk in request.content.iter_any():
                content += chunk
                if len(content) > model.max_size:
                    raise web.HTTPRequestEntityTooLarge(max_size=model.max_size, actual_size=len(content))
        return model.parse(bytes(content))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except web.RequestPayloadError:
        raise _misfit(model, "body") from None
    except ValidationError as error:
        raise _misfit(model, _first_field(error)) from None


def invalid(field: str, wanted: str) -> InvalidRequest:
    """Return the error for an invalid value; the field's name is shortened, because the client may have chosen it."""
    return InvalidRequest(f"{field[:_MAX_NAME]}: {wanted}")


def _misfit(model: type[Body], field: str) -> InvalidRequest:
    return invalid(field, model.wanted) if model.names_field else InvalidRequest(model.wanted)


def _first_field(error: ValidationError) -> str:
    [first, *_] = error.errors(include_url=False, include_input=False, include_context=False)
    return str(first["loc"][0]) if first["loc"] else "body"
