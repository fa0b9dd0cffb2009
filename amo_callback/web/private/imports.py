"""`POST /connections/import`: pairs from another system."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from amo_callback.errors import Busy
from amo_callback.identity import Scope
from amo_callback.transfer.importer import ImportPlan, ImportRules, apply, make_plan
from amo_callback.transfer.json_format import read_values
from amo_callback.web.keys import AMO, CIPHER, CLOCK, CUSTODY, LOG, SETTINGS, STORE
from amo_callback.web.private.authorization import require
from amo_callback.web.private.bodies import misnamed, misshapen, unread
from amo_callback.web.private.operation import operation
from amo_callback.web.private.problems import Code, Problem, invalid, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.transfer.export_file import RecordError as Fault

MOST = 1024 * 1024
"""Bytes of a body. Whoever has more takes the command, which can be broken off."""
MOST_AT_ONCE = 1000
"""Connections of a body."""
_MOST_VALUES = 20 * MOST_AT_ONCE
"""Values of a body: how many there are, not how long they are, is what takes time."""
_TOO_MANY = f"at most {MOST_AT_ONCE:,} connections at once: send the others after these"
_WANTED = 'the body is {"connections": [{…}, …], "replace": false}'
_PATIENCE = 60.0
_TOLD = 20
"""Problems that are told at most."""


class ImportBody(BaseModel):
    """What a backend sends: connections as `amo-callback connections import` reads them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    connections: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_AT_ONCE)] = Field(repr=False)
    replace: bool = False
    """Also over other tokens of the same connection."""


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.post("/connections/import", bring)]


@with_config(ConfigDict(use_attribute_docstrings=True))
class ImportedShape(TypedDict):
    """How many connections came, and which did not."""

    new: int
    replaced: int
    same: int
    """They were here already."""
    newer: int
    """What is stored of them here is newer than what was sent."""
    left: list[str]
    """Connections that changed meanwhile, and were left as they are."""


@operation(
    "import_connections",
    scope=Scope.ADMIN,
    body=ImportBody,
    answer=ImportedShape,
    example={"new": 1, "replaced": 0, "same": 0, "newer": 0, "left": []},
    problems=[Code.AMO_UNAVAILABLE, Code.STORE_UNAVAILABLE],
)
async def bring(request: web.Request) -> web.Response:
    """Take in connections; where anything is wrong with one of them, nothing is changed."""
    key = require(request, Scope.ADMIN)
    body = await _read(request)
    plan = await _plan(request, body)
    if plan.problems:
        return _refused(plan.problems)
    _check_quiet(request, plan)
    left = await apply(
        plan,
        store=request.app[STORE],
        cipher=request.app[CIPHER],
        rules=request.app[SETTINGS].refresh.rules,
        random=random.random,
        source=f"the API key {key.name}",
        advance=lambda _done: None,
    )
    request.app[CUSTODY].refresher.wake()
    told: ImportedShape = {
        "new": len(plan.new),
        "replaced": len(plan.replaced),
        "same": plan.same,
        "newer": plan.newer,
        "left": list(left),
    }
    request.app[LOG].info("connections.imported", key=key.name, **{**told, "left": len(left)})
    return web.json_response(told)


async def _read(request: web.Request) -> ImportBody:
    content = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            async for chunk in request.content.iter_any():
                content += chunk
                if len(content) > MOST:
                    raise web.HTTPRequestEntityTooLarge(max_size=MOST, actual_size=len(content))
    except (TimeoutError, web.RequestPayloadError):
        raise unread() from None
    if sum(map(content.count, (b"{", b"[", b","))) > _MOST_VALUES:  # counted before they are parsed
        raise invalid("body", f"more than {_MOST_VALUES:,} values; {_TOO_MANY}")
    try:
        value = from_json(bytes(content))
    except ValueError:
        raise invalid("body", _WANTED) from None
    _count(value)
    try:
        return ImportBody.model_validate(value)
    except ValidationError as error:
        raise misshapen(error, _WANTED) from None


def _count(value: object) -> None:
    """Refuse what would take long only to say what is wrong with it; raises `InvalidRequest`."""
    if not isinstance(value, dict):
        return
    if unknown := next((name for name in value if name not in ImportBody.model_fields), None):
        raise misnamed(unknown, _WANTED)
    connections = value.get("connections")
    if isinstance(connections, list) and len(connections) > MOST_AT_ONCE:
        raise invalid("connections", f"{len(connections):,} of them; {_TOO_MANY}")


async def _plan(request: web.Request, body: ImportBody) -> ImportPlan:
    amo, settings = request.app[AMO], request.app[SETTINGS].amo
    arrivals = read_values(
        body.connections, tell=amo.told_by, client_id=settings.client_id, now=request.app[CLOCK].now()
    )
    rules = ImportRules(
        client_id=settings.client_id,
        allowed_domains=settings.allowed_domains,
        allowed_accounts=settings.allowed_accounts,
        replace=body.replace,
    )
    return await make_plan(arrivals, store=request.app[STORE], cipher=request.app[CIPHER], rules=rules)


def _refused(faults: Sequence[Fault]) -> web.Response:
    told = [{"place": fault.place, "why": fault.why} for fault in faults[:_TOLD]]
    return render(
        Problem(
            status=400,
            code=Code.INVALID_REQUEST,
            detail=f"connections: {len(faults)} of them cannot be taken; nothing was changed",
            more={"problems": told},
        )
    )


def _check_quiet(request: web.Request, plan: ImportPlan) -> None:
    """Replace nothing that somebody may be refreshing at this moment: his pair would be lost, or this one."""
    left = max((request.app[CUSTODY].leases.left(stored) for _, stored in plan.replaced), default=0.0)
    if left:
        raise Busy(left)
