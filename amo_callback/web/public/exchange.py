"""`POST {base}/exchange-code`: what the app calls after the deep link."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from amo_callback.errors import AmoCallbackError, GrantExpired
from amo_callback.grant import MAX_CODE, GrantStatus
from amo_callback.model import Connection, Status
from amo_callback.web.answers import failure, status_of, success
from amo_callback.web.keys import CLOCK, CONNECT, PROXIES
from amo_callback.web.public.way_back import LATE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_BODY_PATIENCE = 4.0
"""Seconds that a body may take: it is small, and who stalls with it would also hold up the end of the process."""

_MESSAGES = {
    "invalid_request": 'The body must be JSON: {"code": "…"}, with a code of 1 to 4096 bytes.',
    "account_not_allowed": "This amoCRM account cannot be connected here.",
    "code_expired": "The code has expired: connect again.",
    "code_used": "The code was already used elsewhere: connect again.",
    "amo_unavailable": "amoCRM cannot be asked right now: try again with the same code.",
    "rate_limited": "Too many attempts: wait a minute.",
    "auth_failed": "amoCRM does not accept the code: connect again.",
}


class ExchangeBody(BaseModel):
    """What the app sends; what else it sends is ignored."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    code: str
    referer: str | None = None

    @field_validator("code")
    @classmethod
    def _fits(cls, value: str) -> str:
        if not 0 < len(value.encode()) <= MAX_CODE:
            raise ValueError("too long")
        return value


def routes(base: str) -> Sequence[web.RouteDef]:
    """Return this module's routes."""
    return [web.post(f"{base}/exchange-code", exchange_code)]


async def exchange_code(request: web.Request) -> web.Response:
    """Answer what became of a code that the callback has seen, or exchange one that it has not."""
    try:
        body = ExchangeBody.model_validate_json(await asyncio.wait_for(request.read(), _BODY_PATIENCE))
        code = body.code.encode()
    except TimeoutError:
        return _refused("invalid_request", status=408)
    except (ValidationError, UnicodeEncodeError, web.RequestPayloadError):
        return _refused("invalid_request")
    connect = request.app[CONNECT]
    try:
        outcome = await connect.complete(
            code=code,
            state=None,
            host=body.referer,
            address=request.app[PROXIES].client_of(request),
        )
        connection = await connect.connection_of(outcome)
    except AmoCallbackError as error:
        return _refused(error.word, status=410 if isinstance(error, GrantExpired) else None)
    if outcome.status is GrantStatus.EXCHANGING or outcome.error is not None:
        return _refused(outcome.error or LATE)
    return success(_data(connection, request.app[CLOCK].now()), "amoCRM is connected.")


def _refused(error: str, *, status: int | None = None) -> web.Response:
    answer = failure(error, _MESSAGES.get(error, _MESSAGES["auth_failed"]), status=status or status_of(error))
    if answer.status in {429, 503}:
        answer.headers["Retry-After"] = "5"
    return answer


def _data(connection: Connection | None, now: datetime) -> dict[str, object]:
    """Return the connection as the app knows it."""
    if connection is None:
        return {"connected": False, "hasTokens": False, "domain": None, "accountId": None}
    expires_at = connection.access_expires_at
    return {
        "connected": connection.status is Status.ACTIVE,
        "hasTokens": connection.sealed_pair is not None and expires_at is not None and expires_at > now,
        "domain": connection.domain,
        "accountId": connection.account_id,
    }
