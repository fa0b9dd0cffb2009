"""The stand-in keeps AMO's rules: what it forgave, it would hide."""

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


async def test_codes_and_refresh_tokens_work_once(caller: Caller) -> None:
    """The second presentation is refused with AMO's words, and the ledger knows of it."""
    code = caller.amo.code()
    _, pair = await caller.exchange(code)
    status, problem = await caller.exchange(code)
    assert (status, problem["hint"]) == (400, "Authorization code has been revoked")
    token = pair["refresh_token"]
    assert (await caller.post(grant_type="refresh_token", refresh_token=token))[0] == 200
    status, problem = await caller.post(grant_type="refresh_token", refresh_token=token)
    assert (status, problem["hint"]) == (401, "Token has been revoked")
    assert caller.amo.fake.ledger.doubles() == 2


async def test_everything_dies_in_its_time(caller: Caller, clock: FakeClock) -> None:
    """A code after 20 minutes, an access token after a day, a refresh token after three months."""
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


async def test_a_form_is_refused_with_misleading_words(caller: Caller) -> None:
    """Only JSON is read; a form body is told that its client is wrong."""
    form = caller.amo.request(grant_type="authorization_code", code=caller.amo.code())
    status, problem = await caller.send(HOST, data=form)
    assert (status, problem["title"], "hint" in problem) == (401, "Некорректный клиент", False)


@pytest.mark.parametrize("name", ["client_id", "client_secret", "redirect_uri"])
async def test_a_wrong_client_is_refused_without_a_hint(caller: Caller, name: str) -> None:
    """Client id, secret and redirect URI must be the registered ones, in both grants."""
    status, problem = await caller.post(grant_type="authorization_code", code=caller.amo.code(), **{name: "another"})
    assert (status, "hint" in problem) == (401, False)


async def test_what_is_not_the_accounts_cannot_be_decrypted(caller: Caller) -> None:
    """Junk, or another account's code or token, is unreadable; a host without account is 404."""
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


async def test_the_look_ups_spend_nothing(caller: Caller) -> None:
    """Where an account lives is told for a refresh token and for an access token, and spends neither."""
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


async def test_seven_a_second_then_429_then_a_ban(amo: Amo) -> None:
    """With the limit on, the eighth request of a second is refused, and who goes on is banned."""
    limited = Sandbox(amo.fake, clock=FakeClock(), per_second=7)
    statuses = [limited.limit() for _ in range(30)]
    assert statuses == [None] * 7 + [429] * 20 + [403] * 3


async def test_consent_leads_back_with_code_state_and_host(amo: Amo, http: aiohttp.ClientSession) -> None:
    """The person chooses an account or refuses, and is sent to the registered redirect URI either way."""
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


def test_the_hook_is_signed_as_amo_signs_it(amo: Amo) -> None:
    """The signature is HMAC-SHA256 of client and account, keyed with the client secret."""
    query, known = amo.fake.hook_query(amo.account), amo.fake.integration
    expected = hmac.new(
        known.client_secret.encode(), f"{known.client_id}|{amo.account.id}".encode(), hashlib.sha256
    ).hexdigest()
    assert query == {"account_id": str(amo.account.id), "client_uuid": known.client_id, "signature": expected}


async def test_switching_off_tells_the_hook(amo: Amo) -> None:
    """AMO's server calls the hook's address with the signed query."""
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


async def test_the_ledger_knows_what_was_turned_away(caller: Caller) -> None:
    """A credential that met a fault before it was looked at is noted, and to present it again is no double spend."""
    _, pair = await caller.exchange()
    caller.amo.sandbox.faults.add(Fault.HTTP_500)
    for _ in range(2):
        await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    ledger = caller.amo.fake.ledger
    assert [entry.status for entry in ledger.refreshes()] == [None, 200]
    assert ledger.doubles() == 0


# --- what is not known of AMO ---------------------------------------------------------------------


@pytest.mark.parametrize("kills", [False, True])
async def test_the_old_access_token_outlives_a_refresh_or_not(caller: Caller, kills: bool) -> None:  # noqa: FBT001 -- because it is the switch
    """Either may be true of AMO."""
    caller.amo.fake.quirks.refresh_kills_access = kills
    _, pair = await caller.exchange()
    await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    bearer = {"Authorization": f"Bearer {pair['access_token']}"}
    status, _ = await caller.get("www.amocrm.ru", "oauth2/account/subdomain", **bearer)
    assert status == (401 if kills else 200)


@pytest.mark.parametrize("knows", [False, True])
async def test_the_look_up_knows_spent_tokens_or_not(caller: Caller, knows: bool) -> None:  # noqa: FBT001 -- because it is the switch
    """Either may be true of AMO; a token that was never issued is refused in any case."""
    caller.amo.fake.quirks.introspection_accepts_spent = knows
    _, pair = await caller.exchange()
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[0] == 200
    await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[0] == (200 if knows else 401)


@pytest.mark.parametrize("status", [401, 404])
async def test_the_old_host_of_a_moved_account_gives_no_hint(caller: Caller, status: int) -> None:
    """Nothing is spent there, and the look-up names the new one."""
    caller.amo.fake.quirks.moved_status = status
    _, pair = await caller.exchange()
    caller.amo.account.host = "renamed.amocrm.ru"
    refused, problem = await caller.post(grant_type="refresh_token", refresh_token=pair["refresh_token"])
    assert (refused, "hint" in problem) == (status, False)
    assert caller.amo.fake.is_good(pair["refresh_token"])
    assert (await caller.introspect_refresh_token(pair["refresh_token"]))[1]["domain"] == "renamed.amocrm.ru"
