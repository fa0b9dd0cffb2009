"""Checks of AMO, the reverse proxy, the key set and the webhook receiver over the network."""

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


async def test_check_amo_sends_no_credential(amo: Amo, encryption_key: str) -> None:
    """The check reaches AMO's address without a token request."""
    settings = load_settings(None, environment(amo, encryption_key, AMO__DEFAULT_DOMAIN=HOST))
    assert await _check(check_amo, settings) == [
        ("amo", Severity.OK, f"{amo.address} responds"),
        ("clock", Severity.OK, "this machine's clock is within 30 s of AMO's clock"),
    ]
    assert amo.sandbox.requests == 0
    assert amo.fake.ledger.entries == []


@pytest.mark.parametrize(
    ("ahead", "severity"),
    [(0, Severity.OK), (-20, Severity.OK), (45, Severity.WARN), (-45, Severity.WARN), (400, Severity.FAIL)],
)
async def test_check_amo_reports_clock_difference(ahead: int, severity: Severity) -> None:
    """A clock difference warns from half a minute and fails from five minutes."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, request.query_string, await request.read()))
        date = datetime.now(UTC) - timedelta(seconds=ahead)
        return web.Response(headers={"Date": format_datetime(date, usegmt=True)})

    async with answering(answer) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        _, (name, found, result) = await _check(check_amo, settings)
    assert (name, found) == ("clock", severity)
    assert ("behind" in result) is (ahead == -45)
    assert asked == [("HEAD", "/oauth", "", b"")]


@pytest.mark.parametrize(
    ("status", "severity"),
    [(405, Severity.OK), (302, Severity.OK), (403, Severity.WARN), (429, Severity.WARN), (502, Severity.WARN)],
)
async def test_check_amo_reports_status(status: int, severity: Severity) -> None:
    """A 405 or a redirect, which is not followed, is OK; other error statuses warn."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/", "Date": "yesterday"})

    async with answering(answer) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        found = await _check(check_amo, settings)
    assert [each[:2] for each in found] == [("amo", severity), ("clock", Severity.WARN)]


async def test_check_amo_unreachable_fails() -> None:
    """A refused connection or an answer that is not HTTP fails with its reason, and the clock is unknown."""

    async def broken(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(broken) as address:
        settings = settings_with(AMO__AUTHORIZE_URL=f"http://{address}/oauth")
        assert await _check(check_amo, settings) == [
            ("amo", Severity.FAIL, f"{address}: no HTTP response"),
            ("clock", Severity.WARN, "the clock skew is unknown, because AMO does not respond"),
        ]
    [(_, severity, result), _] = await _check(check_amo, settings)
    assert (severity, result) == (Severity.FAIL, f"{address}: Connection refused")


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
async def test_check_key_set_requires_key(status: int, body: str, severity: Severity) -> None:
    """A key set without a usable key fails; without a configured URL there is no finding."""

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


async def test_check_receiver_any_answer_is_ok() -> None:
    """Any answer of the webhook receiver is OK and no webhook is sent; an unreachable one is a warning."""
    methods = []

    async def answer(request: web.Request) -> web.Response:
        methods.append(request.method)
        return web.Response(status=405)

    async with answering(answer) as address:
        more = {"WEBHOOK__URL": f"http://{address}/hook", "WEBHOOK__SECRET": "whsec_" + "A" * 32}
        settings = settings_with(**more)
        assert await _check(check_receiver, settings) == [("webhook", Severity.OK, f"{address} responds")]
    assert methods == ["HEAD"]
    [(_, severity, _)] = await _check(check_receiver, settings)
    assert severity is Severity.WARN


# --- the public address behind a proxy -------------------------------------------------------------


async def _check_address(address: str, key: str) -> tuple[Severity, str]:
    """Check the redirect URI at an address with an encryption key."""
    settings = settings_with(AMO__REDIRECT_URI=f"http://{address}{BASE}/callback")
    async with open_probe(clock=SystemClock(), wait_limit=WAIT_LIMIT) as http:
        [finding] = [each async for each in check_proxy(settings, http, cipher=Cipher([key]), nonce=NONCE)]
    return finding.severity, finding.message


async def test_check_proxy_with_forwarded_client_is_ok(app: Running, encryption_key: str) -> None:
    """A proxy that forwards the client's address is OK, and the probe begins no grant."""

    async def pass_on(request: web.Request) -> web.Response:
        headers = {**request.headers, "X-Forwarded-For": CLIENT}
        async with (
            aiohttp.ClientSession(f"http://{app.service.public}") as session,
            session.request(request.method, request.path_qs, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, headers=answer.headers)

    async with answering(pass_on) as address:
        severity, result = await _check_address(address, encryption_key)
    assert (severity, result) == (
        Severity.OK,
        f"{address} leads to this service; client address seen by the service: {CLIENT}",
    )
    assert [line["event"] for line in app.lines() if line["event"].startswith("grant")] == []


async def test_probe_through_untrusted_proxy_shows_proxy_as_client(run: Any, encryption_key: str) -> None:
    """A proxy whose address is not in `trusted_proxies` is seen as the client of all its requests."""
    async with run(SERVER__TRUSTED_PROXIES="192.0.2.1") as app:
        question = probe.seal_nonce(Cipher([encryption_key]), nonce=NONCE)
        headers = {probe.HEADER: question, "X-Forwarded-For": CLIENT}
        answer = await app.public(f"{BASE}/callback", method="HEAD", headers=headers)
    seen = probe.read_reply(Cipher([encryption_key]), answer.headers[probe.HEADER], nonce=NONCE)
    assert seen == ObservedClient(peer="127.0.0.1", forwarded=True, client="127.0.0.1")


@pytest.mark.parametrize(
    ("seen", "severity", "result"),
    [
        (
            ObservedClient(peer="172.18.0.1", forwarded=True, client="172.18.0.1"),
            Severity.WARN,
            "172.18.0.1 is not a trusted proxy",
        ),
        (
            ObservedClient(peer="127.0.0.1", forwarded=False, client="127.0.0.1"),
            Severity.WARN,
            "does not forward client",
        ),
        (ObservedClient(peer=None, forwarded=False, client=None), Severity.WARN, "does not forward client"),
        (
            ObservedClient(peer="127.0.0.1", forwarded=True, client="127.0.0.1"),
            Severity.OK,
            "seen by the service: 127.0.0.1",
        ),
        (ObservedClient(peer=None, forwarded=True, client=CLIENT), Severity.OK, f"seen by the service: {CLIENT}"),
    ],
    ids=["untrusted", "untold", "untold_socket", "this_machine", "socket"],
)
async def test_check_proxy_reports_observed_client(
    seen: ObservedClient, severity: Severity, result: str, cipher: Cipher
) -> None:
    """The check reports whether the client's address is forwarded and trusted."""

    async def ask(_method: str, _url: str, *, headers: Mapping[str, str]) -> ProbeResponse:
        answer = probe.reply_to(cipher, headers[probe.HEADER], seen=seen) or ""
        return ProbeResponse(status=200, at=SystemClock().now(), headers={probe.HEADER: answer}, body=b"")

    [finding] = [each async for each in check_proxy(settings_with(), ask, cipher=cipher, nonce=NONCE)]
    assert finding.severity is severity
    assert result in finding.message


@pytest.mark.parametrize(("status", "result"), [(502, "cannot reach the service"), (404, "another server responds")])
async def test_check_proxy_to_other_service_fails(status: int, result: str) -> None:
    """A proxy that reaches no service or another one fails."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with answering(answer) as address:
        severity, found = await _check_address(address, new_key())
    assert severity is Severity.FAIL
    assert result in found


async def test_check_proxy_to_other_installation_fails(app: Running) -> None:
    """A service with other encryption keys is recognized as another installation."""
    severity, result = await _check_address(app.service.public, new_key())
    assert severity is Severity.FAIL
    assert "does not have the encryption keys of this configuration" in result


async def test_check_proxy_unreachable_from_here_warns() -> None:
    """An unreachable address is only a warning, because many networks cannot reach their own public address."""
    severity, result = await _check_address("127.0.0.1:1", new_key())
    assert (severity, result) == (Severity.WARN, "127.0.0.1:1: Connection refused (request sent from this machine)")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("question", ["", "no question", "x" * 600, "é", "answer", "other"])
async def test_probe_invalid_nonce_gets_no_reply(method: str, question: str, app: Running, encryption_key: str) -> None:
    """Arbitrary text, a replayed reply and a nonce sealed with another key get no reply header."""
    cipher = Cipher([encryption_key])
    made = {
        "answer": probe.reply_to(
            cipher, probe.seal_nonce(cipher, nonce=NONCE), seen=ObservedClient(peer=None, forwarded=False, client="")
        ),
        "other": probe.seal_nonce(Cipher([new_key()]), nonce=NONCE),
    }
    answer = await app.public(f"{BASE}/callback", method=method, headers={probe.HEADER: made.get(question) or question})
    assert probe.HEADER not in answer.headers


async def test_probe_is_answered_for_head_only(app: Running, encryption_key: str) -> None:
    """Only a HEAD request gets the reply header."""
    headers = {probe.HEADER: probe.seal_nonce(Cipher([encryption_key]), nonce=NONCE)}
    answers = [await app.public(f"{BASE}/callback", method=method, headers=headers) for method in ("GET", "HEAD")]
    assert [probe.HEADER in answer.headers for answer in answers] == [False, True]


def test_probe_reply_to_other_nonce_is_ignored(encryption_key: str) -> None:
    """A reply to another nonce, such as a cached one, is ignored."""
    cipher = Cipher([encryption_key])
    answer = probe.reply_to(
        cipher, probe.seal_nonce(cipher, nonce="one"), seen=ObservedClient(peer=None, forwarded=False, client=None)
    )
    assert answer is not None
    assert probe.read_reply(cipher, answer, nonce="other") is None
    assert probe.read_reply(cipher, answer, nonce="one") == ObservedClient(peer=None, forwarded=False, client=None)
