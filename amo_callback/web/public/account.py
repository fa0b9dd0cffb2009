"""The routes for an app user's connection (`exchange-code`, status, disconnect), and AMO's hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from amo_callback.errors import (
    AccountNotAllowed,
    AuthFailed,
    CodeExpired,
    CodeUsed,
    GrantExpired,
    InvalidRequest,
    InvalidState,
    NotFound,
    PkceMismatch,
    RetryableError,
    StoreUnavailable,
    TooManyAttempts,
)
from amo_callback.grant import MAX_CODE, GrantStatus
from amo_callback.model import Status
from amo_callback.oauth.redemption import RedeemRequest
from amo_callback.web.parsing import Body, read_known_query
from amo_callback.web.public.api import (
    NOT_CONNECTED,
    AppStatus,
    Success,
    app_status,
    deep_link_failure,
    failure,
    failure_reply,
)
from amo_callback.web.route import Jwt, Route

if TYPE_CHECKING:
    from typing import Any

    from aiohttp import web

    from amo_callback.web.route import Call

_DISCONNECTED = "amoCRM is disconnected. To also withdraw the permission in amoCRM, remove the integration there."
_NOT_AMOS = (403, PkceMismatch.code, "The query or its signature is invalid.")
_NOT_TO_YOU = "The account is connected, but you are not an owner of the connection."


class HookQuery(BaseModel):
    """The query of AMO's hook; other parameters are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    account_id: Annotated[str, Field(pattern="^[0-9]{1,20}$")]
    signature: Annotated[str, Field(pattern="^[0-9A-Fa-f]{64}$", repr=False)]
    """HMAC-SHA-256 of the client id and the account id, with the client secret as its key."""
    client_uuid: str = ""
    client_id: str = ""
    """An alternative name for `client_uuid`."""


class ExchangeBody(Body):
    """The code from the deep link."""

    wanted: ClassVar[str] = 'The body must be a JSON object {"code": "…"}, with a code of 1 to 4096 bytes.'
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    code: Annotated[str, Field(min_length=1, max_length=MAX_CODE, repr=False)]
    """AMO's authorization code, or a ticket."""
    code_verifier: Annotated[Annotated[str, Field(max_length=1024)] | None, Field(repr=False)] = None
    """The verifier of the code challenge in the authorization request (RFC 7636)."""
    referer: str | None = None
    """The account's host, for a code that the callback has not received."""

    @field_validator("code")
    @classmethod
    def _fits(cls, value: str) -> str:
        if len(value.encode(errors="surrogatepass")) > MAX_CODE:
            raise ValueError("too long")
        return value


async def exchange_code(call: Call[None, ExchangeBody]) -> Success[AppStatus] | web.Response:
    """Exchange a code if necessary, and return its result; a user who provably started the flow can become an owner."""
    user = call.caller or None
    presented = RedeemRequest(
        code=call.body.code.encode(),
        verifier=call.body.code_verifier,
        user=user,
        host=call.body.referer,
        address=call.address,
    )
    redeemed = await call.services.oauth.redeemer.redeem(presented)
    outcome, connection = redeemed.result, redeemed.connection
    if outcome.status is GrantStatus.EXCHANGING or outcome.error is not None:
        return deep_link_failure(outcome.error or RetryableError.deep_link_error)
    if user is None or redeemed.is_owner:
        shown = app_status(connection, call.services.core.clock.now())
        return Success(data=shown, message=shown.message)
    shown = await status_of(call, user)
    is_connected = connection is not None and connection.status is Status.ACTIVE
    return Success(data=shown, message=_NOT_TO_YOU if is_connected else shown.message)


async def status(call: Call[None, None]) -> Success[AppStatus]:
    """Return the status of the user's connection."""
    shown = await status_of(call, call.caller)
    return Success(data=shown, message=shown.message)


async def disconnect(call: Call[None, None]) -> Success[AppStatus]:
    """Remove the user as an owner of their connections, and erase the tokens of connections without another owner."""
    for event in await call.services.store.unbind(call.caller):
        call.services.log.info(event.name, connection_id=event.connection_id, **event.fields)
    return Success(data=NOT_CONNECTED, message=_DISCONNECTED)


async def status_of(call: Call[Any, Any], user: str) -> AppStatus:
    try:
        [connection, *_] = await call.services.lifecycle.lookup.find(f"owner:{user}")
    except NotFound:
        return NOT_CONNECTED
    return app_status(connection, call.services.core.clock.now())


async def hook_disconnect(call: Call[None, None]) -> Success[None] | web.Response:
    """Receive AMO's hook for a disabled integration, and schedule introspection of the account's connections."""
    try:
        hook = read_known_query(call.request, HookQuery)
    except InvalidRequest:
        return failure(*_NOT_AMOS)
    client_id = hook.client_uuid or hook.client_id
    if not call.services.core.amo.is_hook(account_id=hook.account_id, client_id=client_id, signature=hook.signature):
        return failure(*_NOT_AMOS)
    # The signature never changes, so the hook may be a replay; only introspection shows whether the tokens are valid.
    try:
        await call.services.lifecycle.integration_disabled(hook.account_id)
    except StoreUnavailable as error:
        return failure(503, error.code, "Temporarily unavailable: try again later.")
    return Success(data=None, message="The account's connections are being checked.")


ROUTES = (
    Route(
        "POST",
        "/exchange-code",
        exchange_code,
        Jwt.OPTIONAL,
        body=ExchangeBody,
        answer=Success[AppStatus],
        errors=(
            InvalidState,
            AccountNotAllowed,
            CodeExpired,
            CodeUsed,
            AuthFailed,
            PkceMismatch,
            NotFound,
            GrantExpired,
            TooManyAttempts,
            RetryableError,
        ),
    ),
    Route("GET", "/status", status, Jwt.REQUIRED, answer=Success[AppStatus], errors=(RetryableError,)),
    Route("POST", "/disconnect", disconnect, Jwt.REQUIRED, answer=Success[AppStatus], errors=(RetryableError,)),
    Route(
        "GET",
        "/hooks/disconnect",
        hook_disconnect,
        unparsed_query=HookQuery,
        answer=Success[None],
        replies={403: failure_reply(403, PkceMismatch.code), 503: failure_reply(503, StoreUnavailable.code)},
    ),
)
