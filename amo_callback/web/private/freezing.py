"""Freezing and thawing: one connection, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.identity import Scope
from amo_callback.web.keys import CUSTODY, LOG, STORE
from amo_callback.web.operation import Time
from amo_callback.web.private.authorization import require
from amo_callback.web.private.connections import CONNECTION, ConnectionShape, shape_of
from amo_callback.web.private.operation import SELECTS, operation
from amo_callback.web.private.problems import Code

if TYPE_CHECKING:
    from collections.abc import Sequence


def routes() -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [
        web.post("/connections/{id}/freeze", freeze),
        web.post("/connections/{id}/thaw", thaw),
        web.post("/freeze", freeze_all),
        web.post("/thaw", thaw_all),
    ]


@with_config(ConfigDict(use_attribute_docstrings=True))
class FreezeShape(TypedDict):
    """Whether anything is spent."""

    frozen: bool
    since: Time | None
    why: str | None
    open_attempts: int
    """Refreshes that have not come to their end yet."""


@operation(
    "freeze_connection",
    scope=Scope.ADMIN,
    answer=ConnectionShape,
    example={**CONNECTION, "frozen": True},
    problems=(*SELECTS, Code.AMBIGUOUS),
)
async def freeze(request: web.Request) -> web.Response:
    """Spend nothing of one connection."""
    return await _change(request, frozen=True)


@operation(
    "thaw_connection",
    scope=Scope.ADMIN,
    answer=ConnectionShape,
    example=CONNECTION,
    problems=(*SELECTS, Code.AMBIGUOUS),
)
async def thaw(request: web.Request) -> web.Response:
    """Spend again of one connection."""
    return await _change(request, frozen=False)


async def _change(request: web.Request, *, frozen: bool) -> web.Response:
    key = require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    connection = await custody.selection.only(request.match_info["id"])
    await (custody.freezer.freeze(connection) if frozen else custody.freezer.thaw(connection))
    custody.refresher.wake()
    request.app[LOG].info("freeze.asked", key=key.name, connection_id=connection.id, frozen=frozen)
    return web.json_response(await shape_of(request, await custody.selection.only(connection.id)))


@operation(
    "freeze_all",
    scope=Scope.ADMIN,
    answer=FreezeShape,
    example={"frozen": True, "since": "2026-11-24T12:00:00Z", "why": "asked by admin", "open_attempts": 0},
    problems=[Code.STORE_UNAVAILABLE],
)
async def freeze_all(request: web.Request) -> web.Response:
    """Spend nothing from now on; `open_attempts` is how many refreshes have not come to their end yet."""
    key = require(request, Scope.ADMIN)
    await request.app[CUSTODY].freezer.freeze_all(why=f"asked by {key.name}")
    request.app[LOG].info("freeze.asked", key=key.name, frozen=True)
    return await _told(request)


@operation(
    "thaw_all",
    scope=Scope.ADMIN,
    answer=FreezeShape,
    example={"frozen": False, "since": None, "why": None, "open_attempts": 0},
    problems=[Code.STORE_UNAVAILABLE],
)
async def thaw_all(request: web.Request) -> web.Response:
    """Spend again, on this machine from now on."""
    key = require(request, Scope.ADMIN)
    custody = request.app[CUSTODY]
    await custody.freezer.thaw_all()
    custody.refresher.wake()
    request.app[LOG].info("freeze.asked", key=key.name, frozen=False)
    return await _told(request)


async def _told(request: web.Request) -> web.Response:
    frozen = request.app[CUSTODY].freezer.frozen
    told: FreezeShape = {
        "frozen": frozen is not None,
        "since": rfc3339(frozen.at) if frozen else None,
        "why": frozen.why if frozen else None,
        "open_attempts": len(await request.app[STORE].attempts()),
    }
    return web.json_response(told)
