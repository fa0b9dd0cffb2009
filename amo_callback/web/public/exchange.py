"""`POST {base}/exchange-code`: the app's call after the deep link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from amo_callback.errors import (
    AccountNotAllowed,
    AuthFailed,
    CodeExpired,
    CodeUsed,
    GrantExpired,
    InvalidState,
    NotFound,
    PkceMismatch,
    RetryableError,
    TooManyAttempts,
)
from amo_callback.grant import MAX_CODE, GrantStatus
from amo_callback.model import Status
from amo_callback.oauth.redemption import RedeemRequest
from amo_callback.web.auth import Jwt
from amo_callback.web.parsing import Body
from amo_callback.web.public.account import status_of
from amo_callback.web.public.envelope import AppStatus, Success, app_status, deep_link_failure
from amo_callback.web.route import Route

if TYPE_CHECKING:
    from aiohttp import web

    from amo_callback.web.route import Call

_NOT_TO_YOU = "The account is connected, but not to you."


class ExchangeBody(Body):
    """The code of the deep link."""

    wanted: ClassVar[str] = 'The body must be JSON: {"code": "…"}, with a code of 1 to 4096 bytes.'
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    code: Annotated[str, Field(min_length=1, max_length=MAX_CODE, repr=False)]
    """AMO's code, or a ticket."""
    code_verifier: Annotated[Annotated[str, Field(max_length=1024)] | None, Field(repr=False)] = None
    """The verifier of the challenge that the authorization request carried (RFC 7636)."""
    referer: str | None = None
    """The account's host, for a code that the callback has not seen."""

    @field_validator("code")
    @classmethod
    def _fits(cls, value: str) -> str:
        if len(value.encode(errors="surrogatepass")) > MAX_CODE:
            raise ValueError("too long")
        return value


async def exchange_code(call: Call[None, ExchangeBody]) -> Success[AppStatus] | web.Response:
    """Return the result of a code that the callback has seen, or exchange one that it has not; bind its user."""
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


EXCHANGE_ROUTE = Route(
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
)
