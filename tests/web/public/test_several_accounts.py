"""One app user with several accounts: the status, `owner:` and the disconnect of one account."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from tests.service import ADMIN_KEY, BASE, Answer, Running
from tests.web.phone import WITH_USERS, Phone, bearer, of


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings."""
    async with run(**WITH_USERS) as running:
        yield running


async def _connect(phone: Phone, account: SandboxAccount) -> None:
    """Connect an account as the phone's user."""
    started = await phone.start()
    code = phone.app.amo.fake.allow(account)
    query = f"code={code}&state={quote(of(started['authorize_url'])['state'], safe='')}&referer={account.host}"
    answer = await phone.exchange(of((await phone.app.callback(query)).location)["code"])
    assert answer.json()["data"]["accountId"] == str(account.id)
    phone.app.clock.advance(11)


async def _two_accounts(app: Running) -> tuple[Phone, SandboxAccount, SandboxAccount]:
    phone, wrong, right = Phone(app, "77"), app.amo.account, app.amo.fake.open_account("right.amocrm.ru")
    await _connect(phone, wrong)
    await _connect(phone, right)
    return phone, wrong, right


async def _disconnect(phone: Phone, body: object) -> Answer:
    return await phone.app.public(f"{BASE}/disconnect", method="POST", json=body, headers=bearer(phone.user))


async def _token(app: Running, name: str) -> tuple[int, str]:
    """Return the status, and the account or the reason of a hand-out."""
    answer = await app.private(f"/connections/{name}/token", key=ADMIN_KEY)
    content = answer.json()
    return answer.status, content["account_id"] if answer.status == 200 else content["reason"]


async def test_status_and_owner_name_are_of_the_account_connected_last(app: Running) -> None:
    """After the account connected last is revoked, neither the status nor `owner:` falls back to another account."""
    phone, wrong, right = await _two_accounts(app)
    assert (await phone.status())["accountId"] == str(right.id)
    assert await _token(app, "owner:77") == (200, str(right.id))
    right.disabled = True
    [connection] = await app.service.services.store.connections_of(str(right.id))
    assert (await app.private(f"/connections/{connection.id}/refresh", method="POST", key=ADMIN_KEY)).status == 409
    status = await phone.status()
    assert (status["connected"], status["domain"], status["accountId"]) == (False, right.host, str(right.id))
    assert await _token(app, "owner:77") == (409, "revoked")
    assert await _token(app, f"account:{wrong.id}") == (200, str(wrong.id))


async def test_disconnect_of_one_account_leaves_the_others(app: Running) -> None:
    """`accountId` disconnects one account; the answer is the status of the account that was connected before."""
    phone, wrong, right = await _two_accounts(app)
    answer = (await _disconnect(phone, {"accountId": str(right.id)})).json()
    assert (answer["data"]["connected"], answer["data"]["accountId"]) == (True, str(wrong.id))
    assert answer["message"].startswith("The account is disconnected.")
    assert await _token(app, "owner:77") == (200, str(wrong.id))
    for body in ({"accountId": str(right.id)}, {"accountId": "0"}):
        answer = (await _disconnect(phone, body)).json()
        assert answer["data"]["accountId"] == str(wrong.id)
        assert answer["message"] == "Nothing was disconnected: there was no such connection."
    assert (await _disconnect(phone, {})).json()["data"]["connected"] is False
    assert [await app.service.services.store.connections_of(str(one.id)) for one in (wrong, right)] == [[], []]


async def test_exchange_code_of_disconnected_account_is_not_another_account(app: Running) -> None:
    """After the flow's account is disconnected, its result is not the account that was connected since."""
    phone, wrong, right = Phone(app, "77"), app.amo.account, app.amo.fake.open_account("right.amocrm.ru")
    code = await phone.connect()
    await phone.exchange(code)
    await _connect(phone, right)
    await _disconnect(phone, {"accountId": str(wrong.id)})
    answer = (await phone.exchange(code)).json()
    assert (answer["data"]["connected"], answer["data"]["accountId"]) == (False, None)
    assert answer["message"] == "The account is not connected."


@pytest.mark.parametrize("body", [*({"accountId": wrong} for wrong in (7, None, "", "7" * 65)), [], "7"])
async def test_disconnect_invalid_account_disconnects_nothing(app: Running, body: object) -> None:
    """An invalid body is 400 and disconnects no account."""
    phone = Phone(app, "77")
    await _connect(phone, app.amo.account)
    answer = await _disconnect(phone, body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_request")
    assert await phone.is_connected()


async def test_owner_name_after_hook_needs_reauth_until_deleted(app: Running) -> None:
    """After AMO's hook, `owner:` is 409 with a reconnect URL, and the status names the account; DELETE ends that."""
    phone, wrong, right = await _two_accounts(app)
    hook = f"http://{app.service.public}{BASE}/hooks/disconnect"
    assert await app.amo.sandbox.disable(right, hook=hook) == 200
    await app.witness.until("connection.disconnected")
    for path in ("/connections/owner:77/token", "/connections/owner:77"):
        answer = await app.private(path, key=ADMIN_KEY)
        assert (answer.status, answer.json()["code"], answer.json()["reason"]) == (409, "needs_reauth", "disconnected")
        assert answer.json()["reconnect_url"].endswith("/connect")
    status = await phone.status()
    assert (status["connected"], status["hasTokens"], status["accountId"]) == (False, False, str(right.id))
    [other] = await app.service.services.store.connections_of(str(wrong.id))
    answers = [
        await app.private(f"/connections/{name}", method="DELETE", key=ADMIN_KEY)
        for name in ("owner:77", other.id, "owner:77", "owner:77")
    ]
    assert [answer.status for answer in answers] == [409, 200, 200, 404]
    assert answers[0].json()["code"] == "ambiguous"
    assert answers[2].json()["status"] == "disconnected"
