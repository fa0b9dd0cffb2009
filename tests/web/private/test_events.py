"""Webhooks of the whole service: delivered, listed, tried again; and what they do not touch."""

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
async def notifying(run: Any, receiver: Receiver) -> AsyncIterator[Running]:
    """Run the whole service with a receiver."""
    async with run(**_settings(receiver)) as running:
        yield running


async def _list(app: Running, query: str = "") -> Any:
    return (await app.private(f"/webhooks{query}", key=READ_KEY)).json()


async def _retry(app: Running, path: str, *, key: str = ADMIN_KEY) -> Answer:
    return await app.private(path, key=key, method="POST")


async def test_a_connect_is_delivered_as_the_readme_says(notifying: Running, receiver: Receiver) -> None:
    """What it shows for Python verifies what comes."""
    connection = await notifying.connected()
    await notifying.witness.until("webhook.delivered")
    [delivery] = receiver.deliveries
    found = re.search(r"<!-- verify -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    for secret in (SECRET, OTHER_SECRET):
        names: dict[str, Any] = {"secret": secret}
        exec(found[1], names)  # noqa: S102 -- because it is our own README that is tried
        webhook = names["receive"](delivery.body, delivery.headers)
        assert (webhook["type"], webhook["data"]["connection_id"]) == ("connection.connected", connection)
    assert (await _list(notifying)) == {"items": [], "next_cursor": None}


async def test_whoever_has_to_connect_again_is_told_where(notifying: Running, receiver: Receiver) -> None:
    """The reason, and the address of this service's own plain link; of tokens nothing."""
    await notifying.connected()
    notifying.amo.account.disabled = True
    notifying.clock.advance(86_400 * 0.9)
    await notifying.witness.until("connection.needs_reauth")
    while "connection.needs_reauth" not in receiver.types:
        await receiver.until_came(len(receiver.deliveries) + 1)
    data = receiver.deliveries[receiver.types.index("connection.needs_reauth")].content["data"]
    assert set(data) == {"connection_id", "account_id", "domain", "owners", "reason", "reconnect_url"}
    assert data["reconnect_url"] == notifying.settings.amo.redirect_uri.removesuffix("/callback") + "/connect"
    issued = notifying.amo.fake.ledger.issued
    assert not any(token in delivery.body.decode() for token in issued for delivery in receiver.deliveries)


async def test_what_was_given_up_is_listed_and_tried_again(notifying: Running, receiver: Receiver) -> None:
    """With its tries and its last error; one by its id, or all."""
    receiver.statuses = [410, 410]
    connection = await notifying.connected()
    dead_lettered = await notifying.witness.until("webhook.dead_lettered")
    [item] = (await _list(notifying, "?limit=1"))["items"]
    assert {name: item[name] for name in ("type", "connection_id", "status", "tries", "last_error", "next_try_at")} == {
        "type": "connection.connected",
        "connection_id": connection,
        "status": "dead_lettered",
        "tries": 1,
        "last_error": "status_410",
        "next_try_at": None,
    }
    assert item["id"] == dead_lettered.fields["webhook"]
    assert (await _retry(notifying, f"/webhooks/{item['id']}/retry")).json() == {"retried": [item["id"]]}
    await notifying.witness.until("webhook.dead_lettered", times=2)
    assert (await _retry(notifying, "/webhooks/retry")).json() == {"retried": [item["id"]]}
    await notifying.witness.until("webhook.delivered")
    assert receiver.ids == [item["id"]] * 3
    assert (await _retry(notifying, "/webhooks/retry")).json() == {"retried": []}
    events = (await notifying.private(f"/events?connection={connection}")).json()["items"]
    assert [event["name"] for event in events].count("webhook.dead_lettered") == 2


async def test_webhooks_are_listed_page_by_page(notifying: Running, receiver: Receiver) -> None:
    """In the order in which they came, each once."""
    receiver.always = 410
    for number in range(3):
        notifying.amo.account.user_id += 1
        notifying.clock.advance(1)
        await notifying.callback(notifying.query())
        await notifying.witness.until("webhook.dead_lettered", times=number + 1)
    ids, cursor = [], ""
    while True:
        page = await _list(notifying, f"?limit=2{cursor}")
        ids += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert ids == receiver.ids
    assert (await notifying.private("/webhooks?cursor=x")).status == 400


async def test_webhooks_without_receiver_are_not_stored(app: Running) -> None:
    """Without `webhook.url` no webhook is stored for a connection."""
    await app.connected()
    assert (await _list(app))["items"] == []


async def test_a_receiver_that_hangs_slows_no_refresh(run: Any, receiver: Receiver) -> None:
    """While it holds a request, connects are answered and pairs refreshed."""
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


async def test_what_is_in_flight_at_the_end_is_noted(run: Any, receiver: Receiver) -> None:
    """The service waits for the receiver's answer before it closes the store: nothing comes twice for that."""
    receiver.open.clear()
    async with run(**_settings(receiver)) as app:
        await app.connected()
        await receiver.until_came(1)
        app.service.stop()
        asyncio.get_running_loop().call_later(0.1, receiver.open.set)
    async with run(**_settings(receiver)) as again:
        assert await again.service.services.store.webhooks(limit=9) == []
    assert len(receiver.deliveries) == 1


async def test_a_webhook_that_can_be_none_is_not_found_on_either_database(run: Any, either: str) -> None:
    """PostgreSQL takes no NUL: that is no failure of the store, which stays ready."""
    async with run(STORAGE__URL=either) as app:
        for name in ("%00", "a%00b", "a%FFb", "unknown"):
            assert (await _retry(app, f"/webhooks/{name}/retry")).status == 404
            assert (await app.private(f"/connections/{name}/token")).status == 404
        assert (await app.private("/readyz", key=None)).status == 200


async def test_no_secret_of_webhooks_leaves(run: Any, receiver: Receiver) -> None:
    """Neither they nor the receiver's address are in the log, in events, in answers or in the database."""
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


class Death(BaseException):
    """What no loop survives."""


class DeadlyClock(ShiftedClock):
    """A clock that kills who sleeps for the three seconds that the receiver asks for."""

    async def sleep(self, seconds: float) -> None:
        if 2 < seconds <= 3:
            raise Death
        await super().sleep(seconds)


async def test_a_dispatcher_that_dies_ends_the_process_with_a_status(run: Any, receiver: Receiver) -> None:
    """Else nobody would be notified of anything any more, in silence: the process is started again."""
    receiver.always = 503
    receiver.headers = {"Retry-After": "3"}
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with run(clock=DeadlyClock(), **_settings(receiver)) as app:
        store = app.service.services.store
        stored = await save(store, a_connection())
        await store.schedule_recheck(
            stored, at=stored.connected_at, events=[connection_event("connection.moved", stored)]
        )
        assert await until_end(app.service, never) == 1
    assert isinstance(app.witness.named("webhooks.died")[0].error, Death)
    assert "refresher.died" not in app.witness.names()
