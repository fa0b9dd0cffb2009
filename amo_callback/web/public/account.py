"""The routes for an app user's connection (`exchange-code`, status, disconnect), and AMO's hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from amo_callback.errors import (
    AccountNotAllowed,
    AuthFailed,
    CodeExpired,
    CodeUsed,
    GrantExpired,
    GrantFailed,
    InvalidRequest,
    InvalidState,
    NotFound,
    Pending,
    PkceMismatch,
    RetryableError,
    StoreUnavailable,
    TooManyAttempts,
    Unauthorized,
)
from amo_callback.grant import MAX_CODE, MAX_STATE, GrantStatus
from amo_callback.model import Status
from amo_callback.oauth.redemption import RedeemRequest
from amo_callback.web.parsing import Body, read_known_query, schema_of_texts
from amo_callback.web.public.api import (
    NOT_CONNECTED,
    AppStatus,
    Success,
    app_status,
    failure,
    failure_reply,
    head_route,
)
from amo_callback.web.route import Jwt, Route, shape

if TYPE_CHECKING:
    from typing import Any

    from aiohttp import web

    from amo_callback.web.route import Call

_DISCONNECTED = "The account is disconnected. To also withdraw the permission, remove the integration in the account."
_NOT_AMOS = (403, PkceMismatch.code, "The query or its signature is invalid.")
_NOTHING_DISCONNECTED = "Nothing was disconnected: there was no such connection."
_NOT_TO_YOU = "The account is connected, but not to you."


class HookQuery(BaseModel):
    """The query of AMO's hook; other parameters are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    account_id: Annotated[str, Field(pattern="^[0-9]{1,20}$")]
    signature: Annotated[str, Field(pattern="^[0-9A-Fa-f]{64}$", repr=False)]
    """HMAC-SHA-256 of the client id and the account id, with the client secret as its key."""
    client_uuid: str = ""
    client_id: str = ""
    """An alternative name for `client_uuid`."""


_Code = Annotated[str, Field(min_length=1, max_length=MAX_CODE)]
_State = Annotated[str, Field(max_length=MAX_STATE)]
_Verifier = Annotated[str, Field(max_length=1024)]


class ExchangeBody(Body):
    """The code from the deep link, or the state and verifier of an authorization request whose link was lost."""

    # Client generators take `anyOf` for a choice between classes, and ignore `if`.
    model_config = ConfigDict(
        json_schema_extra={"if": schema_of_texts("code"), "else": schema_of_texts("state", "code_verifier")}
    )

    wanted: ClassVar[str] = (
        'The body must be a JSON object {"code": "…"}, with a code of 1 to 4096 bytes, '
        'or {"state": "…", "code_verifier": "…"}.'
    )
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    code: Annotated[_Code | None, Field(repr=False)] = None
    """AMO's authorization code, or a ticket."""
    state: Annotated[_State | None, Field(repr=False)] = None
    """The state in the response of `POST /authorizations`; requires the user's JWT, and is ignored beside a code."""
    code_verifier: Annotated[_Verifier | None, Field(repr=False)] = None
    """The verifier of the code challenge in the authorization request (RFC 7636)."""
    referer: str | None = None
    """The account's host, for a code that the callback has not received."""

    @model_validator(mode="after")
    def _is_code_or_state(self) -> Self:
        if self.code is None and (self.state is None or self.code_verifier is None):
            raise ValueError("a code, or a state and a verifier")
        if len((self.code or "").encode(errors="surrogatepass")) > MAX_CODE:
            raise ValueError("too long")
        return self


async def exchange_code(call: Call[None, ExchangeBody]) -> Success[AppStatus]:
    """Exchange a code if necessary, and return its result; a user who provably started the flow can become an owner."""
    user, code, state = call.caller or None, call.body.code, call.body.state or ""
    if user is None and code is None:
        raise Unauthorized("missing")
    presented = RedeemRequest(
        code=(code or "").encode(),
        state=state.encode(errors="surrogatepass") if code is None else None,
        verifier=call.body.code_verifier,
        user=user,
        host=call.body.referer,
        address=call.address,
    )
    redeemed = await call.services.oauth.redeemer.redeem(presented)
    outcome, connection = redeemed.result, redeemed.connection
    if outcome.error is not None:
        raise GrantFailed(outcome.error)
    if outcome.status is GrantStatus.EXCHANGING:
        raise RetryableError
    if connection is None or connection.status is Status.DISCONNECTED:
        return Success(data=NOT_CONNECTED, message=NOT_CONNECTED.message)
    if user is None or redeemed.is_owner:
        shown = app_status(connection, call.services.core.clock.now())
        return Success(data=shown, message=shown.message)
    return Success(data=await status_of(call, user), message=_NOT_TO_YOU)


async def status(call: Call[None, None]) -> Success[AppStatus]:
    """Return the status of the user's connection."""
    shown = await status_of(call, call.caller)
    return Success(data=shown, message=shown.message)


class DisconnectBody(Body):
    """The account to disconnect; without an account, all accounts of the user are disconnected."""

    wanted: ClassVar[str] = (
        'The body must be empty or a JSON object; "accountId", if present, must be a string of 1 to 64 characters.'
    )
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    accountId: Annotated[  # noqa: N815 -- the existing app's name
        Annotated[str, Field(min_length=1, max_length=64)] | None,
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 64}),
    ] = None
    """The `accountId` in the status; `null` is invalid, so that an unknown account does not mean all accounts."""

    @field_validator("accountId", mode="before")
    @classmethod
    def _is_known(cls, value: object) -> object:
        if value is None:
            raise ValueError("null")
        return value


async def disconnect(call: Call[None, DisconnectBody]) -> Success[AppStatus]:
    """Remove the user as an owner of one account's connections or of all connections; return the resulting status.

    The tokens of connections without another owner are erased.
    """
    events = await call.services.store.unbind(call.caller, account_id=call.body.accountId)
    for event in events:
        call.services.log.info(event.name, connection_id=event.connection_id, **event.fields)
    return Success(data=await status_of(call, call.caller), message=_DISCONNECTED if events else _NOTHING_DISCONNECTED)


async def status_of(call: Call[Any, Any], user: str) -> AppStatus:
    """Return the status of the account that the user connected last."""
    try:
        [connection, *_] = await call.services.lifecycle.lookup.find_all(f"owner:{user}")
    except NotFound:
        return NOT_CONNECTED
    return app_status(connection, call.services.core.clock.now())


@shape
class HookReceived:
    """The response to AMO's hook."""

    success: Literal[True] = True
    data: AppStatus | None = None  # the envelope's member; client generators have no type for `null` alone
    """Always `null`."""
    message: str
    """A human-readable message."""


async def hook_disconnect(call: Call[None, None]) -> HookReceived | web.Response:
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
    return HookReceived(message="The account's connections are being checked.")


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
            GrantFailed,
            PkceMismatch,
            NotFound,
            Pending,
            GrantExpired,
            TooManyAttempts,
            RetryableError,
        ),
    ),
    Route("GET", "/status", status, Jwt.REQUIRED, answer=Success[AppStatus], errors=(RetryableError,)),
    Route(
        "POST",
        "/disconnect",
        disconnect,
        Jwt.REQUIRED,
        body=DisconnectBody,
        answer=Success[AppStatus],
        errors=(RetryableError,),
    ),
    Route(
        "GET",
        "/hooks/disconnect",
        hook_disconnect,
        unparsed_query=HookQuery,
        answer=HookReceived,
        replies={403: failure_reply(403, PkceMismatch.code), 503: failure_reply(503, StoreUnavailable.code)},
    ),
    head_route("/hooks/disconnect"),  # HEAD must not start a check
)
