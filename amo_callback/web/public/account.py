"""The connection of the app's user, and AMO's hook that an account has disabled the integration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amo_callback.errors import NotFound, PkceMismatch, RetryableError, StoreUnavailable
from amo_callback.web.auth import Jwt
from amo_callback.web.public.api import failure_reply
from amo_callback.web.public.envelope import NOT_CONNECTED, AppStatus, Success, app_status, failure
from amo_callback.web.route import Route

if TYPE_CHECKING:
    from typing import Any

    from aiohttp import web

    from amo_callback.web.route import Call

_DISCONNECTED = "amoCRM is disconnected here. To withdraw the permission in amoCRM too, remove the integration there."


class HookQuery(BaseModel):
    """The query of AMO's hook; other parameters are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    account_id: Annotated[str, Field(pattern="^[0-9]{1,20}$")]
    signature: Annotated[str, Field(pattern="^[0-9A-Fa-f]{64}$")]
    """HMAC-SHA-256 of client id and account id, with the integration's secret."""
    client_uuid: str = ""
    client_id: str = ""
    """Another name of `client_uuid`."""


async def status(call: Call[None, None]) -> Success[AppStatus]:
    """Show the user's connection."""
    shown = await status_of(call, call.caller)
    return Success(data=shown, message=shown.message)


async def disconnect(call: Call[None, None]) -> Success[AppStatus]:
    """Remove the user from their connections; the tokens of those without another owner are erased."""
    for event in await call.services.store.unbind(call.caller):
        call.services.log.info(event.name, connection_id=event.connection_id, **event.fields)
    return Success(data=NOT_CONNECTED, message=_DISCONNECTED)


async def status_of(call: Call[Any, Any], user: str) -> AppStatus:
    """Return the status of a user's connection."""
    try:
        [connection, *_] = await call.services.lifecycle.lookup.find(f"owner:{user}")
    except NotFound:
        return NOT_CONNECTED
    return app_status(connection, call.services.core.clock.now())


async def hook_disconnect(call: Call[None, None]) -> Success[None] | web.Response:
    """Start a check of the account's connections: the signature never changes, so it may be a replay."""
    hook = _read_hook(call.request)
    if hook is None or not call.services.core.amo.is_hook(
        account_id=hook.account_id, client_id=hook.client_uuid or hook.client_id, signature=hook.signature
    ):
        return failure(403, PkceMismatch.code, "The signature is not AMO's.")
    try:
        await call.services.lifecycle.switched_off(hook.account_id)
    except StoreUnavailable as error:
        return failure(503, error.code, "Not now. Please tell us again.")
    return Success(data=None, message="The account's connections are being checked.")


def _read_hook(request: web.Request) -> HookQuery | None:
    """Return the hook's parameters; a doubled one counts as missing."""
    given = {name: request.query.getall(name) for name in HookQuery.model_fields if name in request.query}
    try:
        return HookQuery.model_validate({name: values[0] for name, values in given.items() if len(values) == 1})
    except ValidationError:
        return None


HOOK_ROUTE = Route(
    "GET",
    "/hooks/disconnect",
    hook_disconnect,
    unparsed_query=HookQuery,
    answer=Success[None],
    replies={403: failure_reply(403, PkceMismatch.code), 503: failure_reply(503, StoreUnavailable.code)},
)
USER_ROUTES = (
    Route("GET", "/status", status, Jwt.REQUIRED, answer=Success[AppStatus], errors=(RetryableError,)),
    Route("POST", "/disconnect", disconnect, Jwt.REQUIRED, answer=Success[AppStatus], errors=(RetryableError,)),
)
