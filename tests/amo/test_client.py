"""The HTTP client of AMO: one request per call, no repetition, and whether it was sent."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from amo_callback import __version__
from amo_callback.amo.client import AmoClient
from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.amo.sandbox.app import Fault
from amo_callback.errors import (
    AccountNotAllowed,
    CodeUsed,
    HostNotAllowed,
    InvalidRefreshToken,
    InvalidRequest,
    RequestNotSent,
    UnknownOutcome,
    VendorRateLimited,
)
from amo_callback.model import TokenState
from amo_callback.rate_limit import LocalLimits, Priority
from tests.fakes import FakeClock, RecordingObserver
from tests.service import HOST, Amo, amo_client


async def test_client_exchanges_code_and_refreshes_pair_once(client: AmoClient, amo: Amo) -> None:
    """A code yields a pair and its refresh token another; each is accepted once."""
    code = amo.code().encode()
    first = await client.exchange(code=code, domain=HOST, not_after=math.inf)
    second = await client.refresh(refresh_token=first.pair.refresh_token, domain=HOST, not_after=math.inf)
    assert amo.fake.live_account(second.pair.access_token) is amo.account
    assert first.account.account_id == str(amo.account.id)
    with pytest.raises(CodeUsed):
        await client.exchange(code=code, domain=HOST, not_after=math.inf)
    with pytest.raises(InvalidRefreshToken):
        await client.refresh(refresh_token=first.pair.refresh_token, domain=HOST, not_after=math.inf)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (Fault.HTTP_500, "http_500"),
        (Fault.HTTP_500_AFTER, "http_500"),
        (Fault.HTML, "http_502"),
        (Fault.HTML_200, "not_json"),
        (Fault.HALF_JSON_AFTER, "not_json"),
        (Fault.NO_REFRESH_TOKEN_AFTER, "no_pair"),
        (Fault.REDIRECT, "http_302"),
        (Fault.HUGE_AFTER, "too_large"),
        (Fault.NOTHING_AFTER, "connection_lost"),
    ],
)
async def test_client_unusable_answer_is_unknown_outcome(client: AmoClient, amo: Amo, fault: Fault, what: str) -> None:
    """An answer that is neither a whole pair nor a rejection is an unknown outcome, and is not sent twice."""
    amo.sandbox.faults.add(fault)
    with pytest.raises(UnknownOutcome) as raised:
        await client.exchange(code=amo.code().encode(), domain=HOST, not_after=math.inf)
    assert raised.value.detail == what
    assert raised.value.__cause__ is None
    assert amo.sandbox.requests == 1
    if fault is Fault.HUGE_AFTER:  # the connection is closed soon after the limit
        await amo.sandbox.cut_off.wait()


async def test_client_without_answer_times_out_with_unknown_outcome(amo: Amo, clock: FakeClock) -> None:
    """No answer within the timeout is an unknown outcome."""
    amo.sandbox.faults.add(Fault.HANG_AFTER)
    async with amo_client(amo, clock, timeout=0.2) as client:
        with pytest.raises(UnknownOutcome) as raised:
            await client.exchange(code=amo.code().encode(), domain=HOST, not_after=math.inf)
    assert raised.value.detail == "timeout"


async def test_client_without_connection_raises_request_not_sent(amo: Amo, clock: FakeClock) -> None:
    """If no connection is established, the token is not spent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    amo.address = f"{address[0]}:{address[1]}"
    async with amo_client(amo, clock) as client:
        with pytest.raises(RequestNotSent):
            await client.refresh(refresh_token="old", domain=HOST, not_after=math.inf)


@pytest.mark.parametrize("access_token", ["line\r\nX: y", "tok\u00e9n"])
async def test_introspection_token_that_is_no_header_value_is_not_sent(
    amo: Amo, clock: FakeClock, access_token: str
) -> None:
    """An access token that is not a valid header value is not sent, and its state is unknown."""
    async with amo_client(amo, clock) as client:
        result = await client.introspect_access_token(access_token=access_token, domain=HOST, account_id="31920194")
    assert (result.state, amo.sandbox.introspections) == (TokenState.UNKNOWN, 0)


@asynccontextmanager
async def _raw_amo(amo: Amo, answer: bytes, *, asleep: float = 0.0) -> AsyncIterator[None]:
    """Serve these bytes, then block the whole process for a while."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"redirect_uri")
        writer.write(answer)
        writer.close()
        time.sleep(asleep)  # noqa: ASYNC251 -- this simulates a stopped process

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    amo.address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        yield


REQUESTS: dict[str, Callable[[AmoClient, str], Awaitable[object]]] = {
    "refresh": lambda client, host: client.refresh(refresh_token="old", domain=host, not_after=math.inf),
    "exchange": lambda client, host: client.exchange(code=b"c", domain=host, not_after=math.inf),
    "introspect_refresh_token": lambda client, host: client.introspect_refresh_token(
        refresh_token="old", api_domain=host, account_id="7"
    ),
    "introspect_access_token": lambda client, host: client.introspect_access_token(
        access_token="a", domain=host, account_id="7"
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_client_disallowed_host_gets_no_request(client: AmoClient, amo: Amo, name: str) -> None:
    """A request to a host that is not allowed is not sent, also with another `amo.endpoint`."""
    for host in ("evil.example.com", f"{HOST}@evil.example.com", f"{HOST}/..", f"{HOST}:1"):
        with pytest.raises(HostNotAllowed):
            await REQUESTS[name](client, host)
    assert amo.sandbox.requests + amo.sandbox.introspections == 0


PAIR = b'{"token_type": "Bearer", "expires_in": 86400, "access_token": "a", "refresh_token": "r"}'


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAIR), PAIR)


@pytest.mark.parametrize(
    ("status", "body"), [(b"200 OK", PAIR[:-1]), (b"401 Unauthorized", b'{"hint": "Token has been revoked"}')]
)
async def test_client_truncated_answer_is_unknown_outcome(
    amo: Amo, clock: FakeClock, status: bytes, body: bytes
) -> None:
    """A truncated answer without a whole pair is an unknown outcome; `test_shapes.py` tests those with a pair."""
    answer = b"HTTP/1.1 %s\r\nContent-Length: 999\r\n\r\n%s" % (status, body)
    async with _raw_amo(amo, answer), amo_client(amo, clock) as client:
        with pytest.raises(UnknownOutcome) as raised:
            await client.refresh(refresh_token="old", domain=HOST, not_after=math.inf)
    assert raised.value.detail == "half_an_answer"


async def test_client_reads_answer_after_process_was_stopped(amo: Amo, clock: FakeClock) -> None:
    """A process that continues after its timeout reads the answer from the socket before it raises."""
    async with _raw_amo(amo, ANSWER, asleep=2.1), amo_client(amo, clock, timeout=2.0) as client:
        issued = await client.refresh(refresh_token="old", domain=HOST, not_after=math.inf)
    assert issued.pair.refresh_token == "r"


async def test_client_sends_user_agent_on_new_connection(amo: Amo, clock: FakeClock) -> None:
    """Each request has the User-Agent and a new connection, because a reused one might be closed during the request."""
    seen: list[tuple[str, str]] = []
    peers: set[object] = set()

    async def look(request: web.Request) -> web.Response:
        seen.append((request.headers["User-Agent"], request.headers["Accept-Encoding"]))
        peers.add(request.transport and request.transport.get_extra_info("peername"))
        return web.Response(status=500)

    async with TestServer(_app(look)) as server:
        amo.address = f"{server.host}:{server.port}"
        async with amo_client(amo, clock) as client:
            for _ in range(2):
                with pytest.raises(UnknownOutcome):
                    await client.refresh(refresh_token="old", domain=HOST, not_after=math.inf)
    assert seen == [(f"amo-callback/{__version__}", "identity")] * 2
    assert len(peers) == 2


def _app(handler: object) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)  # type: ignore[arg-type]  # reason: any handler
    return app


@pytest.mark.parametrize("request_of", REQUESTS)
async def test_client_429_pauses_all_requests_until_retry_after(amo: Amo, clock: FakeClock, request_of: str) -> None:
    """A 429 to any kind of request pauses all requests until the date in `Retry-After`."""

    async def refuse(_: web.Request) -> web.Response:
        dates = {"Date": "Sun, 01 Nov 2026 07:00:00 GMT", "Retry-After": "Sun, 01 Nov 2026 07:02:00 GMT"}
        return web.Response(status=429, headers=dates)

    async with TestServer(_app(refuse)) as server:
        amo.address = f"{server.host}:{server.port}"
        rate_limiter = RateLimiter(
            per_second=5, shared=LocalLimits(clock=clock), clock=clock, observer=RecordingObserver()
        )
        async with amo_client(amo, clock, rate_limiter=rate_limiter) as client:
            with suppress(VendorRateLimited):
                await REQUESTS[request_of](client, "api-b.amocrm.ru")
            slot = asyncio.ensure_future(client.acquire_slot(Priority.KNOWN_USER))
            await clock.until_sleeping(120)
            clock.advance(119.9)
            assert not slot.done()
            await clock.until_sleeping()
            clock.advance(0.2)
            await slot


class HeldRateLimiter:
    def __init__(self) -> None:
        self.came, self.go, self.may_leave = asyncio.Event(), asyncio.Event(), True

    async def wait_to_send(self, _priority: Priority, *, limit: float) -> bool:
        assert limit > 0
        self.came.set()
        await self.go.wait()
        return self.may_leave

    async def close(self) -> None:
        return


async def test_client_rate_limit_wait_does_not_count_as_timeout(amo: Amo, clock: FakeClock) -> None:
    """The wait for the rate limit may exceed the timeout, and the answer is still read."""
    rate_limiter = HeldRateLimiter()
    async with (
        _raw_amo(amo, ANSWER),
        amo_client(amo, clock, timeout=1.0, rate_limiter=cast("RateLimiter", rate_limiter)) as client,
    ):
        refreshing = asyncio.ensure_future(client.refresh(refresh_token="old", domain=HOST, not_after=math.inf))
        await rate_limiter.came.wait()
        asyncio.get_running_loop().call_later(1.2, rate_limiter.go.set)
        assert (await refreshing).pair.refresh_token == "r"


@pytest.mark.parametrize("late", [True, False])
async def test_client_late_request_is_not_sent(amo: Amo, clock: FakeClock, late: bool) -> None:  # noqa: FBT001 -- pytest passes it
    """After `not_after`, or if the rate limit does not allow it, nothing is sent or spent."""
    rate_limiter = HeldRateLimiter()
    rate_limiter.may_leave = late
    async with amo_client(amo, clock, rate_limiter=cast("RateLimiter", rate_limiter)) as client:
        not_after = clock.monotonic() + 10
        refreshing = asyncio.ensure_future(client.refresh(refresh_token="old", domain=HOST, not_after=not_after))
        await rate_limiter.came.wait()
        clock.advance(10.1 if late else 0)
        rate_limiter.go.set()
        with pytest.raises(RequestNotSent):
            await refreshing
    assert amo.sandbox.requests == 0


@pytest.mark.parametrize("request_of", REQUESTS)
async def test_client_every_request_waits_for_rate_limit(amo: Amo, clock: FakeClock, request_of: str) -> None:
    """Refreshes, exchanges and both introspections wait for the same rate limit."""
    rate_limiter = HeldRateLimiter()
    rate_limiter.may_leave = False
    rate_limiter.go.set()
    async with amo_client(amo, clock, rate_limiter=cast("RateLimiter", rate_limiter)) as client:
        with suppress(RequestNotSent):
            await REQUESTS[request_of](client, "api-b.amocrm.ru")
    assert rate_limiter.came.is_set()
    assert (amo.sandbox.requests, amo.sandbox.introspections) == (0, 0)


def test_check_domain_rejects_foreign_and_missing_host(client: AmoClient) -> None:
    """A foreign host is rejected, and a missing one if no default is configured."""
    assert client.check_domain("https://A.amocrm.ru") == "a.amocrm.ru"
    for junk in ("evil.com", "\ud800.amocrm.ru"):
        with pytest.raises(AccountNotAllowed):
            client.check_domain(junk)
    for none in (None, ""):
        with pytest.raises(InvalidRequest):
            client.check_domain(none)
