"""Webhooks of the whole service: delivery, list and retry."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from amo_callback.cli.serve import until_end
from amo_callback.events import connection_event
from tests.builders import a_connection, save
from tests.fakes import ShiftedClock
from tests.service import ADMIN_KEY, READ_KEY, Answer, Running
from tests.webhooks.receiver import OTHER_SECRET, SECRET, Receiver

README = Path(__file__).parents[3] / "README.md"


def _settings(receiver: Receiver) -> dict[str, str]:
    return {"WEBHOOK__URL": receiver.url, "WEBHOOK__SECRET": f"{SECRET}\n{OTHER_SECRET}"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver().serve() as served:
        yield served


@pytest.fixture
async def webhook_app(run: Any, receiver: Receiver) -> AsyncIterator[Running]:
    """Run the whole service with a webhook receiver."""
    async with run(**_settings(receiver)) as running:
        yield running


async def _list(app: Running, query: str = "") -> Any:
    return (await app.private(f"/webhooks{query}", key=READ_KEY)).json()


async def _retry(app: Running, path: str, *, key: str = ADMIN_KEY) -> Answer:
    return await app.private(path, key=key, method="POST")


async def test_webhook_connected_is_verified_by_readme_example(webhook_app: Running, receiver: Receiver) -> None:
    """The README's Python example verifies the delivered webhook."""
    connection = await webhook_app.connected()
    await webhook_app.witness.until("webhook.delivered")
    [delivery] = receiver.deliveries
    found = re.search(r"<!-- verify -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    for secret in (SECRET, OTHER_SECRET):
        names: dict[str, Any] = {"secret": secret}
        exec(found[1], names)  # noqa: S102 -- because the code is from this repository's README
        webhook = names["receive"](delivery.body, delivery.headers)
        assert (webhook["type"], webhook["data"]["connection_id"]) == ("connection.connected", connection)
    assert (await _list(webhook_app)) == {"items": [], "next_cursor": None}


async def test_webhook_needs_reauth_has_reason_and_reconnect_url(webhook_app: Running, receiver: Receiver) -> None:
    """The webhook has the reason and the address of this service's `connect` link, and no token."""
    await webhook_app.connected()
    webhook_app.amo.account.disabled = True
    webhook_app.clock.advance(86_400 * 0.9)
    await webhook_app.witness.until("connection.needs_reauth")
    while "connection.needs_reauth" not in receiver.types:
        await receiver.until_came(len(receiver.deliveries) + 1)
    data = receiver.deliveries[receiver.types.index("connection.needs_reauth")].content["data"]
    assert set(data) == {"connection_id", "account_id", "domain", "owners", "reason", "reconnect_url"}
    assert data["reconnect_url"] == webhook_app.settings.amo.redirect_uri.removesuffix("/callback") + "/connect"
    issued = webhook_app.amo.fake.ledger.issued
    assert not any(token in delivery.body.decode() for token in issued for delivery in receiver.deliveries)


async def test_webhooks_dead_lettered_are_listed_and_retried(webhook_app: Running, receiver: Receiver) -> None:
    """The list has tries and last error; a retry is by id, or of all."""
    receiver.statuses = [410, 410]
    connection = await webhook_app.connected()
    dead_lettered = await webhook_app.witness.until("webhook.dead_lettered")
    [item] = (await _list(webhook_app, "?limit=1"))["items"]
    assert {name: item[name] for name in ("type", "connection_id", "status", "tries", "last_error", "next_try_at")} == {
        "type": "connection.connected",
        "connection_id": connection,
        "status": "dead_lettered",
        "tries": 1,
        "last_error": "status_410",
        "next_try_at": None,
    }
    assert item["id"] == dead_lettered.fields["webhook"]
    assert (await _retry(webhook_app, f"/webhooks/{item['id']}/retry")).json() == {"retried": [item["id"]]}
    await webhook_app.witness.until("webhook.dead_lettered", times=2)
    assert (await _retry(webhook_app, "/webhooks/retry")).json() == {"retried": [item["id"]]}
    await webhook_app.witness.until("webhook.delivered")
    assert receiver.ids == [item["id"]] * 3
    assert (await _retry(webhook_app, "/webhooks/retry")).json() == {"retried": []}
    events = (await webhook_app.private(f"/events?connection={connection}")).json()["items"]
    assert [event["name"] for event in events].count("webhook.dead_lettered") == 2


async def test_webhooks_list_is_paged_in_order(webhook_app: Running, receiver: Receiver) -> None:
    """Webhooks are listed once each, in the order of their creation."""
    receiver.always = 410
    for number in range(3):
        webhook_app.amo.account.user_id += 1
        webhook_app.clock.advance(1)
        await webhook_app.callback(webhook_app.query())
        await webhook_app.witness.until("webhook.dead_lettered", times=number + 1)
    ids, cursor = [], ""
    while True:
        page = await _list(webhook_app, f"?limit=2{cursor}")
        ids += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert ids == receiver.ids
    assert (await webhook_app.private("/webhooks?cursor=x")).status == 400


async def test_webhooks_without_receiver_are_not_stored(app: Running) -> None:
    """Without `webhook.url` no webhook is stored for a connection."""
    await app.connected()
    assert (await _list(app))["items"] == []


async def test_webhook_receiver_hanging_delays_no_refresh(run: Any, receiver: Receiver) -> None:
    """While the receiver holds a request, connects are answered and pairs are refreshed."""
    receiver.open.clear()
    async with run(lifetimes={"access": 1000}, **_settings(receiver)) as app:
        connection = await app.connected()
        await receiver.until_came(1)
        app.clock.advance(700)
        await app.witness.until("refresh.succeeded")
        assert (await app.private(f"/connections/{connection}/token")).status == 200
        assert not {"webhook.delivered", "webhook.failed"} & set(app.witness.names())
        receiver.open.set()
        await app.witness.until("webhook.delivered")


async def test_shutdown_webhook_in_flight_is_stored_as_delivered(run: Any, receiver: Receiver) -> None:
    """The service waits for the receiver's answer before it closes the store, so nothing is delivered twice."""
    receiver.open.clear()
    async with run(**_settings(receiver)) as app:
        await app.connected()
        await receiver.until_came(1)
        app.service.stop()
        asyncio.get_running_loop().call_later(0.1, receiver.open.set)
    async with run(**_settings(receiver)) as again:
        assert await again.service.services.store.webhooks(limit=9) == []
    assert len(receiver.deliveries) == 1


async def test_webhook_and_connection_ids_with_nul_are_404_on_either_engine(run: Any, either: str) -> None:
    """A NUL, which PostgreSQL rejects, does not count as a failure of the store, which stays ready."""
    async with run(STORAGE__URL=either) as app:
        for name in ("%00", "a%00b", "a%FFb", "unknown"):
            assert (await _retry(app, f"/webhooks/{name}/retry")).status == 404
            assert (await app.private(f"/connections/{name}/token")).status == 404
        assert (await app.private("/readyz", key=None)).status == 200


async def test_webhook_secrets_are_not_logged_listed_or_stored(run: Any, receiver: Receiver) -> None:
    """Neither secrets, signatures nor the receiver's address are in log, events, responses or database."""
    receiver.statuses = [500, 301]
    async with run(**_settings(receiver)) as app:
        await app.connected()
        await app.witness.until("webhook.failed")
        listed = (await app.private("/webhooks")).text
        await app.clock.until_sleeping(5)
        app.clock.advance(7)
        await app.witness.until("webhook.failed", times=2)
        await _retry(app, f"/webhooks/{receiver.ids[0]}/retry")
        await app.witness.until("webhook.delivered")
        written = f"{app.log.getvalue()}{app.witness.events!r}{listed}"
        written += "".join(file.read_bytes().decode("latin-1") for file in app.folder.glob("*.db*"))
    assert "status_500" in written
    signatures = [delivery.headers["webhook-signature"].split()[0] for delivery in receiver.deliveries]
    for secret in (SECRET, SECRET[6:], OTHER_SECRET[6:], receiver.url, *signatures):
        assert secret not in written
    assert SECRET[6:] not in repr(app.settings)
    last = receiver.deliveries[-1]
    assert Webhook(SECRET).verify(last.body, dict(last.headers), json_parse=False) is None


class FatalError(BaseException):
    """An exception that no loop handles."""


class FailingClock(ShiftedClock):
    """A clock that raises `FatalError` from a sleep of the receiver's `Retry-After`."""

    async def sleep(self, seconds: float) -> None:
        if 2 < seconds <= 3:
            raise FatalError
        await super().sleep(seconds)


async def test_serve_dispatcher_failure_exits_with_status_1(run: Any, receiver: Receiver) -> None:
    """Without a dispatcher no webhook would be delivered, so the process exits and is restarted."""
    receiver.always = 503
    receiver.headers = {"Retry-After": "3"}
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with run(clock=FailingClock(), **_settings(receiver)) as app:
        store = app.service.services.store
        stored = await save(store, a_connection())
        await store.schedule_recheck(
            stored, at=stored.connected_at, events=[connection_event("connection.moved", stored)]
        )
        assert await until_end(app.service, never) == 1
    assert isinstance(app.witness.named("webhooks.died")[0].error, FatalError)
    assert "refresher.died" not in app.witness.names()
