"""`GET {base}/hooks/disconnect`: the hook starts a check and does not disconnect by itself."""

import asyncio
import sqlite3
from urllib.parse import urlencode

from amo_callback.model import Status
from tests.service import BASE, Answer, Running


async def _hook(app: Running, *, method: str = "GET", **more: str) -> Answer:
    query = {**app.amo.fake.hook_query(app.amo.account), **more}
    return await app.public(f"{BASE}/hooks/disconnect?{urlencode(query)}", method=method)


async def test_hook_of_disabled_account_erases_tokens(app: Running) -> None:
    """The tokens are erased once AMO rejects them, and backends get 404."""
    connection = await app.connected()
    address = f"http://{app.service.public}{BASE}/hooks/disconnect"
    assert await app.amo.sandbox.disable(app.amo.account, hook=address) == 200
    await app.witness.until("connection.disconnected")
    stored = await app.stored(connection)
    assert (stored.status, stored.sealed_pair) == (Status.DISCONNECTED, None)
    assert (await app.private(f"/connections/{connection}/token")).status == 404


async def test_hook_replayed_for_enabled_account_keeps_connection(app: Running) -> None:
    """Replayed hooks, as from a leaked log line, cause few introspections, and the connection stays active."""
    connection = await app.connected()
    began = app.clock.monotonic()
    for _ in range(20):
        answer = await _hook(app)
        assert (answer.status, answer.json()["success"]) == (200, True)
    await app.witness.until("hook.unconfirmed")
    assert (await app.stored(connection)).status is Status.ACTIVE
    assert app.amo.sandbox.introspections <= 1 + (app.clock.monotonic() - began) // 5
    # The last call may leave a check pending.
    assert len(app.witness.named("hook.received")) <= app.amo.sandbox.introspections + 1


async def test_hook_with_client_id_is_accepted(app: Running) -> None:
    """Older hooks name the client in `client_id`, newer ones in `client_uuid`."""
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


async def test_hook_invalid_signature_is_403(app: Running) -> None:
    """A wrong signature or a doubled parameter is 403, HEAD does nothing, and no connection is looked up."""
    await app.connected()
    for name, values in WRONG.items():
        for value in values:
            answer = await _hook(app, **{name: value})
            assert (name, value, answer.status, answer.json()["error"]) == (name, value, 403, "forbidden")
    query = urlencode(app.amo.fake.hook_query(app.amo.account))
    assert (await app.public(f"{BASE}/hooks/disconnect?{query}&account_id=1")).status == 403
    assert (await _hook(app, method="HEAD")).status == 200
    assert app.witness.named("hook.received") == []


async def test_hook_of_unconnected_account_is_200(app: Running) -> None:
    """A hook of AMO for an account without a connection is 200 too."""
    assert (await _hook(app)).status == 200
    assert app.witness.named("hook.received") == []


async def test_hook_store_unavailable_is_503(app: Running) -> None:
    """A hook that cannot be stored is 503, so that AMO sends it again."""
    await app.connected()

    def lose() -> None:
        database = sqlite3.connect(app.folder / "amo-callback.db")
        database.execute("ALTER TABLE connections RENAME TO gone")
        database.close()

    await asyncio.to_thread(lose)
    assert (await _hook(app)).status == 503
