"""`GET /openapi.json`: it tells of every route, of no other, and the truth."""

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.errors import (
    AccountBlocked,
    ClientMismatch,
    HostNotAllowed,
    InvalidClient,
    InvalidRefreshToken,
    NotYet,
    RequestNotSent,
    StoreUnavailable,
    error_classes,
)
from amo_callback.identity import Scope
from amo_callback.web.apis import make_apis
from amo_callback.web.public.api import error_actions
from amo_callback.web.route import Unmatched
from tests.openapi_conformance import Conformance, conformance_of
from tests.service import ADMIN_KEY, API_KEY, BASE, READ_KEY, Answer, Running
from tests.web.phone import WITH_USERS

TOKEN_KEY = "o" * 40
"""A key that may not read."""
FOR_USERS = {f"{BASE}/authorizations", f"{BASE}/status", f"{BASE}/disconnect"}


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users, so that it has all its routes."""
    keys = f"backend:{API_KEY}\nreader:read:{READ_KEY}\nadmin:read+token+admin:{ADMIN_KEY}\nother:token:{TOKEN_KEY}"
    async with run(**WITH_USERS, API__KEYS=keys) as running:
        yield running


async def _document(app: Running) -> Any:
    answer = await app.private("/openapi.json", key=READ_KEY)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    return answer.json()


def _operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _named(path: str) -> str:
    return re.sub(r"\{\w+\}", "unknown", path)


async def test_the_document_is_openapi_3_1(app: Running) -> None:
    """It is valid, and a tool that reads such documents reads each of its operations."""
    document = await _document(app)
    assert document["openapi"] == "3.1.0"
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    read = [result for result in schema.get_all_operations() if result.ok() is not None]  # type: ignore[union-attr]  # reason: an `Err` has it, too
    assert len(read) == sum(1 for _ in _operations(document))


async def test_every_route_is_in_the_document_and_every_operation_is_a_route(app: Running) -> None:
    """The document is written from the routes that are served, and from no other list."""
    public, private, _ = make_apis(app.service.services)
    served = {
        (api.name, route.method, "" if route.resource is None else route.resource.canonical)
        for api in (public, private)
        for route in api.make_app().router.routes()
        if not isinstance(route.resource, Unmatched)
    }
    servers = {"The private API, where this document is served.": "private", "The public API.": "public"}
    documented = {
        (servers[server["description"]], method, path)
        for method, path, operation in _operations(await _document(app))
        for server in operation["servers"]
    }
    assert documented == served


async def test_routes_for_users_are_told_of_where_users_are_known(app: Running, run: Any) -> None:
    """The document is of this process: what answers 404 here is not in it."""
    assert set((await _document(app))["paths"]) >= FOR_USERS
    async with run() as without:
        assert set((await _document(without))["paths"]) & FOR_USERS == set()


async def test_operations_have_names_of_their_own_and_say_what_they_do(app: Running) -> None:
    """Clients are generated from the names; each operation has a summary and says which scope it asks for."""
    operations = list(_operations(await _document(app)))
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for _, _, operation in operations:
        assert operation["summary"].endswith((".", ";"))
        guarded = operation["security"] == [{"apiKey": []}]
        assert guarded is (operation.get("x-scope") in set(Scope))
        assert ("401" in operation["responses"]) is (operation["security"] != [])


async def test_examples_are_what_they_are_examples_of(app: Running) -> None:
    """Every example in the document validates against its schema."""
    document = await _document(app)
    seen = 0
    for name, schema in document["components"]["schemas"].items():
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
        for example in schema.get("examples", []):
            assert validator.is_valid(example), name
            seen += 1
    for _, _, operation in _operations(document):
        for parameter in operation["parameters"]:
            if "example" in parameter:
                assert jsonschema_rs.Draft202012Validator(parameter["schema"]).is_valid(parameter["example"])
                seen += 1
    assert seen > 5


async def test_every_operation_asks_for_the_scope_that_it_names(app: Running) -> None:
    """A key without the scope gets 403 and the scope's name, before anything else is looked at."""
    keys = {Scope.READ: TOKEN_KEY, Scope.TOKEN: READ_KEY, Scope.ADMIN: API_KEY}
    asked = 0
    for method, path, operation in _operations(await _document(app)):
        key = keys.get(operation.get("x-scope"))
        if key is not None:
            answer = await app.private(_named(path), method=method, key=key)
            assert (answer.status, answer.json()["scope"]) == (403, operation["x-scope"])
            challenge = f'Bearer realm="amo-callback", error="insufficient_scope", scope="{operation["x-scope"]}"'
            assert answer.headers["WWW-Authenticate"] == challenge
            asked += 1
    assert asked > 15


async def test_private_routes_are_not_on_the_public_listener(app: Running) -> None:
    """They are 404 there, with whatever key; and on the private one nothing but the open routes goes without a key."""
    asked = 0
    for method, path, operation in _operations(await _document(app)):
        if len(operation["servers"]) > 1 or operation["tags"] != ["private"]:
            continue
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = await app.public(_named(path), method=method, headers=headers)
        assert (answer.status, path) == (404, path)
        answer = await app.private(_named(path), method=method, key=None)
        assert (answer.status == 401) is (operation["security"] != [])
        asked += 1
    assert asked > 15
    assert (await app.private(f"{BASE}/callback")).status == 404


async def test_what_is_not_told_of_is_noticed(app: Running) -> None:
    """The tests' own guard: another status, type, member or code than the document names fails a test."""
    known = conformance_of(app)
    good = await app.private("/connections", key=ADMIN_KEY)
    wrong: list[dict[str, Any]] = [
        {"status": 418},
        {"headers": {"Content-Type": "text/plain"}},
        {"text": json.dumps({**good.json(), "more": 1})},
        {"text": json.dumps({"items": []})},
        {"status": 400, "headers": {"Content-Type": "application/problem+json"},
         "text": json.dumps({"status": 400, "title": "Bad Request", "code": "frozen", "detail": "x"})},
    ]  # fmt: skip
    for change in wrong:
        answer = Answer(**{"status": 200, "headers": good.headers, "text": good.text, **change})
        with pytest.raises((AssertionError, jsonschema_rs.ValidationError)):
            known.check("private", "GET", "/connections?limit=1", answer)


def test_each_error_is_complete_in_the_table() -> None:
    """Every error class has a code, status and action in both APIs, and an error of the deep link; codes are unique."""
    statuses: dict[str, set[int]] = defaultdict(set)
    for kind in error_classes():
        statuses[kind.api_code].add(kind.http_status)
        assert kind.action
        assert kind.deep_link_error in DEEP_LINK_ERRORS
        assert kind.app_message is None or kind.code in error_actions()
    assert len(statuses) == 13
    assert statuses.pop("invalid_request") == {400, 410, 429}
    assert all(len(found) == 1 for found in statuses.values())


def test_an_error_that_is_waited_out_is_answered_as_its_cause() -> None:
    """The code, status and action are those of the cause, the wait its own; a user's error passes for amoCRM's."""
    for cause in (AccountBlocked, InvalidClient, ClientMismatch, StoreUnavailable, HostNotAllowed, RequestNotSent):
        error = NotYet(7.0, cause_code=cause.code)
        assert (error.api_code, error.http_status, error.action) == (cause.api_code, cause.http_status, cause.action)
        assert error.retry_after == 7.0
    for unknown in (None, "of another version", InvalidRefreshToken.code):
        assert (NotYet(1.0, cause_code=unknown).api_code, NotYet(1.0).http_status) == ("amo_unavailable", 503)


def test_a_path_is_known_by_its_template() -> None:
    """What stands in a path's place is no part of its operation's name."""
    document = {
        "paths": {"/a/{id}/b": {"get": {"operationId": "x", "tags": ["private"], "servers": [{}]}}},
        "components": {"schemas": {}},
    }
    known = Conformance(document)
    assert known.operation("private", "GET", "/a/account:1/b?c=d")["operationId"] == "x"
    assert known.operation("private", "POST", "/a/1/b") is None
    assert known.operation("public", "GET", "/a/1/b") is None
    assert known.operation("private", "GET", "/a/1/2/b") is None
