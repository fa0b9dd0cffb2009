"""`POST /connections/import`: token pairs from another system."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, PlainValidator
from pydantic_core import from_json

from amo_callback.errors import InvalidRequest, NotYet, RetryableError
from amo_callback.identity import Scope
from amo_callback.transfer.importer import ImportPlan, ImportRules, apply, make_plan
from amo_callback.transfer.json_format import ImportEntry, JsonReader
from amo_callback.web.parsing import Body, invalid
from amo_callback.web.route import Route, shape

if TYPE_CHECKING:
    from amo_callback.transfer.export_file import RecordError
    from amo_callback.web.route import Call

MAX_CONNECTIONS = 1000
_MAX_VALUES = 20 * MAX_CONNECTIONS
"""The maximum number of values in a body, which limits the parsing time."""
_TOO_MANY = f"send at most {MAX_CONNECTIONS:,} connections per request"
_MAX_PROBLEMS = 20


def _object(value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 -- pydantic reports a ValueError
    return value


# The reader validates the objects, because it reports the errors of all of them.
_Entry = Annotated[dict[str, Any], PlainValidator(_object, json_schema_input_type=ImportEntry)]


class ImportBody(Body):
    """Connections in the format of `amo-callback connections import`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    wanted: ClassVar[str] = 'the body must be {"connections": [{…}, …]} with the optional boolean "replace"'
    max_size: ClassVar[int] = 1024 * 1024
    seconds: ClassVar[float] = 60.0

    connections: Annotated[list[_Entry], Field(min_length=1, max_length=MAX_CONNECTIONS)] = Field(repr=False)
    replace: bool = False
    """Whether to replace an existing connection's tokens if they differ."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Parse a body; raises `InvalidRequest`, also if parsing it or describing its errors would take too long."""
        if sum(map(content.count, (b"{", b"[", b","))) > _MAX_VALUES:
            raise invalid("body", f"more than {_MAX_VALUES:,} values; {_TOO_MANY}")
        try:
            value = from_json(content)
        except ValueError:
            raise invalid("body", cls.wanted) from None
        if isinstance(value, dict):
            if unknown := next((name for name in value if name not in cls.model_fields), None):
                raise invalid(unknown, cls.wanted)
            connections = value.get("connections")
            if isinstance(connections, list) and len(connections) > MAX_CONNECTIONS:
                raise invalid("connections", f"{len(connections):,} connections; {_TOO_MANY}")
        return cls.model_validate(value)


@shape
class ImportResult:
    """The numbers of imported and skipped connections."""

    new: int
    replaced: int
    same: int
    """The number of connections that were already stored with the same tokens."""
    newer: int
    """The number of connections that were already stored with newer tokens."""
    left: Sequence[str]
    """The ids of connections that were not replaced: they changed during the import, or a refresh of them began."""


class InvalidConnections(InvalidRequest):
    def __init__(self, problems: Sequence[RecordError]) -> None:
        super().__init__(f"connections: {len(problems)} cannot be imported; nothing was changed")
        shown = [{"place": problem.place, "why": problem.why} for problem in problems[:_MAX_PROBLEMS]]
        self.members = {"problems": shown}


async def import_connections(call: Call[None, ImportBody]) -> ImportResult:
    """Import connections; if any connection is invalid, nothing is changed."""
    services = call.services
    plan = await _plan(call)
    if plan.problems:
        raise InvalidConnections(plan.problems)
    _check_leases(call, plan)
    left = await apply(
        plan,
        store=services.store,
        cipher=services.core.cipher,
        rules=services.settings.refresh.rules,
        random=random.random,
        source=f"the API key {call.caller}",
        advance=lambda _done: None,
    )
    services.lifecycle.scheduler.wake()
    counts = {"new": len(plan.new), "replaced": len(plan.replaced), "same": plan.same, "newer": plan.newer}
    services.log.info("connections.imported", key=call.caller, **counts, left=len(left))
    return ImportResult(**counts, left=left)


async def _plan(call: Call[None, ImportBody]) -> ImportPlan:
    services, core, settings = call.services, call.services.core, call.services.settings.amo
    reader = JsonReader(claims_of=core.amo.token_claims, client_id=settings.client_id, now=services.core.clock.now())
    rules = ImportRules(
        client_id=settings.client_id,
        allowed_domains=settings.allowed_domains,
        allowed_accounts=settings.allowed_accounts,
        replace=call.body.replace,
    )
    return await make_plan(
        reader.read_values(call.body.connections), store=services.store, cipher=services.core.cipher, rules=rules
    )


def _check_leases(call: Call[None, ImportBody], plan: ImportPlan) -> None:
    """Raise `NotYet` if a refresh of a pair to be replaced may be in progress.

    If the import continued, either the refreshed pair or the imported pair would be lost.
    """
    left = max((call.services.lifecycle.leases.remaining(stored) for _, stored in plan.replaced), default=0.0)
    if left:
        raise NotYet(left)


ROUTES = (
    Route(
        "POST",
        "/connections/import",
        import_connections,
        Scope.ADMIN,
        body=ImportBody,
        answer=ImportResult,
        errors=(RetryableError,),
    ),
)
