"""Wrong client credentials before the first token pair, when no refresh can detect them."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from amo_callback.amo.sandbox.fake_amo import FakeAmo, SandboxReply, problem
from amo_callback.cli.checks.finding import Severity
from amo_callback.cli.checks.service import check_service
from tests.fakes import Override
from tests.service import ADMIN_KEY, BASE, HOST, Answer, Running

OTHER_HOST = "second.amocrm.ru"
WRONG = {"AMO__CLIENT_SECRET": "a-wrong-secret-0123456789", "AMO__DEFAULT_DOMAIN": HOST}
NOT_PROVEN = {"ok": True, "detail": "not verified yet"}
ACCEPTED = {"ok": True, "detail": "accepted"}
REFUSED = {
    "ok": False,
    "detail": (
        "AMO rejects code exchanges (401 Некорректный клиент), and no exchange has succeeded yet: "
        "compare amo.client_id, amo.client_secret and amo.redirect_uri with the integration's page in AMO"
    ),
}


@pytest.fixture
async def wrong(run: Any) -> AsyncIterator[Running]:
    """Run the service with a client secret that AMO rejects."""
    async with run(**WRONG) as app:
        yield app


async def _call_back(app: Running, host: str = HOST, *, state: str = "s") -> Answer:
    account = app.amo.fake.account_at(host) or app.amo.fake.open_account(host)
    return await app.callback(f"code={app.amo.fake.allow(account)}&state={state}&referer={host}")


async def _credentials(app: Running) -> dict[str, object]:
    answer = await app.private("/readyz", key=None)
    check = dict(answer.json()["checks"]["amo_credentials"])
    assert check["ok"] or answer.status == 503
    assert f"amo_callback_amo_credentials_refused {float(not check['ok'])}" in await _metrics(app)
    return check


async def _metrics(app: Running) -> str:
    return (await app.private("/metrics", key=None)).text


def _correct_secret(app: Running) -> None:
    """Make AMO accept the service's client secret."""
    secret = app.settings.amo.client_secret.get_secret_value()
    app.amo.fake.integration = dataclasses.replace(app.amo.fake.integration, client_secret=secret)


def _set_exchange_reply(app: Running, reply: SandboxReply) -> None:
    """Make AMO answer every exchange with this reply."""
    app.amo.sandbox.fake = cast("FakeAmo", Override(app.amo.fake, token=lambda _host, **_: reply))


async def test_credentials_check_wrong_secret_fails_until_first_success(wrong: Running) -> None:
    """After refusals at two hosts, readiness, metric, `check` and log report the secret until an exchange succeeds."""
    assert await _credentials(wrong) == NOT_PROVEN
    assert (await _call_back(wrong)).location.startswith("foryoure://amo-crm/callback?error=amo_unavailable")
    await _call_back(wrong)  # repeated refusals by one host may be specific to it
    assert await _credentials(wrong) == NOT_PROVEN
    await _call_back(wrong, OTHER_HOST)
    assert await _credentials(wrong) == REFUSED
    settings = wrong.settings
    server = settings.server.model_copy(update={"private": wrong.service.private})
    settings = settings.model_copy(update={"server": server})
    findings = [each async for each in check_service(settings, wait_limit=5)]
    assert [each.message for each in findings if each.severity is Severity.FAIL] == [
        f"the service is running, but not ready (amo_credentials): {REFUSED['detail']}"
    ]
    assert 'amo_callback_callbacks_total{outcome="amo_unavailable"} 3.0' in await _metrics(wrong)
    await _call_back(wrong)
    _correct_secret(wrong)
    assert "code=" in (await _call_back(wrong)).location
    assert await _credentials(wrong) == ACCEPTED
    assert (await wrong.private("/readyz", key=None)).status == 200
    names = [name for name in wrong.witness.names() if name.startswith("amo_credentials")]
    assert names == ["amo_credentials.refused", "amo_credentials.accepted"]


async def test_refused_exchange_log_has_status_title_and_hint(wrong: Running) -> None:
    """The log line has AMO's status, title and hint beside the support code and the error word."""
    await _call_back(wrong)
    _set_exchange_reply(
        wrong, problem(400, "Check the `redirect_uri` parameter", title="def502" + "ab" * 40 + " is wrong")
    )
    await _call_back(wrong)
    bare, hinted = [line for line in wrong.lines() if line["event"] == "grant.failed"]
    assert (bare["status"], bare["title"], "hint" in bare) == (401, "Некорректный клиент", False)
    hint = "Check the `redirect_uri` parameter"
    assert (hinted["status"], hinted["title"], hinted["hint"]) == (400, "… is wrong", hint)
    assert bare["word"] == hinted["word"] == "amo_unavailable"
    assert len(bare["support_code"]) == 8


async def test_credentials_check_failing_stops_no_request(wrong: Running) -> None:
    """While the check fails, exchanges and forced refreshes are still sent."""
    for host in (HOST, OTHER_HOST, HOST):
        await _call_back(wrong, host)
    assert await _credentials(wrong) == REFUSED
    assert wrong.amo.sandbox.requests == 3
    await _import(wrong)
    account = f"account:{wrong.amo.account.id}"
    before = wrong.amo.sandbox.requests
    await wrong.private(f"/connections/{account}/refresh", method="POST")
    assert wrong.amo.sandbox.requests > before


async def test_credentials_check_needs_refusal_at_known_host(run: Any) -> None:
    """Of two refusing hosts, one must be the default host or the host of a grant started here."""
    async with run(**{**WRONG, "AMO__DEFAULT_DOMAIN": "default.amocrm.ru"}) as app:
        for host in (HOST, HOST, OTHER_HOST):
            await _call_back(app, host)
        assert await _credentials(app) == NOT_PROVEN
        started = await app.public(f"{BASE}/connect")
        [state] = parse_qs(urlsplit(started.location).query)["state"]
        await _call_back(app, state=state)
        assert await _credentials(app) == REFUSED


async def test_credentials_check_passes_an_hour_after_last_refusal(wrong: Running) -> None:
    """Each refusal restarts the hour after which the check passes."""
    for host in (HOST, OTHER_HOST):
        await _call_back(wrong, host)
    wrong.clock.advance(3000)
    await _call_back(wrong)
    wrong.clock.advance(3500)
    assert (await _credentials(wrong))["ok"] is False
    wrong.clock.advance(100)
    await wrong.service.services.lifecycle.credentials.watch()
    assert await _credentials(wrong) == NOT_PROVEN
    assert wrong.witness.names().count("amo_credentials.no_longer_refused") == 1


@pytest.mark.parametrize(
    "reply",
    [
        problem(400, "Authorization code was not issued to this client"),
        problem(401, "Authorization code was not issued to this client"),
        problem(404, None),
        problem(404, "Check the `client_id` parameter"),
        problem(403, None),
        problem(400, None),
        problem(401, "Token has been revoked"),
        problem(400, "Cannot decrypt the authorization code"),
        SandboxReply(status=401, content={}, content_type="text/html"),
        SandboxReply(status=401, content={}, content_type="application/json"),
    ],
    ids=[
        "not-issued-400", "not-issued-401", "404", "404-with-hint", "403", "400-without-hint", "401-other-hint",
        "code", "html-401", "json-401",
    ],
)  # fmt: skip
async def test_credentials_check_refusal_without_client_hint_passes(wrong: Running, reply: SandboxReply) -> None:
    """Refusals of the code or the account, and a proxy's pages, do not concern the client credentials."""
    _set_exchange_reply(wrong, reply)
    for host in (HOST, OTHER_HOST, "third.amocrm.ru"):
        await _call_back(wrong, host)
    assert wrong.amo.sandbox.requests == 3
    assert await _credentials(wrong) == NOT_PROVEN


@pytest.mark.parametrize("name", ["client_id", "client_secret", "redirect_uri"])
async def test_credentials_check_client_hint_fails_and_is_shown(wrong: Running, name: str) -> None:
    """A hint that names a client parameter fails the check, and readiness shows the hint."""
    _set_exchange_reply(wrong, problem(400, f"Check the `{name}` parameter"))
    for host in (HOST, OTHER_HOST):
        await _call_back(wrong, host)
    assert f"(400 Check the `{name}` parameter)" in str((await _credentials(wrong))["detail"])


async def test_credentials_check_remembers_success_of_earlier_run(run: Any, either: str) -> None:
    """After a success in an earlier run, refusals are left to the circuit breaker, on either engine."""
    async with run(STORAGE__URL=either) as app:
        await app.connected()
        await app.private(f"/connections/account:{app.amo.account.id}", method="DELETE", key=ADMIN_KEY)
    async with run(STORAGE__URL=either, **WRONG) as app:
        assert await _credentials(app) == ACCEPTED
        for host in (HOST, OTHER_HOST):
            await _call_back(app, host)
        assert await _credentials(app) == ACCEPTED
    async with run(STORAGE__URL=either, AMO__CLIENT_ID="another-client", **WRONG) as app:
        assert await _credentials(app) == NOT_PROVEN


async def test_credentials_check_success_of_other_instance_ends_failure(run: Any, either: str) -> None:
    """On either engine the failure ends at the next read of the store, and a later refusal changes nothing."""
    async with run(STORAGE__URL=either, **WRONG) as app, run(STORAGE__URL=either) as other:
        for host in (HOST, OTHER_HOST):
            await _call_back(app, host)
        assert (await _credentials(app))["ok"] is False
        await other.connected()
        await _call_back(app)  # reads the store first
        assert await _credentials(app) == ACCEPTED


async def _import(app: Running) -> None:
    """Import a pair that another system obtained with the right secret."""
    body = app.amo.request(grant_type="authorization_code", code=app.amo.code())
    async with app.http.post(f"http://{app.amo.address}/{HOST}/oauth2/access_token", json=body) as answer:
        issued = await answer.json()
    names = ("access_token", "refresh_token", "expires_in")
    theirs = {"domain": HOST, **{name: issued[name] for name in names}}
    imported = await app.private("/connections/import", key=ADMIN_KEY, method="POST", json={"connections": [theirs]})
    assert imported.json()["new"] == 1
    app.clock.advance(11)  # a younger pair is not refreshed on request


async def test_credentials_check_import_keeps_failure_refresh_ends_it(wrong: Running) -> None:
    """An imported pair may come from another secret; a pair that AMO issues to this service proves its secret."""
    await _import(wrong)
    await wrong.service.services.lifecycle.credentials.watch()
    for host in (HOST, OTHER_HOST):
        await _call_back(wrong, host)
    assert (await _credentials(wrong))["ok"] is False
    _correct_secret(wrong)
    assert (await wrong.private(f"/connections/account:{wrong.amo.account.id}/refresh", method="POST")).status == 200
    await wrong.service.services.lifecycle.credentials.watch()
    assert await _credentials(wrong) == ACCEPTED
