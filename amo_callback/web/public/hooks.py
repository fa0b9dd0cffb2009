"""`GET {base}/hooks/disconnect`: AMO tells that the integration was switched off in an account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amo_callback.errors import StoreUnavailable
from amo_callback.web.answers import FailureCode, failure, success
from amo_callback.web.keys import AMO, CUSTODY
from amo_callback.web.public.operation import app_operation

if TYPE_CHECKING:
    from collections.abc import Sequence


class HookQuery(BaseModel):
    """What AMO's hook says; what else stands there is ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    account_id: Annotated[str, Field(pattern="^[0-9]{1,20}$")]
    signature: Annotated[str, Field(pattern="^[0-9A-Fa-f]{64}$")]
    """HMAC-SHA-256 of client id and account id, with the integration's secret."""
    client_uuid: str = ""
    client_id: str = ""
    """The same, by its other name."""


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.get(f"{base}/hooks/disconnect", disconnect, allow_head=False)]


@app_operation(
    "hook_disconnect",
    query=HookQuery,
    answer=None,
    example=None,
    failures={403: [FailureCode.FORBIDDEN], 503: [FailureCode.STORE_UNAVAILABLE]},
)
async def disconnect(request: web.Request) -> web.Response:
    """Start a check of the account's connections: the signature never changes, so it may be a replay."""
    hook = _read_hook(request)
    if hook is None or not request.app[AMO].is_hook(
        account_id=hook.account_id, client_id=hook.client_uuid or hook.client_id, signature=hook.signature
    ):
        return failure(FailureCode.FORBIDDEN, "The signature is not AMO's.", status=403)
    try:
        await request.app[CUSTODY].switched_off(hook.account_id)
    except StoreUnavailable:
        answer = failure(FailureCode.STORE_UNAVAILABLE, "Not now. Please tell us again.", status=503)
        answer.headers["Retry-After"] = "5"
        return answer
    return success(None, "The account's connections are being checked.")


def _read_hook(request: web.Request) -> HookQuery | None:
    """Return what the hook says, each parameter once; a doubled one is none."""
    given = {name: request.query.getall(name) for name in HookQuery.model_fields if name in request.query}
    try:
        return HookQuery.model_validate({name: values[0] for name, values in given.items() if len(values) == 1})
    except ValidationError:
        return None
