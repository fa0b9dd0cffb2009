"""The issuer's key set over HTTP: the rate of requests, and answers during an outage."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from amo_callback import __version__
from amo_callback.errors import JwksUnavailable, RetryableError, Unauthorized
from amo_callback.events import Level
from amo_callback.identity.jwks import TIMEOUT, JwksVerifier, open_jwks
from tests.fakes import FakeClock, RecordingObserver
from tests.identity.jwts import NOW, RULES, claims, ec_key, jwk, rsa_key, signed

LIMIT = 262_144
"""Maximum size of an answer in bytes."""


class Issuer:
    """An issuer on a socket, with answers set by a test."""

    def __init__(self) -> None:
        self.keys = [jwk(rsa_key("first"), kid="first")]
        self.requests: list[web.Request] = []
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.status = 200
        self.body: bytes | None = None
        self.headers: dict[str, str] = {}
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self._server.make_url("/keys"))

    @property
    def published(self) -> bytes:
        return json.dumps({"keys": self.keys}).encode()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Issuer]:
        async with self._server:
            try:
                yield self
            finally:
                self.open.set()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.asked.set()
        await self.open.wait()
        if request.path != "/keys":
            return web.Response(body=self.published)
        return web.Response(body=self.body or self.published, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serve() as served:
        yield served


@pytest.fixture
async def users(issuer: Issuer, clock: FakeClock, witness: RecordingObserver) -> AsyncIterator[JwksVerifier]:
    async with open_jwks(issuer.url, rules=RULES, clock=clock, observer=witness) as opened:
        yield opened


def _signed_by(name: str, payload: dict[str, Any] | None = None, *, kid: str | None = None, **header: Any) -> str:
    return signed(payload or claims(exp=4_000_000_000), key=rsa_key(name), alg="RS256", kid=kid or name, **header)


async def _unavailable(users: JwksVerifier, token: str) -> str:
    with pytest.raises(JwksUnavailable) as raised:
        await users.verify(token)
    assert isinstance(raised.value, RetryableError)
    assert str(raised.value) == JwksUnavailable.__doc__
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return raised.value.detail


async def _unauthorized(users: JwksVerifier, token: str) -> str:
    with pytest.raises(Unauthorized) as raised:
        await users.verify(token)
    return raised.value.detail


# --- attacks -------------------------------------------------------------------------------------


async def test_jwks_unknown_kids_cause_one_request_a_minute(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """Tokens with made-up key ids cause at most one request per minute."""
    assert await users.verify(_signed_by("first")) == "42"
    for minute in range(3):
        clock.advance(59)
        assert await _unauthorized(users, _signed_by("attacker", kid="early")) == "key"
        assert len(issuer.requests) == 1 + minute
        clock.advance(1 + minute)  # as soon as it is allowed, and later as well
        details = await asyncio.gather(*(_unauthorized(users, _signed_by("attacker", kid=f"{n}")) for n in range(50)))
        assert set(details) == {"key"}
        assert len(issuer.requests) == 2 + minute


async def test_jwks_keys_and_addresses_in_token_are_ignored(users: JwksVerifier, issuer: Issuer) -> None:
    """A token can neither name the address of its key nor contain the key."""
    attacker_url = issuer.url.replace("/keys", "/attacker")
    brought: dict[str, Any] = {
        "jku": attacker_url,
        "x5u": attacker_url,
        "jwk": jwk(rsa_key("attacker"), kid="attacker"),
    }
    assert await _unauthorized(users, _signed_by("attacker", **brought)) == "key"
    assert await _unauthorized(users, _signed_by("attacker", kid="first", **brought)) == "signature"
    assert await users.verify(_signed_by("first", **brought)) == "42"
    assert [request.path for request in issuer.requests] == ["/keys"]


async def test_jwks_malformed_token_causes_no_request(users: JwksVerifier, issuer: Issuer) -> None:
    """A token that is not a JWT is rejected without a request to the issuer."""
    assert await _unauthorized(users, "junk") == "form"
    assert issuer.requests == []


async def test_jwks_token_with_wrong_claims_is_rejected(users: JwksVerifier) -> None:
    """A token with a valid signature and a wrong audience or a past expiry is rejected."""
    assert await _unauthorized(users, _signed_by("first", claims(aud="another"))) == "audience"
    assert await _unauthorized(users, _signed_by("first", claims(exp=NOW - 60))) == "expired"


# --- key rotation --------------------------------------------------------------------------------


async def test_jwks_rotated_key_is_found_within_a_minute(users: JwksVerifier, issuer: Issuer, clock: FakeClock) -> None:
    """A new key is fetched when a token names it, and the old key is no longer accepted."""
    assert await users.verify(_signed_by("first")) == "42"
    issuer.keys = [jwk(rsa_key("second"), kid="second"), jwk(ec_key("third"), kid="third")]
    assert await _unauthorized(users, _signed_by("second")) == "key"
    clock.advance(60)
    assert await users.verify(_signed_by("second")) == "42"
    assert await users.verify(signed(key=ec_key("third"), alg="ES256", kid="third")) == "42"
    assert await _unauthorized(users, _signed_by("first")) == "key"
    assert len(issuer.requests) == 2


async def test_jwks_rotated_only_key_without_kid_is_found(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """Without a `kid`, a failed signature check makes the verifier fetch the new key."""
    issuer.keys = [jwk(rsa_key("first"))]
    unnamed = [signed(claims(), key=rsa_key(name), alg="RS256") for name in ("first", "second")]
    assert await users.verify(unnamed[0]) == "42"
    issuer.keys = [jwk(rsa_key("second"))]
    clock.advance(60)
    assert await users.verify(unnamed[1]) == "42"


async def test_jwks_set_is_fresh_for_ten_minutes(users: JwksVerifier, issuer: Issuer, clock: FakeClock) -> None:
    """A key withdrawn by the issuer is accepted for less than ten minutes after the set was fetched."""
    assert await users.verify(_signed_by("first")) == "42"
    issuer.keys = [jwk(rsa_key("second"), kid="second")]
    clock.advance(599)
    assert await users.verify(_signed_by("first")) == "42"
    assert len(issuer.requests) == 1
    clock.advance(1)
    assert await _unauthorized(users, _signed_by("first")) == "key"
    assert len(issuer.requests) == 2


# --- concurrent callers --------------------------------------------------------------------------


async def test_jwks_concurrent_callers_share_one_request(users: JwksVerifier, issuer: Issuer) -> None:
    """A caller waits for a request in progress, and a cancelled caller does not affect the others."""
    issuer.open.clear()
    callers = [asyncio.create_task(users.verify(_signed_by("first"))) for _ in range(20)]
    await issuer.asked.wait()
    callers[0].cancel()
    await asyncio.wait({callers[0]})
    assert callers[0].cancelled()
    issuer.open.set()
    assert await asyncio.gather(*callers[1:]) == ["42"] * 19
    assert len(issuer.requests) == 1


async def test_jwks_close_cancels_request(issuer: Issuer, clock: FakeClock, witness: RecordingObserver) -> None:
    """Shutdown does not wait for the issuer."""
    issuer.open.clear()
    async with open_jwks(issuer.url, rules=RULES, clock=clock, observer=witness) as users:
        caller = asyncio.create_task(users.verify(_signed_by("first")))
        await issuer.asked.wait()
    assert "jwks" not in {task.get_name() for task in asyncio.all_tasks()}
    await asyncio.wait({caller})
    assert caller.cancelled()


# --- issuer unavailable --------------------------------------------------------------------------


async def test_jwks_last_set_is_used_for_a_day_during_outage(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock, witness: RecordingObserver
) -> None:
    """Known keys are accepted; an unknown key raises `JwksUnavailable`, because it cannot be checked."""
    assert await users.verify(_signed_by("first")) == "42"
    issuer.status = 503
    clock.advance(86_399)
    assert await users.verify(_signed_by("first")) == "42"
    assert await _unavailable(users, _signed_by("second")) == "status_503"
    assert await _unauthorized(users, _signed_by("second", kid="first")) == "signature"
    clock.advance(1)
    assert await _unavailable(users, _signed_by("first")) == "status_503"
    clock.advance(3600)
    assert await _unavailable(users, _signed_by("first")) == "status_503"
    issuer.status = 200
    clock.advance(60)
    assert await users.verify(_signed_by("first")) == "42"
    assert await _unauthorized(users, _signed_by("second")) == "key"
    assert [event.name for event in witness.events] == ["key_set.failing", "key_set.recovered"]
    assert [event.level for event in witness.events] == [Level.ERROR, Level.INFO]
    assert witness.events[0].fields == {"error": "key_set_unavailable", "detail": "status_503"}


async def test_jwks_failing_issuer_is_asked_after_growing_waits(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock, witness: RecordingObserver
) -> None:
    """The wait doubles from 5 s up to a minute, and callers get an immediate answer meanwhile."""
    issuer.status = 500
    for number, wait in enumerate([5, 10, 20, 40, 60, 60], start=1):
        assert await _unavailable(users, _signed_by("first")) == "status_500"
        clock.advance(wait - 1)
        assert await _unavailable(users, _signed_by("first")) == "status_500"
        assert len(issuer.requests) == number
        clock.advance(1)
    assert [event.name for event in witness.events] == ["key_set.failing"]
    issuer.status = 200
    assert await users.verify(_signed_by("first")) == "42"


async def test_jwks_unknown_kids_during_outage_cause_one_request_a_minute(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """While the set is fresh, an unknown key id does not use the shorter waits after a failure."""
    assert await users.verify(_signed_by("first")) == "42"
    issuer.status = 500
    clock.advance(57)
    for number in (2, 3):
        clock.advance(3)
        assert await _unavailable(users, _signed_by("second")) == "status_500"
        for _ in range(3):
            clock.advance(19)
            assert await _unavailable(users, _signed_by("second")) == "status_500"
            assert len(issuer.requests) == number


SECRETS = [{"kty": "oct", "k": "c2VjcmV0", "kid": "first"}]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda issuer: {"body": issuer.published.ljust(LIMIT + 1)}, "too_long"),
        (lambda _: {"status": 302, "headers": {"Location": "/elsewhere"}}, "status_302"),
        (lambda one: {"body": gzip.compress(one.published), "headers": {"Content-Encoding": "gzip"}}, "no_key_set"),
        (lambda _: {"body": b"<!doctype html><title>Sign in</title>"}, "no_key_set"),
        (lambda _: {"keys": SECRETS}, "no_key_set"),
        (lambda _: {"status": 203}, "status_203"),
    ],
    ids=["too long", "redirect", "compressed", "HTML", "symmetric keys", "status 203"],
)
async def test_jwks_answer_without_key_set_is_unavailable(
    users: JwksVerifier, issuer: Issuer, change: Any, why: str
) -> None:
    """An unusable answer is a failure of the service, not of the user's token."""
    vars(issuer).update(change(issuer))
    assert await _unavailable(users, _signed_by("first")) == why
    assert [request.path for request in issuer.requests] == ["/keys"]


async def test_jwks_set_of_maximum_size_is_read(users: JwksVerifier, issuer: Issuer) -> None:
    """A key set of exactly the maximum size is accepted."""
    issuer.body = issuer.published.ljust(LIMIT)
    assert await users.verify(_signed_by("first")) == "42"


async def test_jwks_truncated_answer_is_unavailable(clock: FakeClock, witness: RecordingObserver) -> None:
    """A part of a key set is not used."""

    async def _break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"keys": [')
        assert request.transport is not None
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/keys", _break_off)
    async with TestServer(app) as server:
        url = str(server.make_url("/keys"))
        async with open_jwks(url, rules=RULES, clock=clock, observer=witness) as users:
            assert await _unavailable(users, _signed_by("first")) == "connection"


async def test_jwks_slow_or_unreachable_issuer_is_unavailable(clock: FakeClock, witness: RecordingObserver) -> None:
    """A caller waits for five seconds at most; the test sets a shorter limit."""
    assert TIMEOUT == 5
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(Issuer().serve())
        opened = open_jwks(issuer.url, rules=RULES, clock=clock, observer=witness, wait_limit=0.2)
        users = await stack.enter_async_context(opened)
        issuer.open.clear()
        assert await _unavailable(users, _signed_by("first")) == "timeout"
        issuer.open.set()
        gone = open_jwks("http://127.0.0.1:1/keys", rules=RULES, clock=clock, observer=witness)
        assert await _unavailable(await stack.enter_async_context(gone), _signed_by("first")) == "connection"


async def test_jwks_proxy_of_environment_is_ignored(users: JwksVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go directly to the configured URL, because the proxy variables are not used."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await users.verify(_signed_by("first")) == "42"


async def test_jwks_request_accepts_no_compression_and_no_keep_alive(users: JwksVerifier, issuer: Issuer) -> None:
    """A decompressed answer could have any size, and the connection is not kept for the next request."""
    assert await users.verify(_signed_by("first")) == "42"
    [request] = issuer.requests
    assert (request.headers["Accept-Encoding"], request.headers["Connection"]) == ("identity", "close")
    assert request.headers["Accept"] == "application/jwk-set+json, application/json"
    assert request.headers["User-Agent"] == f"amo-callback/{__version__}"


async def test_jwks_request_sends_no_cookie(issuer: Issuer, clock: FakeClock, witness: RecordingObserver) -> None:
    """A cookie of the issuer is not kept."""
    issuer.headers = {"Set-Cookie": "session=1; Path=/"}
    url = issuer.url.replace("127.0.0.1", "localhost")  # aiohttp stores no cookies of IP addresses
    async with open_jwks(url, rules=RULES, clock=clock, observer=witness) as users:
        for _ in range(2):
            assert await users.verify(_signed_by("first")) == "42"
            clock.advance(600)
    assert ["Cookie" in request.headers for request in issuer.requests] == [False, False]
