"""API keys that are limited to some connections."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from amo_callback.model import Connection, ConnectionLimits
from amo_callback.web.private.rights import permitted
from tests.builders import bind
from tests.service import ADMIN_KEY, Answer, Running

MINE, OTHER, USER = "31920194", "55555555", "42"
"""The account and the app user that the keys are limited to, and another account."""
KEYS = {
    "account": f"token+read:account={MINE}",
    "owner": f"token+read:owner={USER}",
    "either": f"token+read:account={MINE}+owner={USER}",
    "own name": "token+read:owner=a%2Bb",
}


def _key(name: str) -> str:
    return f"limited-{name.replace(' ', '-')}".ljust(40, "x")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A service with a connection of the keys' account and user, and a connection of another account and user."""

    app: Running
    mine: Connection
    other: Connection

    async def ask(self, path: str, key: str = "account", *, method: str = "GET", **options: Any) -> Answer:
        return await self.app.private(path, key=_key(key), method=method, **options)


@pytest.fixture
async def setting(run: Any) -> AsyncIterator[Setting]:
    async with _running(run) as running:
        yield running


@asynccontextmanager
async def _running(run: Any, **more: str) -> AsyncIterator[Setting]:
    lines = [f"{name.replace(' ', '-')}:{rights}:{_key(name)}" for name, rights in KEYS.items()]
    keys = "\n".join([f"admin:read+token+admin:{ADMIN_KEY}", *lines])
    async with run(API__KEYS=keys, **more) as app:
        found = []
        other = app.amo.fake.open_account("other.amocrm.ru", account_id=int(OTHER))
        for account, user in ((app.amo.account, USER), (other, "7")):
            code = app.amo.fake.allow(account)
            assert (await app.callback(f"code={code}&state=s&referer={account.host}")).status == 302
            [connection] = await app.service.services.store.connections_of(str(account.id))
            assert await bind(app.service.services.store, connection.id, user)
            found.append(connection)
        app.clock.advance(11)
        yield Setting(app=app, mine=found[0], other=found[1])


def _problem(answer: Answer) -> tuple[int, dict[str, Any], str | None]:
    return answer.status, answer.json(), answer.headers.get("WWW-Authenticate")


@pytest.mark.parametrize("key", ["account", "owner", "either"])
async def test_limited_key_is_valid_for_its_connection_by_every_name(setting: Setting, key: str) -> None:
    """A key for an account or an owner shows, hands out and refreshes the connection, however it is named."""
    for name in (setting.mine.id, f"account:{MINE}", f"owner:{USER}"):
        assert (await setting.ask(f"/connections/{name}", key)).json()["id"] == setting.mine.id
        token = await setting.ask(f"/connections/{name}/token", key)
        assert token.json()["account_id"] == MINE
        headers = (await setting.ask(f"/connections/{name}/authorization", key)).headers
        assert headers["X-Amo-Authorization"] == f"Bearer {token.json()['access_token']}"
        rejected = {"rejected_access_token": token.json()["access_token"]}
        refreshed = await setting.ask(f"/connections/{name}/refresh", key, method="POST", json=rejected)
        assert refreshed.json()["account_id"] == MINE
        assert (await setting.ask(f"/events?connection={name}", key)).json()["items"]
    assert len(setting.app.amo.fake.ledger.refreshes()) == 3


@pytest.mark.parametrize("key", ["account", "owner", "own name"])
@pytest.mark.parametrize("route", ["{}", "{}/token", "{}/authorization", "{}/refresh", "events"])
async def test_limited_key_cannot_tell_other_connections_from_missing_ones(
    setting: Setting, key: str, route: str
) -> None:
    """Another connection and a name that does not exist get one and the same 403, and nothing is refreshed."""
    answers = []
    for name in (setting.other.id, f"account:{OTHER}", "owner:7", "nope", "account:", "account:nope", "owner:nope"):
        if route == "events":
            # Events of other connections are not found, and then the connection is looked up.
            answers.append(await setting.ask(f"/events?connection={name}", key))
        else:
            method = "POST" if route.endswith("refresh") else "GET"
            answers.append(await setting.ask(f"/connections/{route.format(name)}", key, method=method))
    expected = _problem(answers[0])
    assert expected[0] == 403
    assert expected[1]["code"] == "forbidden"
    assert "scope" not in expected[1]
    assert expected[2] == 'Bearer realm="amo-callback", error="insufficient_scope"'
    assert [_problem(answer) for answer in answers] == [expected] * len(answers)
    assert setting.app.amo.fake.ledger.refreshes() == []


async def test_limited_key_name_is_resolved_once(setting: Setting) -> None:
    """The connection that is checked is the one that is used, even if its name means another one a moment later."""
    limits = ConnectionLimits(accounts=frozenset({MINE}), owners=frozenset())
    call: Any = SimpleNamespace(services=setting.app.service.services, limits=limits)
    assert await permitted(call, f"owner:{USER}") == setting.mine.id
    call.limits = None
    assert await permitted(call, f"owner:{USER}") == f"owner:{USER}"


async def test_limited_key_loses_its_right_with_the_owner(setting: Setting) -> None:
    """Rights are looked up at each request: a user who disconnects takes the right from the user's key."""
    store = setting.app.service.services.store
    assert await bind(store, setting.mine.id, "8")
    assert (await setting.ask(f"/connections/{setting.mine.id}/token", "owner")).status == 200
    await store.unbind(USER)
    for name in (setting.mine.id, f"account:{MINE}", f"owner:{USER}"):
        assert (await setting.ask(f"/connections/{name}/token", "owner")).status == 403
        assert (await setting.ask(f"/connections/{name}/refresh", "owner", method="POST")).status == 403
    assert (await setting.ask(f"/connections/{setting.mine.id}/token", "account")).status == 200
    assert await bind(store, setting.other.id, USER)
    assert (await setting.ask(f"/connections/owner:{USER}/token", "owner")).json()["account_id"] == OTHER
    assert (await setting.ask(f"/connections/owner:{USER}/token", "account")).status == 403


async def test_limited_key_rejected_token_of_other_connection_is_forbidden(setting: Setting) -> None:
    """A rejected token selects its own connection, and the key must be valid for that one."""
    store = setting.app.service.services.store
    assert await bind(store, setting.other.id, USER)
    assert await bind(store, setting.mine.id, USER)
    other = (await setting.app.private(f"/connections/{setting.other.id}/token", key=ADMIN_KEY)).json()["access_token"]
    body = {"rejected_access_token": other}
    path = f"/connections/owner:{USER}/refresh"
    assert (await setting.ask(path, "account", method="POST", json=body)).status == 403
    assert setting.app.amo.fake.ledger.refreshes() == []
    assert (await setting.ask(path, "owner", method="POST", json=body)).json()["account_id"] == OTHER


async def test_limited_key_ended_ownership_needs_reauth_only_for_its_own_connection(setting: Setting) -> None:
    """After AMO's hook, the user's name is 409 for the keys of the user and of the account, and 403 for others."""
    store = setting.app.service.services.store
    assert await store.disconnect(setting.mine, on_request=False)
    assert await store.disconnect(setting.other, on_request=False)
    for key, name, status in (
        ("owner", f"owner:{USER}", 409),
        ("account", f"owner:{USER}", 409),
        ("owner", "owner:7", 403),
        ("account", "owner:7", 403),
        ("account", f"account:{MINE}", 403),
    ):
        assert (await setting.ask(f"/connections/{name}/token", key)).status == status, (key, name)
        assert (await setting.ask(f"/connections/{name}", key)).status == status, (key, name)
    for key, name in (("owner", f"owner:{USER}"), ("account", f"owner:{USER}")):
        events = await setting.ask(f"/events?connection={name}", key)
        assert (events.status, events.json()["items"]) == (200, [])
    assert (await setting.ask("/events?connection=owner:7", "owner")).status == 403


@pytest.mark.parametrize("key", ["account", "owner", "either"])
async def test_limited_key_lists_only_its_connections(run: Any, key: str) -> None:
    """Lists of connections, events and webhooks contain nothing about other connections, whatever the filter."""
    async with _running(run, WEBHOOK__URL="http://127.0.0.1:9/", WEBHOOK__SECRET="whsec_" + "A" * 32) as setting:
        for query in ("", f"?account_id={MINE}", f"?owner={USER}", "?status=active", "?limit=1"):
            page = (await setting.ask(f"/connections{query}", key)).json()
            assert [one["id"] for one in page["items"]] == [setting.mine.id]
            assert page["next_cursor"] is None
        for query in (f"?account_id={OTHER}", "?owner=7", f"?domain={setting.other.domain}", "?status=disconnected"):
            assert (await setting.ask(f"/connections{query}", key)).json()["items"] == []
        events = (await setting.ask("/events", key)).json()["items"]
        assert {event["connection_id"] for event in events} == {setting.mine.id}
        webhooks = (await setting.ask("/webhooks", key)).json()["items"]
        assert {webhook["connection_id"] for webhook in webhooks} == {setting.mine.id}
        every = (await setting.app.private("/webhooks", key=ADMIN_KEY)).json()["items"]
        assert {webhook["connection_id"] for webhook in every} == {setting.mine.id, setting.other.id}


async def test_limited_key_starts_authorizations_only_for_its_owners(setting: Setting) -> None:
    """An authorization request is started only for an owner in the key; without owners, for none."""
    for key, owner, status in (
        ("owner", USER, 200),
        ("either", USER, 200),
        ("owner", "7", 403),
        ("account", USER, 403),
        ("own name", "a+b", 200),
        ("own name", "a", 403),
    ):
        answer = await setting.ask("/authorizations", key, method="POST", json={"owner": owner})
        assert answer.status == status, (key, owner)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/connections/{}"),
        ("POST", "/connections/{}/freeze"),
        ("POST", "/connections/{}/thaw"),
        ("POST", "/freeze"),
        ("POST", "/thaw"),
        ("POST", "/connections/import"),
        ("POST", "/webhooks/retry"),
        ("POST", "/webhooks/x/retry"),
    ],
)
async def test_limited_key_changes_nothing(setting: Setting, method: str, path: str) -> None:
    """Operations of an administrator are forbidden, also for the key's own connection."""
    answer = await setting.ask(path.format(setting.mine.id), method=method, json={})
    assert (answer.status, answer.json()["code"]) == (403, "forbidden")


async def test_limited_key_is_refused_where_limits_are_not_obeyed(run: Any) -> None:
    """The metrics are about all connections, so they are forbidden; the OpenAPI document is not."""
    async with _running(run, SERVER__METRICS_AUTH="true") as setting:
        assert (await setting.ask("/metrics")).status == 403
        assert (await setting.app.private("/metrics", key=ADMIN_KEY)).status == 200
        assert (await setting.ask("/openapi.json")).status == 200


async def test_limited_key_gets_stale_token_while_store_is_unreachable(setting: Setting) -> None:
    """While the database cannot be read, a key gets the last known token of its connection, and no other's."""

    def lose() -> None:
        database = sqlite3.connect(setting.app.folder / "amo-callback.db")
        database.execute("ALTER TABLE connections RENAME TO gone")
        database.close()

    names = {"account": f"account:{MINE}", "owner": f"owner:{USER}"}
    for name in (*names.values(), f"account:{OTHER}"):
        assert (await setting.app.private(f"/connections/{name}/token", key=ADMIN_KEY)).status == 200
    await asyncio.to_thread(lose)
    setting.app.clock.advance(2)
    for key, name in names.items():
        token = (await setting.ask(f"/connections/{name}/token", key)).json()
        assert (token["account_id"], token["stale"], token["reason"]) == (MINE, True, "store_unavailable")
    assert (await setting.ask(f"/connections/account:{OTHER}/token")).status == 403
    assert (await setting.ask("/connections/account:nope/token")).status == 503
