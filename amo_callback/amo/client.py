"""A client of AMO's token endpoint and introspection.

`protocol` and `introspection` build requests and parse responses; `transport` sends the requests.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING

from amo_callback.amo.introspection import (
    ACCESS_TOKEN_DEAD,
    NOT_CHECKED,
    REFRESH_TOKEN_REFUSED,
    UNKNOWN,
    access_token_request,
    is_hook,
    read_introspection,
    refresh_token_request,
)
from amo_callback.amo.pair import account_of, read_claims, token_claims
from amo_callback.amo.protocol import (
    AmoRequest,
    AmoResponse,
    GrantType,
    Integration,
    exchange_request,
    pause_after,
    read_token_response,
    refresh_request,
)
from amo_callback.amo.redirect import read_redirect
from amo_callback.errors import AccountNotAllowed, InvalidRequest, RequestNotSent, UnknownOutcome, VendorRateLimited
from amo_callback.events import Event, Level
from amo_callback.hosts import parse_account_host
from amo_callback.rate_limit import Priority

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_callback.amo.rate_limiter import RateLimiter
    from amo_callback.amo.transport import Transport
    from amo_callback.clock import Clock
    from amo_callback.events import Observer
    from amo_callback.grant import CallbackParams
    from amo_callback.model import Account, IntrospectionResult, TokenClaims, TokenResponse


_KINDS = {GrantType.CODE: "exchange", GrantType.REFRESH_TOKEN: "refresh"}


class AmoClient:
    """A client of AMO.

    Each call sends at most one request, which is never repeated. Redirects are never followed.
    """

    def __init__(
        self,
        *,
        integration: Integration,
        transport: Transport,
        rate_limiter: RateLimiter,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._integration = integration
        self._transport = transport
        self._rate_limiter = rate_limiter
        self._clock = clock
        self._observer = observer
        self._allowed = integration.allowed_domains
        self.timeout = transport.timeout
        self.client_id = integration.client_id

    def consent_url(self, state: str) -> str:
        return self._integration.consent_url(state)

    def read_redirect(self, query: bytes) -> CallbackParams:
        return read_redirect(query, default_domain=self._integration.default_domain, allowed_domains=self._allowed)

    def check_domain(self, host: str | None) -> str:
        """Return the validated host of an account: `host` if it is set, otherwise `amo.default_domain`.

        Raises `InvalidRequest` if neither is set, and `AccountNotAllowed` if the host is not allowed.
        """
        named = host or self._integration.default_domain
        if not named:
            raise InvalidRequest("referer: required, because amo.default_domain is not set")
        domain = parse_account_host(named.encode(errors="replace"), allowed=self._allowed)
        if domain is None:
            raise AccountNotAllowed
        return domain

    def base_url(self, host: str) -> str:
        """Return the base URL of AMO's API at a stored host; raises `HostNotAllowed` if the host is not allowed."""
        return self._integration.address(host, "")

    async def acquire_slot(self, priority: Priority) -> None:
        await self._rate_limiter.acquire(priority)

    def account_of(self, access_token: str) -> Account:
        return account_of(read_claims(access_token), allowed=self._allowed)

    def token_claims(self, access_token: str) -> TokenClaims:
        return token_claims(access_token, allowed=self._allowed)

    def is_hook(self, *, account_id: str, client_id: str, signature: str) -> bool:
        """Return whether AMO signed the hook that reports the integration as disabled in an account."""
        return is_hook(self._integration, account_id=account_id, client_id=client_id, signature=signature)

    async def exchange(self, *, code: bytes, domain: str, not_after: float) -> TokenResponse:
        """Exchange an authorization code; nothing is sent after the monotonic time `not_after`.

        Raises `RequestNotSent` and the errors of `protocol.read_token_response`. `HostNotAllowed` is raised before
        anything is sent.
        """
        request = exchange_request(self._integration, code=code, domain=domain)
        return await self._issued(request, GrantType.CODE, presented=code.decode(), not_after=not_after)

    async def refresh(self, *, refresh_token: str, domain: str, not_after: float) -> TokenResponse:
        """Spend a refresh token; nothing is sent after the monotonic time `not_after`.

        `not_after` is checked just before the first byte is sent. Raises `RequestNotSent` and the errors of
        `protocol.read_token_response`. `HostNotAllowed` is raised before anything is sent.
        """
        request = refresh_request(self._integration, refresh_token=refresh_token, domain=domain)
        return await self._issued(request, GrantType.REFRESH_TOKEN, presented=refresh_token, not_after=not_after)

    async def introspect_refresh_token(
        self, *, refresh_token: str, api_domain: str | None, account_id: str
    ) -> IntrospectionResult:
        """Introspect a refresh token; raises only `HostNotAllowed`."""
        return await self._introspect(
            refresh_token_request(self._integration, refresh_token=refresh_token, api_domain=api_domain),
            account_id,
            REFRESH_TOKEN_REFUSED,
        )

    async def introspect_access_token(self, *, access_token: str, domain: str, account_id: str) -> IntrospectionResult:
        """Introspect an access token; raises only `HostNotAllowed`."""
        return await self._introspect(
            access_token_request(self._integration, access_token=access_token, domain=domain),
            account_id,
            ACCESS_TOKEN_DEAD,
        )

    async def _issued(
        self, request: AmoRequest, grant_type: GrantType, *, presented: str, not_after: float
    ) -> TokenResponse:
        response = await self._ask(request, _KINDS[grant_type], not_after=not_after)
        try:
            return read_token_response(
                response, grant_type=grant_type, presented=presented, now=self._clock.now(), allowed=self._allowed
            )
        except VendorRateLimited as refused:
            await self._rate_limiter.pause(refused.retry_after)
            raise

    async def _introspect(
        self, request: AmoRequest | None, account_id: str, refusals: frozenset[int]
    ) -> IntrospectionResult:
        if request is None:
            return NOT_CHECKED
        try:
            response = await self._ask(request, "introspection")
        except (RequestNotSent, UnknownOutcome):
            return UNKNOWN
        if response.status == HTTPStatus.TOO_MANY_REQUESTS:
            await self._rate_limiter.pause(pause_after(response, now=self._clock.now()))
        return read_introspection(response, account_id=account_id, refusals=refusals, allowed=self._allowed)

    async def _ask(self, request: AmoRequest, kind: str, *, not_after: float = math.inf) -> AmoResponse:
        began, fields = self._clock.monotonic(), {"kind": kind}
        priority = Priority.ANONYMOUS if kind == _KINDS[GrantType.CODE] else Priority.BACKGROUND
        try:
            response = await self._transport.send(request, priority=priority, not_after=not_after)
        except (RequestNotSent, UnknownOutcome) as error:
            self._log_request({**fields, **error.fields}, began)
            raise
        self._log_request({**fields, "status": response.status}, began)
        return response

    def _log_request(self, fields: Mapping[str, object], began: float) -> None:
        seconds = round(self._clock.monotonic() - began, 3)
        self._observer(Event(name="amo.request", level=Level.DEBUG, fields={**fields, "seconds": seconds}))
