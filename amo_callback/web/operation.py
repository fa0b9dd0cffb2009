"""An operation: what a route takes and answers, declared beside its handler, for the OpenAPI document.

What is declared here is what validates: bodies and queries are the models that the handlers read, answers are the
types that the handlers build.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from amo_callback.identity import Scope

Handler = TypeVar("Handler", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""A moment as `rfc3339` writes it."""


class Jwt(Enum):
    """Whether an operation asks for the app's user."""

    REQUIRED = "required"
    OPTIONAL = "optional"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What an operation answers with one status."""

    about: str
    shape: Any = None
    """The type of what is answered, as pydantic reads types; `None` where the answer has no body."""
    media: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    """The names of headers that are always there."""
    examples: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """What one route takes and answers."""

    id: str
    summary: str = ""
    scope: Scope | None = None
    """What the API key must be allowed; `None` where there needs to be none."""
    jwt: Jwt | None = None
    path: Mapping[str, Any] = field(default_factory=dict)
    """The type of each part of the path that has a name."""
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    replies: Mapping[int, Reply]


_MARK = "__operation__"
"""The handler's attribute that holds its operation."""


def describe(operation: Operation) -> Callable[[Handler], Handler]:
    """Declare a handler's operation; its summary is the handler's docstring."""

    def remember(handler: Handler) -> Handler:
        vars(handler)[_MARK] = replace(operation, summary=inspect.getdoc(handler) or "")
        return handler

    return remember


def operation_of(handler: object) -> Operation | None:
    """Return the operation that was declared for a handler."""
    found = getattr(handler, _MARK, None)
    return found if isinstance(found, Operation) else None
