"""Connections and their events: list, show, freeze, thaw and disconnect."""

import re
import sqlite3
import uuid
from contextlib import closing
from typing import Any

import pytest

from tests.service import ADMIN_KEY, HOST, Answer, Running


async def _ask(app: Running, path: str, *, method: str = "GET") -> Answer:
    return await app.private(path, key=ADMIN_KEY, method=method)


async def _connect_users(app: Running, size: int) -> list[str]:
    """Connect this many users of the account and return the connection ids."""
    names: list[str] = []
    for _ in range(size):
        app.amo.account.user_id += 1
        app.clock.advance(1)
        assert (await app.callback(app.query())).status == 302
        names.append(str((await app.witness.until("connection.connected", times=len(names) + 1)).connection_id))
    return names


# --- show and list --------------------------------------------------------------------------------


async def test_connection_details_have_times_and_events_without_token(app: Running) -> None:
    """The details have the contract's fields, times in RFC 3339 including the refresh token's expiry, and no token."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()["access_token"]
    answer = await _ask(app, f"/connections/account:{app.amo.account.id}")
    shown = answer.json()
    assert {key: shown[key] for key in ("id", "account_id", "user_id", "owners", "domain", "status", "failures")} == {
        "id": connection,
        "account_id": str(app.amo.account.id),
        "user_id": str(app.amo.account.user_id),
        "owners": [],
        "domain": HOST,
        "status": "active",
        "failures": 0,
    }
    for name in ("access_expires_at", "refresh_expires_at", "next_refresh_at", "connected_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown[name])
    assert (shown["reason"], shown["last_error"], shown["refreshed_at"]) == (None, None, None)
    assert [event["name"] for event in shown["events"]] == ["connection.connected"]
    assert token not in answer.text
    assert token.rpartition(".")[2] not in answer.text


async def test_connections_list_is_paged_and_filtered(app: Running) -> None:
    """Each connection is listed once for any page size, and only matching ones."""
    names = await _connect_users(app, 5)
    found: list[str] = []
    path = "/connections?limit=2"
    while True:
        page = (await _ask(app, path)).json()
        found += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        path = f"/connections?limit=2&cursor={page['next_cursor']}"
    assert found == sorted(names)
    for query, count in {
        f"account_id={app.amo.account.id}": 5, f"domain={HOST}&status=active": 5, "status=needs_reauth": 0,
        "account_id=0": 0,
    }.items():  # fmt: skip
        assert len((await _ask(app, f"/connections?{query}")).json()["items"]) == count


async def test_events_list_is_paged_newest_first(app: Running) -> None:
    """The list has the events of all connections or of a selected one; an unknown id has none."""
    connection = await app.connected()
    for _ in range(3):
        await app.private(f"/connections/{connection}/refresh", method="POST")
        app.clock.advance(10)
    for selector in ("", f"&connection={connection}", f"&connection=account:{app.amo.account.id}"):
        first = (await _ask(app, f"/events?limit=3{selector}")).json()
        second = (await _ask(app, f"/events?limit=3{selector}&cursor={first['next_cursor']}")).json()
        found = [*first["items"], *second["items"]]
        assert second["next_cursor"] is None
        assert [event["name"] for event in found] == ["refresh.succeeded"] * 3 + ["connection.connected"]
        assert [event["id"] for event in found] == sorted((event["id"] for event in found), reverse=True)
        assert found[0]["details"]["trigger"] == "forced"
    for selector in ("gone", "account:1", "owner:1"):
        answer = await _ask(app, f"/events?connection={selector}")
        assert (answer.status, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("connections?limit=0", "limit"),
        ("connections?limit=201", "limit"),
        ("connections?limit=x", "limit"),
        ("connections?limit=1&limit=2", "limit"),
        ("connections?status=gone", "status"),
        ("connections?nonsense=1", "nonsense"),
        ("connections?domain=", "domain"),
        ("connections?cursor=x", "cursor"),
        ("connections?account_id=%00", "account_id"),
        ("events?cursor=x", "cursor"),
        ("events?cursor=" + "9" * 19, "cursor"),
        ("events?cursor=%D9%A3", "cursor"),
        ("events?limit=-1", "limit"),
        ("events?connection=a&connection=b", "connection"),
    ],
)
async def test_list_invalid_parameter_names_field(app: Running, query: str, field: str) -> None:
    """An unknown, doubled, empty, long or out-of-range parameter is 400 with its name."""
    answer = await _ask(app, f"/{query}")
    assert (answer.status, answer.json()["code"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{field}: ")


# --- freeze and thaw ------------------------------------------------------------------------------


async def test_freeze_all_spends_nothing_until_thaw(app: Running) -> None:
    """Tokens and codes are not spent, readiness fails and says what to do, and valid tokens are handed out."""
    connection = await app.connected()
    result = (await _ask(app, "/freeze", method="POST")).json()
    assert (result["frozen"], result["why"], result["open_attempts"]) == (True, "requested by API key admin", 0)
    refused = await app.private(f"/connections/{connection}/refresh", method="POST")
    assert (refused.status, refused.json()["code"], refused.headers["Retry-After"]) == (503, "frozen", "900")
    assert (await app.private(f"/connections/{connection}/token")).status == 200
    assert (await _ask(app, f"/connections/{connection}")).json()["frozen"] is True
    assert "error=amo_unavailable" in (await app.callback(query := app.query())).location
    ready = await app.private("/readyz", key=None)
    assert ready.status == 503
    assert [name for name, check in ready.json()["checks"].items() if not check["ok"]] == ["frozen"]
    assert "amo-callback connections thaw --all" in ready.json()["checks"]["frozen"]["detail"]
    thawed = (await _ask(app, "/thaw", method="POST")).json()
    assert (thawed["frozen"], thawed["why"]) == (False, None)
    assert "code=" in (await app.callback(query)).location  # the code is still valid
    assert (await app.private(f"/connections/{connection}/refresh", method="POST")).status == 200
    assert (await app.private("/readyz", key=None)).status == 200
    asked = [line for line in app.lines() if line["event"] == "freeze.changed"]
    assert [(line["key"], line["frozen"]) for line in asked] == [("admin", True), ("admin", False)]


async def test_freeze_of_one_connection_spares_others(app: Running) -> None:
    """The other connections are refreshed meanwhile; a repeated freeze changes nothing."""
    one, other = await _connect_users(app, 2)
    app.clock.advance(10)
    for _ in range(2):
        shown = (await _ask(app, f"/connections/{one}/freeze", method="POST")).json()
        assert (shown["id"], shown["frozen"]) == (one, True)
    statuses = [(await app.private(f"/connections/{name}/refresh", method="POST")).status for name in (one, other)]
    assert statuses == [503, 200]
    assert (await app.private("/readyz", key=None)).status == 200
    assert (await _ask(app, f"/connections/{one}/thaw", method="POST")).json()["frozen"] is False
    assert (await app.private(f"/connections/{one}/refresh", method="POST")).status == 200
    names = [event["name"] for event in (await _ask(app, f"/events?connection={one}")).json()["items"]]
    assert names == ["refresh.succeeded", "connection.thawed", "connection.frozen", "connection.connected"]


async def test_freeze_thaw_or_delete_ambiguous_selector_is_409(app: Running) -> None:
    """A selector that matches two connections changes neither, because the caller must select one."""
    names = await _connect_users(app, 2)
    account = f"/connections/account:{app.amo.account.id}"
    for path, method in ((f"{account}/freeze", "POST"), (f"{account}/thaw", "POST"), (account, "DELETE")):
        answer = await _ask(app, path, method=method)
        assert (path, answer.status, answer.json()["code"]) == (path, 409, "ambiguous")
    for name in names:
        shown = (await _ask(app, f"/connections/{name}")).json()
        assert (shown["frozen"], shown["status"]) == (False, "active")
    assert (await _ask(app, "/connections/unknown/freeze", method="POST")).status == 404


async def test_freeze_all_reports_open_attempts(app: Running) -> None:
    """Before a move the operator waits until no refresh attempt is open, so that every pair is stored."""
    connection = await app.connected()
    refreshing = await app.refreshing(connection)
    assert (await _ask(app, "/freeze", method="POST")).json()["open_attempts"] == 1
    app.amo.sandbox.go_on.set()
    assert (await refreshing).status == 200
    assert (await _ask(app, "/freeze", method="POST")).json()["open_attempts"] == 0


async def test_database_from_another_machine_starts_frozen(app: Running, run: Any) -> None:
    """Until the thaw the service spends nothing, reports the freeze, and hands out only tokens that AMO accepts."""
    connection = await app.connected()
    async with run(machine="there") as twin:
        # The twin has an AMO sandbox of its own, which did not issue the token.
        assert (await twin.private(f"/connections/{connection}/token")).status == 503
        answer = await twin.private(f"/connections/{connection}/refresh", method="POST")
        assert (answer.status, answer.json()["code"]) == (503, "frozen")
        assert (await twin.private("/readyz", key=None)).json()["checks"]["frozen"]["ok"] is False
        assert twin.amo.fake.ledger.refreshes() == []
        [line] = [line for line in twin.lines() if line["event"] == "service.frozen"]
        assert "at another location" in line["why"]
        assert (await _ask(twin, "/thaw", method="POST")).status == 200


async def test_connections_list_page_is_limited_by_owners(app: Running) -> None:
    """A page has at most `MAX_OWNERS` owners, or one connection; the pages together have every connection."""
    with closing(sqlite3.connect(app.folder / "amo-callback.db")) as database, database:
        for letter, owners in (("a", 6000), ("b", 4000), ("c", 1), ("d", 12_000), ("e", 0)):
            name = str(uuid.UUID(letter * 32))
            database.execute(
                "INSERT INTO connections (id, account_id, user_id, domain, client_id, status, connected_at) "
                "VALUES (?, '1', '1', 'a.amocrm.ru', 'c619', 'active', 0)",
                [name],
            )
            bound = [(name, str(number)) for number in range(owners)]
            database.executemany("INSERT INTO owners (connection_id, owner, bound_no) VALUES (?, ?, 0)", bound)
    pages: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await _ask(app, f"/connections?limit=4{cursor}")).json()
        pages.append("".join(item["id"][0] for item in page["items"]))
        cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
    assert pages == ["ab", "c", "d", "e"]


# --- DELETE /connections/{id} ---------------------------------------------------------------------


async def _delete(app: Running, selector: str, key: str = ADMIN_KEY) -> Answer:
    return await app.private(f"/connections/{selector}", key=key, method="DELETE")


async def test_delete_erases_tokens_until_reconnect(app: Running) -> None:
    """Later requests are 404 and the history names the key; a new connect restores the connection."""
    app.service.services.store.stores_webhooks = True
    connection = await app.connected()
    answer = await _delete(app, connection)
    assert (answer.status, answer.json()["status"], answer.json()["access_expires_at"]) == (200, "disconnected", None)
    assert (await app.private(f"/connections/{connection}/token")).status == 404
    assert (await app.private(f"/connections/{connection}")).status == 404
    stored = await app.stored(connection)
    assert stored.sealed_pair is None
    [gone, *_] = (await app.private(f"/events?connection={connection}")).json()["items"]
    assert (gone["name"], gone["details"]["reason"]) == ("connection.disconnected", "requested by API key admin")
    assert app.witness.named("connection.disconnected")
    webhooks = await app.service.services.store.webhooks(limit=9)
    assert webhooks[-1].type == "connection.disconnected"
    for selector in (connection, "unknown", "account:7", "owner:7"):
        assert (await _delete(app, selector)).status == 404
    app.clock.advance(1)
    await app.callback(app.query())
    assert (await app.private(f"/connections/{connection}/token")).status == 200


async def test_delete_frozen_connection_is_503(app: Running) -> None:
    """A frozen connection may be in use on another host and must be thawed first."""
    connection = await app.connected()
    await app.private(f"/connections/{connection}/freeze", key=ADMIN_KEY, method="POST")
    answer = await _delete(app, connection)
    assert (answer.status, answer.json()["code"]) == (503, "frozen")
    await app.private(f"/connections/{connection}/thaw", key=ADMIN_KEY, method="POST")
    assert (await _delete(app, connection)).status == 200


async def test_delete_during_refresh_discards_new_pair(app: Running) -> None:
    """A pair that AMO returns after the disconnect is discarded."""
    connection = await app.connected()
    refresh = await app.refreshing(connection)
    assert (await _delete(app, connection)).status == 200
    app.amo.sandbox.go_on.set()
    assert (await refresh).status == 404
    stored = await app.stored(connection)
    assert (stored.status, stored.sealed_pair) == ("disconnected", None)
