"""`GET {base}/hooks/disconnect`: a hint that is checked, not an order."""

import asyncio
import sqlite3
from urllib.parse import urlencode

from amo_callback.model import Status
from tests.service import BASE, Answer, Running


async def _hook(app: Running, *, method: str = "GET", **more: str) -> Answer:
    query = {**app.amo.fake.hook_query(app.amo.account), **more}
    return await app.public(f"{BASE}/hooks/disconnect?{urlencode(query)}", method=method)


async def test_an_account_that_was_switched_off_is_forgotten(app: Running) -> None:
    """The tokens are erased once AMO itself refuses them, and backends hear that there is no such connection."""
    connection = await app.connected()
    address = f"http://{app.service.public}{BASE}/hooks/disconnect"
    assert await app.amo.sandbox.disable(app.amo.account, hook=address) == 200
    await app.witness.until("connection.disconnected")
    stored = await app.stored(connection)
    assert (stored.status, stored.sealed_pair) == (Status.DISCONNECTED, None)
    assert (await app.private(f"/connections/{connection}/token")).status == 404


async def test_a_replayed_hook_changes_nothing_for_an_account_that_lives(app: Running) -> None:
    """Whoever has read one line of a log can send it: the account is looked up, kept, and not asked for again soon."""
    connection = await app.connected()
    began = app.clock.monotonic()
    for _ in range(20):
        answer = await _hook(app)
        assert (answer.status, answer.json()["success"]) == (200, True)
    await app.witness.until("hook.unconfirmed")
    assert (await app.stored(connection)).status is Status.ACTIVE
    assert app.amo.sandbox.introspections <= 1 + (app.clock.monotonic() - began) // 5
    assert (
        len(app.witness.named("hook.received")) <= app.amo.sandbox.introspections + 1
    )  # the last leaves a check pending


async def test_the_older_name_of_the_client_is_known_too(app: Running) -> None:
    """`client_id` where newer hooks say `client_uuid`."""
    await app.connected()
    query = app.amo.fake.hook_query(app.amo.account)
    query["client_id"] = query.pop("client_uuid")
    assert (await app.public(f"{BASE}/hooks/disconnect?{urlencode(query)}")).status == 200
    await app.witness.until("hook.received")


WRONG = {
    "signature": ["0" * 64, "", "é" * 64],
    "account_id": ["1", "31920194|", ""],
    "client_uuid": ["another", ""],
}


async def test_a_signature_that_is_not_amos_is_refused(app: Running) -> None:
    """403, also for a doubled parameter, of which either could be the signed one; HEAD is 405; nobody is looked up."""
    await app.connected()
    for name, values in WRONG.items():
        for value in values:
            answer = await _hook(app, **{name: value})
            assert (name, value, answer.status, answer.json()["error"]) == (name, value, 403, "forbidden")
    query = urlencode(app.amo.fake.hook_query(app.amo.account))
    assert (await app.public(f"{BASE}/hooks/disconnect?{query}&account_id=1")).status == 403
    assert (await _hook(app, method="HEAD")).status == 405
    assert app.witness.named("hook.received") == []


async def test_an_account_that_nobody_connected_is_no_error(app: Running) -> None:
    """AMO has done its part: 200 either way."""
    assert (await _hook(app)).status == 200
    assert app.witness.named("hook.received") == []


async def test_a_store_that_is_away_asks_amo_to_tell_again(app: Running) -> None:
    """503: what could not be noted was not heard."""
    await app.connected()

    def lose() -> None:
        database = sqlite3.connect(app.folder / "amo-callback.db")
        database.execute("ALTER TABLE connections RENAME TO gone")
        database.close()

    await asyncio.to_thread(lose)
    assert (await _hook(app)).status == 503
