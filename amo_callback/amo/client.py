"""AMO over HTTP: the thin edge under `protocol`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp

from amo_callback import __version__
from amo_callback.amo.protocol import (
    ANSWER_LIMIT,
    AmoRequest,
    Answer,
    GrantType,
    Integration,
    exchange_request,
    read_answer,
    refresh_request,
)
from amo_callback.amo.redirect import read_redirect
from amo_callback.errors import AccountNotAllowed, InvalidRequest, NotSent, OutcomeOpen, RateLimited
from amo_callback.hosts import check_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from amo_callback.amo.pace import Pace
    from amo_callback.model import Issued, Redirect
    from amo_callback.ports import Clock, Priority


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the HTTP session for `AmoClient`.

    A connection a request: one kept alive may be closed by AMO just as we write to it, and then nobody knows
    whether the token was spent. The trace notes the moment from which that is so.
    """
    trace = aiohttp.TraceConfig()

    async def sent(_session: object, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.sent = True

    trace.on_request_headers_sent.append(sent)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        trust_env=False,
        headers={"User-Agent": f"amo-callback/{__version__}"},
    ) as session:
        yield session


class AmoClient:
    """Speak to AMO: one request a call, never repeated, redirects never followed."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        integration: Integration,
        pace: Pace,
        clock: Clock,
        timeout: float,
        default_domain: str | None = None,
        allowed_domains: Sequence[str] = (),
    ) -> None:
        self._session = session
        self._integration = integration
        self._pace = pace
        self._clock = clock
        self._default_domain = default_domain
        self._allowed = tuple(allowed_domains)
        self.timeout = timeout
        self.client_id = integration.client_id

    def read_redirect(self, query: bytes) -> Redirect:
        """Read the raw query of AMO's redirect."""
        return read_redirect(query, default_domain=self._default_domain, allowed_domains=self._allowed)

    def check_domain(self, host: str | None) -> str:
        """Return the account's host; raises `InvalidRequest` for none at all, `AccountNotAllowed`."""
        named = host or self._default_domain
        if not named:
            raise InvalidRequest
        domain = check_host(named.encode(errors="replace"), allowed=self._allowed)
        if domain is None:
            raise AccountNotAllowed
        return domain

    async def slot(self, priority: Priority) -> None:
        """Wait until the rate limit lets one more request go."""
        await self._pace.slot(priority)

    async def exchange(self, *, code: bytes, domain: str) -> Issued:
        """Spend an authorization code; raises as `protocol.read_answer`, and `NotSent`."""
        request = exchange_request(self._integration, code=code, domain=domain)
        return await self._issued(request, GrantType.CODE)

    async def refresh(self, *, refresh_token: str, domain: str) -> Issued:
        """Spend a refresh token; raises as `protocol.read_answer`, and `NotSent`."""
        request = refresh_request(self._integration, refresh_token=refresh_token, domain=domain)
        return await self._issued(request, GrantType.REFRESH_TOKEN)

    async def _issued(self, request: AmoRequest, grant_type: GrantType) -> Issued:
        answer = await self._post(request)
        try:
            return read_answer(answer, grant_type=grant_type, now=self._clock.now(), allowed=self._allowed)
        except RateLimited as refused:
            self._pace.pause(refused.retry_after)
            raise

    async def _post(self, request: AmoRequest) -> Answer:
        context = SimpleNamespace(sent=False)
        try:
            async with self._session.post(
                request.url,
                data=request.body,
                headers=request.headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.timeout),
                trace_request_ctx=context,
            ) as response:
                body = await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The library's texts may quote what was sent or received: none is kept, nor is the chain.
            if not context.sent:
                raise NotSent from None
            raise OutcomeOpen(_what(error)) from None
        return Answer(
            status=response.status,
            body=body[:ANSWER_LIMIT],
            truncated=len(body) > ANSWER_LIMIT,
            retry_after=response.headers.get("Retry-After"),
        )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read one byte more than the limit at most."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        body += chunk
        if len(body) > ANSWER_LIMIT:
            break
    return bytes(body)


def _what(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "half_an_answer"
    return "connection_lost"
