"""The AMO sandbox: its answers follow AMO's rules strictly."""

import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from amo_callback.amo.sandbox.app import Fault, Sandbox
from tests.fakes import FakeClock
from tests.service import HOST, Amo


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Caller:
    def __init__(self, amo: Amo, http: aiohttp.ClientSession) -> None:
        self.amo, self.http = amo, http

    async def post(self, host: str = HOST, **body: str) -> tuple[int, Any]:
        return await self.send(host, json=self.amo.request(**body))

    async def send(self, host: str, **body: Any) -> tuple[int, Any]:
        async with self.http.post(f"http://{self.amo.address}/{host}/oauth2/access_token", **body) as response:
            return response.status, await response.json() if response.content_type.endswith("json") else None

    async def exchange(self, code: str | None = None) -> tuple[int, Any]:
        return await self.post(grant_type="authorization_code", code=code or self.amo.code())

    async def introspect_refresh_token(self, token: str, host: str = "api-b.amocrm.ru") -> tuple[int, Any]:
        return await self.get(host, "oauth2/account/current/subdomain", **{"X-Refresh-Token": token})

    async def get(self, host: str, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(f"http://{self.amo.address}/{host}/{path}", headers=headers) as response:
            return response.status, await response.json(content_type=None) if response.status == 200 else None


@pytest.fixture
def caller(amo: Amo, http: aiohttp.ClientSession) -> Caller:
    return Caller(amo, http)


async def test_sandbox_code_and_refresh_token_are_accepted_once(caller: Caller) -> None:
    """A second presentation is rejected with AMO's hint and counted in the ledger."""
    code = caller.amo.code()
    _, pair = await caller.exchange(code)
    status, problem = await caller.exchange(code)
    assert (status, problem["hint"]) == (400, "Authorization code has been revoked")
    token = pair["refresh_token"]
    assert (await caller.post(grant_type="refresh_token", refresh_token=token))[0] == 200
    status, problem = await caller.post(grant_type="refresh_token", refresh_token=token)
    assert (status, problem["hint"]) == (401, "Token has been revoked")
    assert caller.amo.fake.ledger.doubles() == 2


async def test_sandbox_credentials_expire(caller: Caller, clock: FakeClock) -> None:
    """A code expires after 20 minutes, an access token after a day, a refresh token after three months."""
    code = caller.amo.code()
    _, pair = await caller.exchange()
    clock.advance(1200)
    assert (await caller.exchange(code))[1]["hint"] == "Authorization code has expired"
    bearer = f"Bearer {pair['access_token']}"
    assert (await caller.get(HOST, "api/v4/account", Authorization=bearer))[0] == 200
    clock.advance(86400)
    assert (await caller.get(HOST, "api/v4/account", Authorization=bearer))[0] == 401
    clock.advance(90 * 86400)
    status, problem = await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    assert (status, problem["hint"]) == (401, "Token has expired")


async def test_sandbox_form_body_is_rejected_as_invalid_client(caller: Caller) -> None:
    """Only JSON is read; a form body is answered with AMO's misleading client error."""
    form = caller.amo.request(grant_type="authorization_code", code=caller.amo.code())
    status, problem = await caller.send(HOST, data=form)
    assert (status, problem["title"], "hint" in problem) == (401, "Некорректный клиент", False)


@pytest.mark.parametrize("name", ["client_id", "client_secret", "redirect_uri"])
async def test_sandbox_wrong_client_is_rejected_without_hint(caller: Caller, name: str) -> None:
    """Client id, secret and redirect URI must be the registered ones."""
    status, problem = await caller.post(grant_type="authorization_code", code=caller.amo.code(), **{name: "another"})
    assert (status, "hint" in problem) == (401, False)


async def test_sandbox_credential_of_other_account_is_unreadable(caller: Caller) -> None:
    """Another account's code or token gets a 400, and a host without an account answers 404."""
    caller.amo.fake.open_account("other.amocrm.ru")
    _, pair = await caller.exchange()
    token = pair["refresh_token"]
    for host, expected in (("other.amocrm.ru", 400), ("nobody.amocrm.ru", 404)):
        status, _ = await caller.post(host, grant_type="authorization_code", code=caller.amo.code())
        assert status == expected
        status, _ = await caller.post(host, grant_type="refresh_token", refresh_token=token)
        assert status == expected
    assert (await caller.post(grant_type="refresh_token", refresh_token=token))[0] == 200
    for grant in ({"grant_type": "password"}, {"grant_type": "authorization_code"}):
        assert (await caller.post(**grant))[0] == 400


async def test_sandbox_introspection_spends_nothing(caller: Caller) -> None:
    """Introspection of either token returns the account's host and spends nothing."""
    _, pair = await caller.exchange()
    token = pair["refresh_token"]
    caller.amo.account.host = "renamed.amocrm.ru"
    status, place = await caller.introspect_refresh_token(token)
    assert (status, place["domain"], place["subdomain"]) == (200, "renamed.amocrm.ru", "renamed")
    bearer = f"Bearer {pair['access_token']}"
    status, place = await caller.get("www.amocrm.ru", "oauth2/account/subdomain", Authorization=bearer)
    assert (status, place["domain"]) == (200, "renamed.amocrm.ru")
    assert (await caller.introspect_refresh_token("junk"))[0] == 401
    assert (await caller.introspect_refresh_token(token, "elsewhere.amocrm.ru"))[0] == 404
    assert (await caller.post("renamed.amocrm.ru", grant_type="refresh_token", refresh_token=token))[0] == 200


async def test_sandbox_rate_limit_refuses_then_bans(amo: Amo) -> None:
    """The eighth request of a second gets 429, and continued requests get 403."""
    limited = Sandbox(amo.fake, clock=FakeClock(), per_second=7)
    statuses = [limited.limit() for _ in range(30)]
    assert statuses == [None] * 7 + [429] * 20 + [403] * 3


async def test_sandbox_consent_redirects_with_code_state_and_host(amo: Amo, http: aiohttp.ClientSession) -> None:
    """The user allows an account or refuses, and is redirected to the registered URI."""
    client = amo.fake.integration.client_id
    async with http.get(f"http://{amo.address}/oauth?client_id={client}&state=a%26b") as response:
        html = await response.text()
    assert f"/oauth/allow?host={HOST}&amp;state=a%26b" in html
    assert "error=access_denied&amp;state=a%26b" in html
    async with http.get(f"http://{amo.address}/oauth/allow?host={HOST}&state=a%26b", allow_redirects=False) as response:
        location = response.headers["Location"]
    assert location.startswith(amo.fake.integration.redirect_uri + "?code=def50200")
    assert f"&state=a%26b&referer={HOST}&platform=1&client_id={client}" in location
    for refused in ("/oauth?client_id=x", "/oauth/allow?host=x"):
        async with http.get(f"http://{amo.address}{refused}") as response:
            assert response.status == 400


def test_sandbox_hook_signature_matches_amo(amo: Amo) -> None:
    """The signature is HMAC-SHA256 of client and account, keyed with the client secret."""
    query, known = amo.fake.hook_query(amo.account), amo.fake.integration
    expected = hmac.new(
        known.client_secret.encode(), f"{known.client_id}|{amo.account.id}".encode(), hashlib.sha256
    ).hexdigest()
    assert query == {"account_id": str(amo.account.id), "client_uuid": known.client_id, "signature": expected}


async def test_sandbox_disable_calls_hook(amo: Amo) -> None:
    """Disabling the integration calls the hook's URL with the signed query."""
    seen: list[dict[str, str]] = []

    async def hook(request: web.Request) -> web.Response:
        seen.append(dict(request.query))
        return web.Response(status=202)

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/hook", hook)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = "http://{}:{}/hook".format(*runner.addresses[0])
    assert await amo.sandbox.disable(amo.account, hook=address) == 202
    await runner.cleanup()
    assert seen == [amo.fake.hook_query(amo.account)]


async def test_sandbox_ledger_counts_failed_request_as_no_double_spend(caller: Caller) -> None:
    """A request that fails before its evaluation is recorded, and its repetition is not a double spend."""
    _, pair = await caller.exchange()
    caller.amo.sandbox.faults.add(Fault.HTTP_500)
    for _ in range(2):
        await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    ledger = caller.amo.fake.ledger
    assert [entry.status for entry in ledger.refreshes()] == [None, 200]
    assert ledger.doubles() == 0


# --- unknown behaviour of AMO ---------------------------------------------------------------------


@pytest.mark.parametrize("invalidates", [False, True])
async def test_sandbox_refresh_invalidates_access_token_by_setting(caller: Caller, invalidates: bool) -> None:  # noqa: FBT001 -- pytest passes it
    """A setting decides whether a refresh invalidates the old access token, as AMO's behaviour is unknown."""
    caller.amo.fake.quirks.refresh_kills_access = invalidates
    _, pair = await caller.exchange()
    await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    bearer = {"Authorization": f"Bearer {pair['access_token']}"}
    status, _ = await caller.get("www.amocrm.ru", "oauth2/account/subdomain", **bearer)
    assert status == (401 if invalidates else 200)


@pytest.mark.parametrize("accepts", [False, True])
async def test_sandbox_introspection_accepts_spent_token_by_setting(caller: Caller, accepts: bool) -> None:  # noqa: FBT001 -- pytest passes it
    """Introspection accepts a spent token or not, and always rejects one that was never issued."""
    caller.amo.fake.quirks.introspection_accepts_spent = accepts
    _, pair = await caller.exchange()
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[0] == 200
    await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[0] == (200 if accepts else 401)


@pytest.mark.parametrize("status", [401, 404])
async def test_sandbox_former_host_of_moved_account_gives_no_hint(caller: Caller, status: int) -> None:
    """The former host spends nothing and gives no hint, and introspection returns the new host."""
    caller.amo.fake.quirks.moved_status = status
    _, pair = await caller.exchange()
    caller.amo.account.host = "renamed.amocrm.ru"
    refused, problem = await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    assert (refused, "hint" in problem) == (status, False)
    assert caller.amo.fake.is_good(pair["refresh_token"])
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[1]["domain"] == "renamed.amocrm.ru"
