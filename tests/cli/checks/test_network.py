"""AMO, the reverse proxy and others, asked over a socket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from amo_callback import probe
from amo_callback.cli.checks.finding import Severity, run_check_async
from amo_callback.cli.checks.network import (
    ProbeResponse,
    check_amo,
    check_key_set,
    check_proxy,
    check_receiver,
    open_probe,
)
from amo_callback.clock import SystemClock
from amo_callback.config.loader import load_settings
from amo_callback.crypto import Cipher, new_key
from amo_callback.probe import ObservedClient
from tests.cli.harness import answering, settings_with
from tests.service import BASE, HOST, environment
from tests.wait_limit import WAIT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from amo_callback.config.settings import Settings
    from tests.service import Amo, Running

    Check = Callable[..., AsyncIterator[object]]

NONCE = "0123456789abcdef"
CLIENT = "203.0.113.9"
KEY_SET = (
    '{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", '
    '"y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'
)
"""The public key of RFC 7517's example."""


async def _check(
    check: Check, settings: Settings, *, wait_limit: float = WAIT_LIMIT
) -> list[tuple[str, Severity, str]]:
    async with open_probe(clock=SystemClock(), wait_limit=wait_limit) as http:
        found = await run_check_async("check", check(settings, http))  # type: ignore[arg-type]  # reason: each yields findings
    return [(finding.check, finding.severity, finding.message) for finding in found]


async def test_amo_is_looked_at_and_nothing_is_presented(amo: Amo, encryption_key: str) -> None:
    """The token endpoint is reached by its address, and has been asked for no token."""
    settings = load_settings(None, environment(amo, encryption_key, AMO__DEFAULT_DOMAIN=HOST))
    assert await _check(check_amo, settings) == [
        ("amo", Severity.OK, f"{amo.address} answers"),
        ("clock", Severity.OK, "within 30 s of AMO's"),
    ]
    assert amo.sandbox.requests == 0
    assert amo.fake.ledger.entries == []


@pytest.mark.parametrize(
    ("ahead", "severity"),
    [(0, Severity.OK), (-20, Severity.OK), (45, Severity.WARN), (-45, Severity.WARN), (400, Severity.FAIL)],
)
async def test_clocks_that_differ_are_told(ahead: int, severity: Severity) -> None:
    """From half a minute on it is told, from five minutes on it fails."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, request.query_string, await request.read()))
        date = datetime.now(UTC) - timedelta(seconds=ahead)
        return web.Response(headers={"Date": format_datetime(date, usegmt=True)})

    async with answering(answer) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        _, (name, found, told) = await _check(check_amo, settings)
    assert (name, found) == ("clock", severity)
    assert ("behind" in told) is (ahead == -45)
    assert asked == [("HEAD", "/oauth", "", b"")]


@pytest.mark.parametrize(
    ("status", "severity"),
    [(405, Severity.OK), (302, Severity.OK), (403, Severity.WARN), (429, Severity.WARN), (502, Severity.WARN)],
)
async def test_what_amo_answers_is_told(status: int, severity: Severity) -> None:
    """A redirect, or a method that is not allowed, is an answer; a redirect is not followed."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/", "Date": "yesterday"})

    async with answering(answer) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        found = await _check(check_amo, settings)
    assert [each[:2] for each in found] == [("amo", severity), ("clock", Severity.WARN)]


async def test_amo_out_of_reach_fails() -> None:
    """Refused, or no HTTP: each with its reason, and the clock is not known."""

    async def broken(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(broken) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        assert await _check(check_amo, settings) == [
            ("amo", Severity.FAIL, f"{address}: no HTTP answer"),
            ("clock", Severity.WARN, "AMO's time is unknown, and so is the skew of this clock"),
        ]
    [(_, severity, told), _] = await _check(check_amo, settings)
    assert (severity, told) == (Severity.FAIL, f"{address}: Connection refused")


@pytest.mark.parametrize(
    ("status", "body", "severity"),
    [
        (200, KEY_SET, Severity.OK),
        (200, '{"keys": []}', Severity.FAIL),
        (200, "<html>", Severity.FAIL),
        (200, "x" * 1024 * 1024, Severity.FAIL),
        (404, KEY_SET, Severity.FAIL),
    ],
    ids=["keys", "none", "html", "huge", "not_found"],
)
async def test_the_key_set_must_hold_a_key(status: int, body: str, severity: Severity) -> None:
    """Without one no user of the app is known; where none is configured there is nothing to tell."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with answering(answer) as address:
        more = {"APP__JWKS_URL": f"http://{address}/jwks.json", "APP__JWT_AUDIENCE": "app"}
        settings = settings_with(**more)
        [(name, found, _)] = await _check(check_key_set, settings)
    assert (name, found) == ("jwks_url", severity)
    [(_, gone, _)] = await _check(check_key_set, settings)
    assert gone is Severity.FAIL
    assert await _check(check_key_set, settings_with()) == []


async def test_a_receiver_is_there_whatever_he_answers() -> None:
    """No webhook is sent to him; one who is away is told, and webhooks wait for him."""
    methods = []

    async def answer(request: web.Request) -> web.Response:
        methods.append(request.method)
        return web.Response(status=405)

    async with answering(answer) as address:
        more = {"WEBHOOK__URL": f"http://{address}/hook", "WEBHOOK__SECRET": "whsec_" + "A" * 32}
        settings = settings_with(**more)
        assert await _check(check_receiver, settings) == [("webhook", Severity.OK, f"{address} answers")]
    assert methods == ["HEAD"]
    [(_, severity, _)] = await _check(check_receiver, settings)
    assert severity is Severity.WARN


# --- the public address, with a proxy in front that is right or wrong ------------------------------


async def _check_address(address: str, key: str) -> tuple[Severity, str]:
    """Check the redirect URI at an address, with an encryption key."""
    settings = settings_with(AMO__REDIRECT_URI=f"http://{address}{BASE}/callback")
    async with open_probe(clock=SystemClock(), wait_limit=WAIT_LIMIT) as http:
        [finding] = [each async for each in check_proxy(settings, http, cipher=Cipher([key]), nonce=NONCE)]
    return finding.severity, finding.message


async def test_a_proxy_that_tells_the_client_is_ok(app: Running, encryption_key: str) -> None:
    """The service tells whom it sees come; it has begun nothing for it, and shows nothing of it to others."""

    async def pass_on(request: web.Request) -> web.Response:
        headers = {**request.headers, "X-Forwarded-For": CLIENT}
        async with (
            aiohttp.ClientSession(f"http://{app.service.public}") as session,
            session.request(request.method, request.path_qs, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, headers=answer.headers)

    async with answering(pass_on) as address:
        severity, told = await _check_address(address, encryption_key)
    assert (severity, told) == (Severity.OK, f"{address} leads to this service, which sees this machine as {CLIENT}")
    assert [line["event"] for line in app.lines() if line["event"].startswith("grant")] == []


async def test_a_proxy_that_is_not_trusted_is_told(run: Any, encryption_key: str) -> None:
    """Without its address in the list everybody who comes through it is one person to the limits."""
    async with run(SERVER__TRUSTED_PROXIES="192.0.2.1") as app:
        question = probe.seal_nonce(Cipher([encryption_key]), nonce=NONCE)
        headers = {probe.HEADER: question, "X-Forwarded-For": CLIENT}
        answer = await app.public(f"{BASE}/callback", method="HEAD", headers=headers)
    seen = probe.read_reply(Cipher([encryption_key]), answer.headers[probe.HEADER], nonce=NONCE)
    assert seen == ObservedClient(peer="127.0.0.1", forwarded=True, client="127.0.0.1")


@pytest.mark.parametrize(
    ("seen", "severity", "told"),
    [
        (
            ObservedClient(peer="172.18.0.1", forwarded=True, client="172.18.0.1"),
            Severity.WARN,
            "172.18.0.1 is not a trusted proxy",
        ),
        (ObservedClient(peer="127.0.0.1", forwarded=False, client="127.0.0.1"), Severity.WARN, "does not say whose"),
        (ObservedClient(peer=None, forwarded=False, client=None), Severity.WARN, "does not say whose"),
        (ObservedClient(peer="127.0.0.1", forwarded=True, client="127.0.0.1"), Severity.OK, "as 127.0.0.1"),
        (ObservedClient(peer=None, forwarded=True, client=CLIENT), Severity.OK, f"as {CLIENT}"),
    ],
    ids=["untrusted", "untold", "untold_socket", "this_machine", "socket"],
)
async def test_what_the_service_sees_is_judged(
    seen: ObservedClient, severity: Severity, told: str, cipher: Cipher
) -> None:
    """Whether the client's address comes through, and is believed."""

    async def ask(_method: str, _url: str, *, headers: Mapping[str, str]) -> ProbeResponse:
        answer = probe.reply_to(cipher, headers[probe.HEADER], seen=seen) or ""
        return ProbeResponse(status=200, at=SystemClock().now(), headers={probe.HEADER: answer}, body=b"")

    [finding] = [each async for each in check_proxy(settings_with(), ask, cipher=cipher, nonce=NONCE)]
    assert finding.severity is severity
    assert told in finding.message


@pytest.mark.parametrize(("status", "told"), [(502, "does not reach the service"), (404, "something else answers")])
async def test_a_proxy_that_leads_elsewhere_fails(status: int, told: str) -> None:
    """To nobody, or to something else."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with answering(answer) as address:
        severity, found = await _check_address(address, new_key())
    assert severity is Severity.FAIL
    assert told in found


async def test_another_installation_is_told_apart(app: Running) -> None:
    """A service with other keys does not answer, and looks like one nevertheless."""
    severity, told = await _check_address(app.service.public, new_key())
    assert severity is Severity.FAIL
    assert "but not with the keys of this configuration" in told


async def test_what_cannot_be_asked_from_here_is_a_warning() -> None:
    """Many networks do not lead back to themselves: that is no fault of the proxy's."""
    severity, told = await _check_address("127.0.0.1:1", new_key())
    assert (severity, told) == (Severity.WARN, "127.0.0.1:1: Connection refused, asked from this machine")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("question", ["", "no question", "x" * 600, "é", "answer", "other"])
async def test_nobody_else_is_answered(method: str, question: str, app: Running, encryption_key: str) -> None:
    """Noise, an answer of ours sent back as a question, another key's question: the header is not there."""
    cipher = Cipher([encryption_key])
    made = {
        "answer": probe.reply_to(
            cipher, probe.seal_nonce(cipher, nonce=NONCE), seen=ObservedClient(peer=None, forwarded=False, client="")
        ),
        "other": probe.seal_nonce(Cipher([new_key()]), nonce=NONCE),
    }
    answer = await app.public(f"{BASE}/callback", method=method, headers={probe.HEADER: made.get(question) or question})
    assert probe.HEADER not in answer.headers


async def test_only_a_look_is_answered(app: Running, encryption_key: str) -> None:
    """What does work says nothing of who sent it, whoever asks."""
    headers = {probe.HEADER: probe.seal_nonce(Cipher([encryption_key]), nonce=NONCE)}
    answers = [await app.public(f"{BASE}/callback", method=method, headers=headers) for method in ("GET", "HEAD")]
    assert [probe.HEADER in answer.headers for answer in answers] == [False, True]


def test_an_answer_to_another_question_is_none(encryption_key: str) -> None:
    """A cache in between may have kept it."""
    cipher = Cipher([encryption_key])
    answer = probe.reply_to(
        cipher, probe.seal_nonce(cipher, nonce="one"), seen=ObservedClient(peer=None, forwarded=False, client=None)
    )
    assert answer is not None
    assert probe.read_reply(cipher, answer, nonce="other") is None
    assert probe.read_reply(cipher, answer, nonce="one") == ObservedClient(peer=None, forwarded=False, client=None)
