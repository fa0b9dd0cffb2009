"""Operations of the public door: the envelope that the app reads, pages for people, and redirects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from amo_callback.web.answers import TODO, FailureCode, FailureShape, Success
from amo_callback.web.operation import Handler, Jwt, Operation, Reply, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import BaseModel

TEXT = ("text/html", "text/plain")
HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

PREFETCH = Reply(about="A browser asked before the person did: nothing was done.")
TO_APP = Reply(about="To the app, by its deep link.", headers=("Location",))
PAGES = {
    400: Reply(about="What is wrong, for the person; with a way back to the app.", shape=str, media=TEXT),
    429: Reply(about="Too many attempts from this address.", shape=str, media=TEXT),
    503: Reply(about="It may work in a minute.", shape=str, media=TEXT),
}
"""What a person sees of errors."""


def app_operation(
    name: str,
    *,
    answer: Any,  # noqa: ANN401 -- because types are told to pydantic as values
    example: object,
    jwt: Jwt | None = None,
    query: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    failures: Mapping[int, Sequence[FailureCode]] | None = None,
) -> Callable[[Handler], Handler]:
    """Declare an operation that answers in the envelope; what every one may say is added."""
    told: dict[int, Sequence[FailureCode]] = {500: [FailureCode.INTERNAL_ERROR]}
    if jwt is not None:
        told[401] = [FailureCode.UNAUTHORIZED]
    if body is not None:
        told |= {status: [FailureCode.INVALID_REQUEST] for status in (400, 408, 413)}
    told |= failures or {}
    shown = {"success": True, "data": example, "message": "For people."}
    replies = {200: Reply(about="Done.", shape=Success[answer], examples={"answer": shown})}
    replies |= {status: _failure(status, codes) for status, codes in sorted(told.items())}
    return describe(Operation(id=name, jwt=jwt, query=query, body=body, replies=replies))


def page_operation(
    name: str,
    *,
    replies: Mapping[int, Reply],
    query: type[BaseModel] | None = None,
    path: Mapping[str, Any] | None = None,
) -> Callable[[Handler], Handler]:
    """Declare an operation that leads people on."""
    bug = {500: _failure(500, [FailureCode.INTERNAL_ERROR])}
    return describe(Operation(id=name, query=query, path=path or {}, replies={**replies, **bug}))


def _failure(status: int, codes: Sequence[FailureCode]) -> Reply:
    return Reply(
        about="\n".join(f"- `{code}`: {TODO[code]}" for code in codes),
        shape=Annotated[
            FailureShape,
            Field(json_schema_extra={"properties": {"error": {"enum": [code.value for code in codes]}}}),
        ],
        headers=HEADERS.get(status, ()),
        examples={
            code.value: {"success": False, "error": code.value, "message": "What is wrong, for people."}
            for code in codes
        },
    )
