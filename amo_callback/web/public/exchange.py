"""`POST {base}/exchange-code`: what the app calls after the deep link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, field_validator

from amo_callback.connect.redemption import Presented
from amo_callback.grant import MAX_CODE, GrantStatus
from amo_callback.model import Status
from amo_callback.web.answers import TOLD, FailureCode, ToldConnection, connected_message, success, told_connection
from amo_callback.web.keys import CLOCK, PROXIES, REDEEMER
from amo_callback.web.operation import Jwt
from amo_callback.web.public.bodies import read_body
from amo_callback.web.public.errors import refuse
from amo_callback.web.public.operation import app_operation
from amo_callback.web.public.users import status_for, user_if_told
from amo_callback.web.public.way_back import LATE

if TYPE_CHECKING:
    from collections.abc import Sequence

_WANTED = 'The body must be JSON: {"code": "…"}, with a code of 1 to 4096 bytes.'
_NOT_TO_YOU = "The account is connected, but not to you."


class ExchangeBody(BaseModel):
    """What the app sends; what else it sends is ignored."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    code: Annotated[str, Field(min_length=1, max_length=MAX_CODE, repr=False)]
    """What the deep link brought: AMO's code, or a ticket."""
    code_verifier: Annotated[Annotated[str, Field(max_length=1024)] | None, Field(repr=False)] = None
    """What fits the challenge that the grant began with (RFC 7636)."""
    referer: str | None = None
    """The account's host, for a code that the callback has not seen."""

    @field_validator("code")
    @classmethod
    def _fits(cls, value: str) -> str:
        if len(value.encode()) > MAX_CODE:
            raise ValueError("too long")
        return value


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.post(f"{base}/exchange-code", exchange_code)]


@app_operation(
    "exchange_code",
    jwt=Jwt.OPTIONAL,
    body=ExchangeBody,
    answer=ToldConnection,
    example=TOLD,
    failures={
        400: [
            FailureCode.INVALID_REQUEST,
            FailureCode.INVALID_STATE,
            FailureCode.ACCOUNT_NOT_ALLOWED,
            FailureCode.CODE_EXPIRED,
            FailureCode.CODE_USED,
            FailureCode.AUTH_FAILED,
        ],
        403: [FailureCode.FORBIDDEN],
        404: [FailureCode.NOT_FOUND],
        410: [FailureCode.CODE_EXPIRED],
        429: [FailureCode.RATE_LIMITED],
        503: [FailureCode.AMO_UNAVAILABLE],
    },
)
async def exchange_code(request: web.Request) -> web.Response:
    """Answer what became of a code that the callback has seen, or exchange one that it has not; bind its user."""
    body = await read_body(request, ExchangeBody, wanted=_WANTED)
    presented = Presented(
        code=body.code.encode(),
        verifier=body.code_verifier,
        user=await user_if_told(request),
        host=body.referer,
        address=request.app[PROXIES].client_of(request),
    )
    redeemed = await request.app[REDEEMER].redeem(presented)
    outcome, connection = redeemed.outcome, redeemed.connection
    if outcome.status is GrantStatus.EXCHANGING or outcome.error is not None:
        return refuse(outcome.error or LATE)
    if presented.user is None or redeemed.is_owner:
        told = told_connection(connection, request.app[CLOCK].now())
        return success(told, connected_message(told))
    told = await status_for(request, presented.user)
    is_connected = connection is not None and connection.status is Status.ACTIVE
    return success(told, _NOT_TO_YOU if is_connected else connected_message(told))
