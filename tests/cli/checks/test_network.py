"""AMO and others, asked over a socket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from amo_callback.cli.checks.finding import Severity, run_check_async
from amo_callback.cli.checks.network import check_amo, check_key_set, check_receiver, open_probe
from amo_callback.clock import SystemClock
from amo_callback.config.loader import load_settings
from tests.cli.harness import answering, settings_with
from tests.patience import PATIENCE
from tests.service import HOST, environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from amo_callback.config.settings import Settings
    from tests.service import Amo

    Check = Callable[..., AsyncIterator[object]]

KEY_SET = (
    '{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", '
    '"y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'
)
"""The public key of RFC 7517's example."""


async def _check(check: Check, settings: Settings, *, patience: float = PATIENCE) -> list[tuple[str, Severity, str]]:
    async with open_probe(clock=SystemClock(), patience=patience) as http:
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
            ("clock", Severity.WARN, "AMO's is not known, so ours cannot be compared"),
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
