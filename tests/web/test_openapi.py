"""`GET /openapi.json`: it tells of every route, of no other, and the truth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
import schemathesis

from amo_callback.deeplink import WORDS
from amo_callback.errors import AmoCallbackError
from amo_callback.identity import Scope
from amo_callback.web import answers
from amo_callback.web.answers import FailureCode
from amo_callback.web.app import make_apps
from amo_callback.web.private import problems
from amo_callback.web.private.problems import STATUSES, Code, problem_of
from tests.agreed import Agreed, agreed
from tests.conftest import ADMIN_KEY, API_KEY, BASE, READ_KEY, Answer
from tests.web.phone import WITH_USERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.conftest import Running

FOR_USERS = {f"{BASE}/authorizations", f"{BASE}/status", f"{BASE}/disconnect"}


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with users, so that it has all its routes."""
    async with run(**WITH_USERS) as running:
        yield running


async def _document(app: Running) -> Any:
    answer = await app.private("/openapi.json", key=READ_KEY)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    return answer.json()


def _operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


async def test_the_document_is_openapi_3_1(app: Running) -> None:
    """It is valid, and a tool that reads such documents reads each of its operations."""
    document = await _document(app)
    assert document["openapi"] == "3.1.0"
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    read = [result for result in schema.get_all_operations() if result.ok() is not None]  # type: ignore[union-attr]  # reason: an `Err` has it, too
    assert len(read) == sum(1 for _ in _operations(document))


async def test_every_route_is_in_the_document_and_every_operation_is_a_route(app: Running) -> None:
    """Whoever adds a route declares its operation: `@operation`, `@app_operation` or `@page_operation`."""
    apps = make_apps(app.settings, app.service.services, app.quiet)
    served = {
        (name, route.method, "" if route.resource is None else route.resource.canonical)
        for name, door in (("public", apps.public), ("private", apps.private))
        for route in door.router.routes()
    }
    servers = {"The private door, where this document is served.": "private", "The public door.": "public"}
    told = {
        (servers[server["description"]], method, path)
        for method, path, operation in _operations(await _document(app))
        for server in operation["servers"]
    }
    assert told == served


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
    """Every example in the document validates against the schema that it stands beside."""
    document = await _document(app)
    seen = 0
    for method, path, operation in _operations(document):
        places = [answer.get("content", {}) for answer in operation["responses"].values()]
        places.append(operation.get("requestBody", {}).get("content", {}))
        for media in (media for place in places for media in place.values()):
            schema = {**media["schema"], "components": document["components"]}
            validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
            for example in media.get("examples", {}).values():
                assert validator.is_valid(example["value"]), (method, path, example)
                seen += 1
    for name, schema in document["components"]["schemas"].items():
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
        for example in schema.get("examples", []):
            assert validator.is_valid(example), name
            seen += 1
    assert seen > 60


async def test_every_operation_asks_for_the_scope_that_it_names(app: Running) -> None:
    """A key without the scope gets 403 and the scope's name, before anything else is looked at."""
    keys = {Scope.READ: None, Scope.TOKEN: READ_KEY, Scope.ADMIN: API_KEY}
    asked = 0
    for method, path, operation in _operations(await _document(app)):
        key = keys.get(operation.get("x-scope"))
        if key is not None:
            answer = await app.private(path.replace("{id}", "unknown"), method=method, key=key)
            assert (answer.status, answer.json()["scope"]) == (403, operation["x-scope"])
            asked += 1
    assert asked >= 7


async def test_the_document_wants_a_key_that_may_read(app: Running, run: Any) -> None:
    """401 without a key, and 403 for one that may only do something else; the public door knows nothing of it."""
    assert (await app.private("/openapi.json", key=None)).status == 401
    assert (await app.public("/openapi.json")).status == 404
    other = "o" * 40
    async with run(API__KEYS=f"other:token:{other}") as running:
        assert (await running.private("/openapi.json", key=other)).status == 403


async def test_what_is_not_told_of_is_noticed(app: Running) -> None:
    """The tests' own guard: another status, type, member or code than the document names fails a test."""
    known = agreed(app)
    good = await app.private("/connections", key=ADMIN_KEY)
    wrong: list[dict[str, Any]] = [
        {"status": 418},
        {"headers": {"Content-Type": "text/plain"}},
        {"text": json.dumps({**good.json(), "more": 1})},
        {"text": json.dumps({"items": []})},
        {"status": 400, "headers": {"Content-Type": "application/problem+json"},
         "text": json.dumps({"status": 400, "code": "frozen", "detail": "x"})},
    ]  # fmt: skip
    for change in wrong:
        answer = Answer(**{"status": 200, "headers": good.headers, "text": good.text, **change})
        with pytest.raises((AssertionError, jsonschema_rs.ValidationError)):
            known.check("private", "GET", "/connections?limit=1", answer)


def test_every_error_has_its_code_and_every_code_its_status(app: Running) -> None:
    """Both doors have a word on their lists for whatever can go wrong."""
    kinds, waiting = [], [AmoCallbackError]
    while waiting:
        kinds.append(kind := waiting.pop())
        waiting += kind.__subclasses__()
    assert len(kinds) > 30
    for kind in kinds:
        error = kind.__new__(kind)
        error.retry_after, error.cause_code, error.scope, error.reason = 1.0, None, "read", None  # type: ignore[attr-defined]  # reason: whatever a class needs
        problem = problem_of(error, settings=app.settings)
        assert (problem.code in Code, problem.status) == (True, STATUSES[problem.code])
        assert FailureCode(kind.deep_link_error)
        assert kind.deep_link_error in WORDS
    assert set(STATUSES) == set(problems.TODO) == set(Code)
    assert set(answers.TODO) == set(FailureCode)


def test_a_path_is_known_by_its_template() -> None:
    """What stands in a path's place is no part of its operation's name."""
    document = {
        "paths": {"/a/{id}/b": {"get": {"operationId": "x", "tags": ["private"], "servers": [{}]}}},
        "components": {"schemas": {}},
    }
    known = Agreed(document)
    assert known.operation("private", "GET", "/a/account:1/b?c=d")["operationId"] == "x"
    assert known.operation("private", "POST", "/a/1/b") is None
    assert known.operation("public", "GET", "/a/1/b") is None
    assert known.operation("private", "GET", "/a/1/2/b") is None
