"""Operations of the private door: an API key with a scope, and problems by their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from amo_callback.web.operation import Handler, Operation, Reply, describe
from amo_callback.web.private.problems import STATUSES, TODO, Code, ProblemShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic import BaseModel

    from amo_callback.identity import Scope

Selector = Annotated[
    str,
    Field(
        min_length=1,
        description="A connection's id, `account:31920194` or `owner:42`; of several the freshest active one is meant.",
        examples=["account:31920194"],
    ),
]

SELECTS = (Code.NOT_FOUND, Code.STORE_UNAVAILABLE)
"""What every operation may say that looks for a connection."""
HANDS_OUT = (
    *SELECTS,
    Code.NEEDS_REAUTH,
    Code.AMO_REFUSED,
    Code.AMO_UNAVAILABLE,
    Code.AMO_CREDENTIALS,
    Code.FROZEN,
    Code.HOST_NOT_ALLOWED,
)
"""What every operation may say that hands out a token."""

_WAIT = {502, 503}
_TOO_LARGE = 413


def operation(
    name: str,
    *,
    answer: object,
    example: object = None,
    scope: Scope | None = None,
    query: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    named: object = Selector,
    problems: Iterable[Code] = (),
    more: Mapping[int, Reply] | None = None,
) -> Callable[[Handler], Handler]:
    """Declare a handler's operation; `named` is what `{id}` is in its path, `answer` `None` where there is no body.

    What every operation may say is added: about the key, where there is a scope, about a query or a body that is read.
    """
    codes = {Code.INTERNAL_ERROR, *problems}
    if scope is not None:
        codes |= {Code.UNAUTHORIZED, Code.FORBIDDEN}
    if query is not None or body is not None:
        codes.add(Code.INVALID_REQUEST)
    replies = {200: Reply(about="Done.", shape=answer, examples={} if example is None else {"answer": example})}
    for status in sorted({STATUSES[code] for code in codes}):
        replies[status] = _problem(status, [code for code in Code if code in codes and STATUSES[code] == status])
    if body is not None:
        replies[_TOO_LARGE] = _problem(_TOO_LARGE, [Code.INVALID_REQUEST])
    replies |= more or {}
    return describe(Operation(id=name, scope=scope, path={"id": named}, query=query, body=body, replies=replies))


def _problem(status: int, codes: list[Code]) -> Reply:
    headers = ("WWW-Authenticate",) if status in {401, 403} else ()
    return Reply(
        about="\n".join(f"- `{code}`: {TODO[code]}" for code in codes),
        shape=Annotated[
            ProblemShape,
            Field(json_schema_extra={"properties": {"code": {"enum": [code.value for code in codes]}}}),
        ],
        media=("application/problem+json",),
        headers=("Retry-After",) if status in _WAIT else headers,
        examples={code.value: _example(status, code) for code in codes},
    )


def _example(status: int, code: Code) -> dict[str, object]:
    shown: dict[str, object] = {"status": status, "code": code.value, "detail": "What is wrong, for people."}
    if code is Code.FORBIDDEN:
        shown["scope"] = "token"
    if code is Code.NEEDS_REAUTH:
        shown |= {"reason": "revoked", "reconnect_url": "https://admin.example.com/api/amo-crm/connect"}
    return shown
