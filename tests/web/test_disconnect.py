"""`DELETE /connections/{id}`: a connection is forgotten by an administrator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from amo_callback.amo.sandbox.faults import Fault
from tests.conftest import ADMIN_KEY, API_KEY, READ_KEY

if TYPE_CHECKING:
    from tests.conftest import Answer, Running


async def _delete(app: Running, selector: str, key: str = ADMIN_KEY) -> Answer:
    return await app.private(f"/connections/{selector}", key=key, method="DELETE")


async def test_a_connection_is_forgotten_with_its_tokens(app: Running) -> None:
    """Its tokens are erased, whoever asks for one hears 404, and the history tells who did it."""
    connection = await app.connected()
    answer = await _delete(app, connection)
    assert (answer.status, answer.json()["status"], answer.json()["access_expires_at"]) == (200, "disconnected", None)
    assert (await app.private(f"/connections/{connection}/token")).status == 404
    assert (await app.private(f"/connections/{connection}")).status == 404
    stored = await app.service.services.store.connection(connection)
    assert stored is not None
    assert stored.sealed_pair is None
    [gone, *_] = (await app.private(f"/events?connection={connection}")).json()["items"]
    assert (gone["name"], gone["details"]["reason"]) == ("connection.disconnected", "asked by admin")
    assert app.witness.named("connection.disconnected")
    notices = await app.service.services.store.notices(limit=9)
    assert notices[-1].type == "connection.disconnected"


async def test_what_is_gone_is_gone_once(app: Running) -> None:
    """A second time, or of what never was, is 404."""
    connection = await app.connected()
    assert (await _delete(app, connection)).status == 200
    for selector in (connection, "unknown", "account:7", "owner:7"):
        assert (await _delete(app, selector)).status == 404


async def test_only_an_administrator_disconnects(app: Running) -> None:
    """The scope is `admin`."""
    connection = await app.connected()
    for key in (API_KEY, READ_KEY):
        answer = await _delete(app, connection, key)
        assert (answer.status, answer.json()["code"]) == (403, "forbidden")
    assert (await app.private(f"/connections/{connection}")).status == 200


async def test_a_selector_that_names_two_disconnects_neither(app: Running) -> None:
    """An account with two AMO users has two connections: 409, and nothing is changed."""
    await app.connected()
    app.amo.account.user_id += 1
    await app.connected()
    answer = await _delete(app, f"account:{app.amo.account.id}")
    assert (answer.status, answer.json()["code"]) == (409, "ambiguous")
    assert len(await app.service.services.store.connections_of(str(app.amo.account.id))) == 2


async def test_what_is_frozen_is_not_erased(app: Running) -> None:
    """It may live elsewhere: thaw it first."""
    connection = await app.connected()
    await app.private(f"/connections/{connection}/freeze", key=ADMIN_KEY, method="POST")
    answer = await _delete(app, connection)
    assert (answer.status, answer.json()["code"]) == (503, "frozen")
    await app.private(f"/connections/{connection}/thaw", key=ADMIN_KEY, method="POST")
    assert (await _delete(app, connection)).status == 200


async def test_a_refresh_that_is_under_way_does_not_bring_it_back(app: Running) -> None:
    """AMO answers after it was forgotten: that pair is dropped."""
    connection = await app.connected()
    app.amo.sandbox.asked.clear()
    app.amo.sandbox.faults.add(Fault.SLOW)
    refresh = asyncio.create_task(app.private(f"/connections/{connection}/refresh", method="POST"))
    await app.amo.sandbox.asked.wait()
    assert (await _delete(app, connection)).status == 200
    app.amo.sandbox.go_on.set()
    assert (await refresh).status == 404
    stored = await app.service.services.store.connection(connection)
    assert stored is not None
    assert (stored.status, stored.sealed_pair) == ("disconnected", None)


async def test_connecting_again_brings_it_back(app: Running) -> None:
    """The person connects anew: the same connection, with tokens of its own."""
    connection = await app.connected()
    await _delete(app, connection)
    app.clock.advance(1)
    await app.callback(app.query())
    assert (await app.private(f"/connections/{connection}/token")).status == 200
