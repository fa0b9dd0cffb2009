"""Parameters of a query, each once, and none that nobody knows: one model validates them and documents them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from amo_callback.web.private.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

_DEFAULT, _MOST = 50, 200
_LONGEST = 256
_MAX_NAME = 64


def _whole(given: object) -> object:
    """Refuse the ways to write a number that only Python knows."""
    if isinstance(given, str) and not re.fullmatch(r"[0-9]{1,9}", given):
        raise ValueError("not a whole number")
    return given


WHOLE = BeforeValidator(_whole)
"""What a number must be beside its type and its range, which come first."""
Text = Annotated[str, Field(min_length=1, max_length=_LONGEST, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]
"""A text without control characters."""


class Query(BaseModel):
    """A query's parameters; the text beneath each one documents it, and is told to whoever gets it wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class Paged(Query):
    """Which part of a list."""

    limit: Annotated[int, Field(ge=1, le=_MOST), WHOLE] = _DEFAULT
    """a whole number from 1 to 200: how many items at most"""


Item = TypeVar("Item")


def cut(found: Sequence[Item], limit: int) -> tuple[Sequence[Item], Item | None]:
    """Return a page, and its last item where another one follows: so one more than `limit` has to be looked for."""
    return found[:limit], found[limit - 1] if len(found) > limit else None


Shape = TypeVar("Shape", bound=Query)


def read_query(request: web.Request, shape: type[Shape]) -> Shape:
    """Read a request's query; raises `InvalidRequest`, which names the parameter that is wrong."""
    known = shape.model_fields
    for name in request.query:
        if name not in known:
            raise invalid(name[:_MAX_NAME], f"is no parameter here; known are {', '.join(sorted(known))}")
        if len(request.query.getall(name)) > 1:
            raise invalid(name, "more than once")
    try:
        return shape.model_validate(dict(request.query))
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_input=False, include_context=False)
        name = str(first["loc"][0])
        raise invalid(name, known[name].description or "is not what it should be") from None
