"""The issuer's key set over HTTP: how often it is asked, and what is said while it cannot be."""

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
"""Bytes of an answer that are read."""


class Issuer:
    """An issuer's address on a socket; what it answers is the test's to say."""

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


def _by(name: str, said: dict[str, Any] | None = None, *, kid: str | None = None, **header: Any) -> str:
    return signed(said or claims(exp=4_000_000_000), key=rsa_key(name), alg="RS256", kid=kid or name, **header)


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


# --- attackers -----------------------------------------------------------------------------------


async def test_a_flood_of_unknown_keys_asks_once_a_minute(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """Whoever makes up names of keys does not make us the issuer's flood."""
    assert await users.verify(_by("first")) == "42"
    for minute in range(3):
        clock.advance(59)
        assert await _unauthorized(users, _by("attacker", kid="early")) == "key"
        assert len(issuer.requests) == 1 + minute
        clock.advance(1 + minute)  # at once when it may be, and later as well
        said = await asyncio.gather(*(_unauthorized(users, _by("attacker", kid=f"{n}")) for n in range(50)))
        assert set(said) == {"key"}
        assert len(issuer.requests) == 2 + minute


async def test_addresses_and_keys_in_a_token_are_ignored(users: JwksVerifier, issuer: Issuer) -> None:
    """A token cannot say where its key is, or bring it along."""
    may_be_copy = issuer.url.replace("/keys", "/attacker")
    brought: dict[str, Any] = {"jku": may_be_copy, "x5u": may_be_copy, "jwk": jwk(rsa_key("attacker"), kid="attacker")}
    assert await _unauthorized(users, _by("attacker", **brought)) == "key"
    assert await _unauthorized(users, _by("attacker", kid="first", **brought)) == "signature"
    assert await users.verify(_by("first", **brought)) == "42"
    assert [request.path for request in issuer.requests] == ["/keys"]


async def test_what_is_no_token_is_refused_without_asking(users: JwksVerifier, issuer: Issuer) -> None:
    """Junk costs nobody a request."""
    assert await _unauthorized(users, "junk") == "form"
    assert issuer.requests == []


async def test_the_claims_are_checked_too(users: JwksVerifier) -> None:
    """A signature is not enough."""
    assert await _unauthorized(users, _by("first", claims(aud="another"))) == "audience"
    assert await _unauthorized(users, _by("first", claims(exp=NOW - 60))) == "expired"


# --- keys change ---------------------------------------------------------------------------------


async def test_a_rotated_key_is_found_within_a_minute(users: JwksVerifier, issuer: Issuer, clock: FakeClock) -> None:
    """A new key is looked for when a token names it, and the old one is no longer taken."""
    assert await users.verify(_by("first")) == "42"
    issuer.keys = [jwk(rsa_key("second"), kid="second"), jwk(ec_key("third"), kid="third")]
    assert await _unauthorized(users, _by("second")) == "key"
    clock.advance(60)
    assert await users.verify(_by("second")) == "42"
    assert await users.verify(signed(key=ec_key("third"), alg="ES256", kid="third")) == "42"
    assert await _unauthorized(users, _by("first")) == "key"
    assert len(issuer.requests) == 2


async def test_an_only_key_without_a_name_is_found_after_its_rotation(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """Nothing but the signature tells that it is another one."""
    issuer.keys = [jwk(rsa_key("first"))]
    unnamed = [signed(claims(), key=rsa_key(name), alg="RS256") for name in ("first", "second")]
    assert await users.verify(unnamed[0]) == "42"
    issuer.keys = [jwk(rsa_key("second"))]
    clock.advance(60)
    assert await users.verify(unnamed[1]) == "42"


async def test_a_set_is_fresh_for_ten_minutes(users: JwksVerifier, issuer: Issuer, clock: FakeClock) -> None:
    """A key that the issuer has withdrawn is good no longer than that."""
    assert await users.verify(_by("first")) == "42"
    issuer.keys = [jwk(rsa_key("second"), kid="second")]
    clock.advance(599)
    assert await users.verify(_by("first")) == "42"
    assert len(issuer.requests) == 1
    clock.advance(1)
    assert await _unauthorized(users, _by("first")) == "key"
    assert len(issuer.requests) == 2


# --- callers at once -----------------------------------------------------------------------------


async def test_callers_at_once_share_one_request(users: JwksVerifier, issuer: Issuer) -> None:
    """Nobody asks while somebody is asking, and one who goes away takes nothing from the others."""
    issuer.open.clear()
    callers = [asyncio.create_task(users.verify(_by("first"))) for _ in range(20)]
    await issuer.asked.wait()
    callers[0].cancel()
    await asyncio.wait({callers[0]})
    assert callers[0].cancelled()
    issuer.open.set()
    assert await asyncio.gather(*callers[1:]) == ["42"] * 19
    assert len(issuer.requests) == 1


async def test_closing_gives_up_a_request(issuer: Issuer, clock: FakeClock, witness: RecordingObserver) -> None:
    """The end of the service does not wait for the issuer."""
    issuer.open.clear()
    async with open_jwks(issuer.url, rules=RULES, clock=clock, observer=witness) as users:
        caller = asyncio.create_task(users.verify(_by("first")))
        await issuer.asked.wait()
    assert "jwks" not in {task.get_name() for task in asyncio.all_tasks()}
    await asyncio.wait({caller})
    assert caller.cancelled()


# --- the issuer is away --------------------------------------------------------------------------


async def test_the_last_good_set_is_kept_for_a_day(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock, witness: RecordingObserver
) -> None:
    """Users come in while the issuer is away; whose a new key is cannot be known, and nobody is sent off for that."""
    assert await users.verify(_by("first")) == "42"
    issuer.status = 503
    clock.advance(86_399)
    assert await users.verify(_by("first")) == "42"
    assert await _unavailable(users, _by("second")) == "status_503"
    assert await _unauthorized(users, _by("second", kid="first")) == "signature"
    clock.advance(1)
    assert await _unavailable(users, _by("first")) == "status_503"
    clock.advance(3600)
    assert await _unavailable(users, _by("first")) == "status_503"
    issuer.status = 200
    clock.advance(60)
    assert await users.verify(_by("first")) == "42"
    assert await _unauthorized(users, _by("second")) == "key"
    assert [event.name for event in witness.events] == ["key_set.failing", "key_set.recovered"]
    assert [event.level for event in witness.events] == [Level.ERROR, Level.INFO]
    assert witness.events[0].fields == {"error": "key_set_unavailable", "detail": "status_503"}


async def test_an_issuer_that_fails_is_asked_less_and_less_often(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock, witness: RecordingObserver
) -> None:
    """After 5 seconds, then twice as long each time, up to a minute: callers are answered at once meanwhile."""
    issuer.status = 500
    for number, wait in enumerate([5, 10, 20, 40, 60, 60], start=1):
        assert await _unavailable(users, _by("first")) == "status_500"
        clock.advance(wait - 1)
        assert await _unavailable(users, _by("first")) == "status_500"
        assert len(issuer.requests) == number
        clock.advance(1)
    assert [event.name for event in witness.events] == ["key_set.failing"]
    issuer.status = 200
    assert await users.verify(_by("first")) == "42"


async def test_unknown_keys_ask_a_failing_issuer_once_a_minute_too(
    users: JwksVerifier, issuer: Issuer, clock: FakeClock
) -> None:
    """While the set is fresh, the shorter waits of a failure are not for whoever makes up a name."""
    assert await users.verify(_by("first")) == "42"
    issuer.status = 500
    clock.advance(57)
    for number in (2, 3):
        clock.advance(3)
        assert await _unavailable(users, _by("second")) == "status_500"
        for _ in range(3):
            clock.advance(19)
            assert await _unavailable(users, _by("second")) == "status_500"
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
    ids=["too long", "moved", "packed", "a page", "secrets", "another success"],
)
async def test_an_answer_that_is_no_key_set_is_a_failure(
    users: JwksVerifier, issuer: Issuer, change: Any, why: str
) -> None:
    """Too long, somewhere else, packed, a page, or without a key to use: it is our trouble, and no user's."""
    vars(issuer).update(change(issuer))
    assert await _unavailable(users, _by("first")) == why
    assert [request.path for request in issuer.requests] == ["/keys"]


async def test_a_set_as_long_as_the_limit_is_read(users: JwksVerifier, issuer: Issuer) -> None:
    """A byte more is too long."""
    issuer.body = issuer.published.ljust(LIMIT)
    assert await users.verify(_by("first")) == "42"


async def test_an_answer_that_breaks_off_is_a_failure(clock: FakeClock, witness: RecordingObserver) -> None:
    """Half of a set tells nothing."""

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
            assert await _unavailable(users, _by("first")) == "connection"


async def test_an_issuer_that_is_slow_or_gone_is_a_failure(clock: FakeClock, witness: RecordingObserver) -> None:
    """Whoever waits with a token in his hand waits for so long only: five seconds, unless a test has less patience."""
    assert TIMEOUT == 5
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(Issuer().serve())
        opened = open_jwks(issuer.url, rules=RULES, clock=clock, observer=witness, wait_limit=0.2)
        users = await stack.enter_async_context(opened)
        issuer.open.clear()
        assert await _unavailable(users, _by("first")) == "timeout"
        issuer.open.set()
        gone = open_jwks("http://127.0.0.1:1/keys", rules=RULES, clock=clock, observer=witness)
        assert await _unavailable(await stack.enter_async_context(gone), _by("first")) == "connection"


async def test_no_proxy_of_the_environment_is_asked(users: JwksVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys come from is configured, and nowhere else."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await users.verify(_by("first")) == "42"


async def test_a_request_asks_for_little(users: JwksVerifier, issuer: Issuer) -> None:
    """A plain answer, for an unpacked one can be of any size, and no connection that is kept for the next."""
    assert await users.verify(_by("first")) == "42"
    [request] = issuer.requests
    assert (request.headers["Accept-Encoding"], request.headers["Connection"]) == ("identity", "close")
    assert request.headers["Accept"] == "application/jwk-set+json, application/json"
    assert request.headers["User-Agent"] == f"amo-callback/{__version__}"


async def test_a_request_brings_nothing_back(issuer: Issuer, clock: FakeClock, witness: RecordingObserver) -> None:
    """A cookie of the issuer's is not kept: who asks is nobody."""
    issuer.headers = {"Set-Cookie": "session=1; Path=/"}
    url = issuer.url.replace("127.0.0.1", "localhost")  # cookies of bare addresses are never kept
    async with open_jwks(url, rules=RULES, clock=clock, observer=witness) as users:
        for _ in range(2):
            assert await users.verify(_by("first")) == "42"
            clock.advance(600)
    assert ["Cookie" in request.headers for request in issuer.requests] == [False, False]
