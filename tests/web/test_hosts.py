"""A stored host that is not allowed, as backends and monitoring see it: nothing is lost, and the setting heals it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tests.conftest import ADMIN_KEY

if TYPE_CHECKING:
    from tests.conftest import Running

OURS = "reforyou.crm.example.com"
SETTING = {"AMO__ALLOWED_DOMAINS": ".crm.example.com"}


def _write(app: Running, statement: str, *values: object) -> None:
    """Write the database as somebody does who has no encryption key."""
    with closing(sqlite3.connect(app.folder / "amo-callback.db")) as database, database:
        database.execute(statement, values)


async def test_a_token_is_kept_back_until_the_setting_allows_the_host(run: Any) -> None:
    """503 that names host and setting, and red readiness; the setting heals it at the next start."""
    async with run() as app:
        connection = await app.connected()
        _write(app, "UPDATE connections SET domain = ?", OURS)
        app.clock.advance(2)
        sent = app.amo.sandbox.requests
        for path, method in (("token", "GET"), ("refresh", "POST"), ("token?min_ttl=99999", "GET")):
            answer = await app.private(f"/connections/{connection}/{path}", method=method)
            assert (answer.status, answer.json()["code"]) == (503, "host_not_allowed")
            assert int(answer.headers["Retry-After"]) == app.settings.refresh.retry_cap
            assert OURS in answer.json()["detail"]
            assert "amo.allowed_domains" in answer.json()["detail"]
        assert app.amo.sandbox.requests == sent
        shown = (await app.private(f"/connections/{connection}", key=ADMIN_KEY)).json()
        assert (shown["status"], shown["last_error"]) == ("active", "host_not_allowed")
        await app.service.services.custody.surveyor.look()
        ready = await app.private("/readyz", key=None)
        check = ready.json()["checks"]["hosts"]
        assert (ready.status, check["ok"]) == (503, False)
        assert "amo.allowed_domains: 1. " in check["detail"]
        assert 'outcome="host_not_allowed"} 3.0' in (await app.private("/metrics", key=None)).text
    async with run(**SETTING) as app:
        answer = await app.private(f"/connections/{connection}/token")
        assert (answer.status, answer.json()["domain"]) == (200, OURS)
        assert answer.json()["base_url"] == app.amo.endpoint.replace("{domain}", OURS)
        assert (await app.private("/readyz", key=None)).json()["checks"]["hosts"]["ok"]


async def test_the_stored_host_is_not_repeated_where_it_is_none(app: Running) -> None:
    """What was written there may be anything, a token too: no answer and no detail repeats it."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()["access_token"]
    _write(app, "UPDATE connections SET domain = ?", token)
    app.clock.advance(2)
    answer = await app.private(f"/connections/{connection}/token")
    assert (answer.status, answer.json()["code"]) == (503, "host_not_allowed")
    assert token not in answer.text


async def test_a_backend_gets_no_other_accounts_token_from_swapped_rows(run: Any) -> None:
    """Two rows whose accounts were exchanged: both are `unreadable`, and neither name hands out a token."""
    async with run() as app:
        await app.connected()
        other = app.amo.vendor.open_account("gingersnaps.amocrm.ru")
        code = app.amo.vendor.allow(other)
        assert (await app.callback(f"code={code}&state=s&referer={other.host}&platform=1")).status == 302
        await app.witness.until("connection.connected", times=2)
        names = [str(account.id) for account in (app.amo.account, other)]
        for name in names:
            assert (await app.private(f"/connections/account:{name}/token")).status == 200
        _write(app, "UPDATE connections SET account_id = CASE account_id WHEN ? THEN ? ELSE ? END", *names, names[0])
        app.clock.advance(2)
        for name in names:
            answer = await app.private(f"/connections/account:{name}/token")
            assert (answer.status, answer.json()["code"], answer.json()["reason"]) == (
                409,
                "needs_reauth",
                "unreadable",
            )
        assert app.amo.vendor.ledger.refreshes() == []
