"""`GET /openapi.json` describes exactly the served routes, with their scopes and valid examples."""

import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from amo_callback.cli.info import EXAMPLE_ENVIRONMENT
from amo_callback.cli.main import main
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
from tests.service import ADMIN_KEY, API_KEY, BASE, HOST, READ_KEY, Answer, Running
from tests.web.phone import WITH_USERS

TOKEN_KEY = "o" * 40
"""A key without the read scope."""
USER_ROUTES = {f"{BASE}/authorizations", f"{BASE}/status", f"{BASE}/disconnect"}


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings, so that all its routes exist."""
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


def _filled_path(path: str) -> str:
    return re.sub(r"\{\w+\}", "unknown", path)


async def test_openapi_document_is_valid_3_1(app: Running) -> None:
    """The document is valid, and schemathesis reads each of its operations."""
    document = await _document(app)
    assert document["openapi"] == "3.1.0"
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    read = [result for result in schema.get_all_operations() if result.ok() is not None]  # type: ignore[union-attr]  # reason: an `Err` has it, too
    assert len(read) == sum(1 for _ in _operations(document))


async def test_openapi_operations_are_the_served_routes(app: Running) -> None:
    """The document contains exactly the routes that are served, except HEAD where it does the same as GET."""
    public, private = make_apis(app.service.services)
    served = {
        (api.name, route.method, "" if route.resource is None else route.resource.canonical)
        for api in (public, private)
        for route in api.make_app().router.routes()
        if not isinstance(route.resource, Unmatched)
    }
    operations = [*_operations(await _document(app))]
    apis = {"private": ["private"], "public": ["public"], "common": ["private", "public"]}
    listed = [(api, method, path) for method, path, one in operations for tag in one["tags"] for api in apis[tag]]
    documented = set(listed)
    assert len(documented) == len(listed)
    assert documented <= served
    gets = {(api, method.replace("GET", "HEAD"), path) for api, method, path in documented}
    assert served - documented <= gets


async def test_docs_openapi_prints_served_document(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`amo-callback docs openapi` prints the document of a service with the same settings."""
    same = {name.removeprefix("AMO_CALLBACK_"): value for name, value in EXAMPLE_ENVIRONMENT.items()}
    async with run(**same) as app:
        assert main(["docs", "openapi"]) == 0
        assert json.loads(capsys.readouterr().out) == await _document(app)


async def test_openapi_without_jwt_settings_omits_user_routes(app: Running, run: Any) -> None:
    """The document describes this process: routes that are 404 without JWT settings are not in it."""
    assert set((await _document(app))["paths"]) >= USER_ROUTES
    async with run() as without:
        assert set((await _document(without))["paths"]) & USER_ROUTES == set()


async def test_openapi_operations_have_unique_id_summary_and_scope(app: Running) -> None:
    """Each operation has a unique `operationId` that can name a method, a summary and its scope."""
    operations = list(_operations(await _document(app)))
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for _, _, operation in operations:
        assert re.fullmatch("[a-z]+(_[a-z0-9]+)*", operation["operationId"])
        assert operation["summary"].endswith((".", ";"))
        needs_key = operation["security"] == [{"apiKey": []}]
        assert needs_key is (operation.get("x-scope") in set(Scope))
        assert ("401" in operation["responses"]) is (operation["security"] != [])


async def test_openapi_names_server_only_for_public_operations(app: Running) -> None:
    """The address that a client's user sets is used for each operation of the listener that serves the document."""
    document = await _document(app)
    public = {"url": app.settings.amo.redirect_uri.removesuffix(f"{BASE}/callback"), "description": "The public API."}
    assert [server["url"] for server in document["servers"]] == ["/"]
    for _, path, operation in _operations(document):
        assert operation.get("servers") == ([public] if operation["tags"] == ["public"] else None), path


async def test_openapi_references_have_no_siblings(app: Running) -> None:
    """A `$ref` stands alone, because client generators reject or ignore its siblings."""
    references = [part for part in _parts(await _document(app)) if "$ref" in part]
    assert len(references) > 100
    assert [part for part in references if len(part) > 1] == []


async def test_openapi_members_are_not_only_null(app: Running) -> None:
    """No schema accepts only `null`, for which client generators have no type."""
    document = await _document(app)
    members = [
        one
        for part in _parts(document)
        if isinstance(part.get("properties"), dict)
        for one in part["properties"].values()
    ]
    assert len(members) > 100
    nothing = ({"type": "null"}, {"const": None}, {"enum": [None]})
    assert [one for one in members if any(null.items() <= one.items() for null in nothing)] == []


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a JSON value."""
    if isinstance(part, dict):
        yield part
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _parts(one)


async def test_openapi_schemas_have_plain_unique_names(app: Running) -> None:
    """A schema's name is the name of a class, and a title, which replaces the name in some clients, is unique."""
    schemas = (await _document(app))["components"]["schemas"]
    titles = [schema.get("title", name) for name, schema in schemas.items()]
    assert {"AppStatusSuccess", "ImportEntry", "Problem"} <= set(schemas)
    assert len(titles) == len(set(titles))
    for name in (*schemas, *titles):
        assert re.fullmatch("[A-Z][A-Za-z]+", name)
        assert not name.endswith("Shape")


async def test_openapi_responses_may_have_more_members(app: Running) -> None:
    """Each object in a response allows additional members, without which a generated Go client rejects new ones."""
    document = await _document(app)
    schemas = document["components"]["schemas"]
    waiting = [operation["responses"] for _, _, operation in _operations(document)]
    seen: set[str] = set()
    while waiting:
        names = {part["$ref"].rpartition("/")[2] for part in _parts(waiting.pop()) if "$ref" in part} - seen
        seen |= names
        waiting += [schemas[name] for name in names]
    assert {"Problem", "Failure", "TokenAnswer", "RecordedEvent", "AppStatus"} <= seen
    assert {
        name for name in seen if "properties" in schemas[name] and not schemas[name]["additionalProperties"]
    } == set()


ENTRY = {"access_token": "opaque", "domain": HOST, "account_id": "77", "user_id": "5", "expires_in": 3600}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"account_id": 77, "user_id": 5},
    {"expires_in": None, "expires_at": time.time() + 3600},
    {"expires_in": 1.5, "expires_at": None, "owner": {"id": [1]}},
    {"refresh_token": "", "unknown": [None]},
    {"refresh_token": "def502"},
]
REFUSED: list[dict[str, Any]] = [
    {"access_token": ""},
    {"access_token": "\u00e9"},
    {"access_token": None},
    {"domain": None},
    {"domain": "a" * 254},
    {"account_id": "7 7"},
    {"account_id": True},
    {"user_id": -1},
    {"user_id": 2**63},
    {"expires_in": "3600"},
    {"expires_in": -1},
    {"expires_at": "1" * 65},
    {"refresh_token": 1},
]


@pytest.mark.parametrize("change", [*ACCEPTED, *REFUSED])
async def test_import_of_entry_is_accepted_as_documented(app: Running, change: dict[str, Any]) -> None:
    """The schema of an entry of an import accepts what the service accepts, and rejects what it rejects."""
    components = (await _document(app))["components"]
    body = {"connections": [{**ENTRY, **change}]}
    schema = {"$ref": "#/components/schemas/ImportBody", "components": components}
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(body) is (change in ACCEPTED)
    answer = await app.private("/connections/import", key=ADMIN_KEY, method="POST", json=body)
    assert (answer.status == 200) is (change in ACCEPTED), answer.text


async def test_openapi_examples_and_defaults_validate_against_schemas(app: Running) -> None:
    """Every example and default in the document validates against its schema."""
    document = await _document(app)
    seen = 0
    for name, schema in document["components"]["schemas"].items():
        validator = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
        for example in schema.get("examples", []):
            assert validator.is_valid(example), name
            seen += 1
    for part in [part for part in _parts(document) if "default" in part]:
        assert jsonschema_rs.Draft202012Validator(part).is_valid(part["default"]), part
        seen += 1
    for _, _, operation in _operations(document):
        for parameter in operation["parameters"]:
            if "example" in parameter:
                assert jsonschema_rs.Draft202012Validator(parameter["schema"]).is_valid(parameter["example"])
                seen += 1
    assert seen > 10


async def test_openapi_operations_require_documented_scope(app: Running) -> None:
    """A key without the documented scope gets 403 with the scope's name before any other check."""
    keys = {Scope.READ: TOKEN_KEY, Scope.TOKEN: READ_KEY, Scope.ADMIN: API_KEY}
    asked = 0
    for method, path, operation in _operations(await _document(app)):
        key = keys.get(operation.get("x-scope"))
        if key is not None:
            answer = await app.private(_filled_path(path), method=method, key=key)
            assert (answer.status, answer.json()["scope"]) == (403, operation["x-scope"])
            challenge = f'Bearer realm="amo-callback", error="insufficient_scope", scope="{operation["x-scope"]}"'
            assert answer.headers["WWW-Authenticate"] == challenge
            asked += 1
    assert asked > 15


async def test_private_routes_on_public_listener_are_404(app: Running) -> None:
    """A private route is 404 on the public listener with any key, and 401 without a key unless it is open."""
    asked = 0
    for method, path, operation in _operations(await _document(app)):
        if operation["tags"] != ["private"]:
            continue
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = await app.public(_filled_path(path), method=method, headers=headers)
        assert (answer.status, path) == (404, path)
        answer = await app.private(_filled_path(path), method=method, key=None)
        assert (answer.status == 401) is (operation["security"] == [{"apiKey": []}])
        asked += 1
    assert asked > 15
    assert (await app.private(f"{BASE}/callback")).status == 404


async def test_conformance_check_undocumented_response_fails(app: Running) -> None:
    """The tests' conformance check rejects an undocumented status, media type, member or code."""
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


def test_error_classes_have_code_status_action_and_deep_link_error() -> None:
    """Every error class has a code, status and action in both APIs, and a deep-link error; codes are unique."""
    statuses: dict[str, set[int]] = defaultdict(set)
    for kind in error_classes():
        statuses[kind.api_code].add(kind.http_status)
        assert kind.action
        assert kind.deep_link_error in DEEP_LINK_ERRORS
        assert kind.app_message is None or kind.code in error_actions()
    assert len(statuses) == 13
    assert statuses.pop("invalid_request") == {400, 410, 429}
    assert all(len(found) == 1 for found in statuses.values())


def test_not_yet_error_is_answered_as_its_cause() -> None:
    """`NotYet` has its cause's code, status and action and its own wait; a user's error is `amo_unavailable`."""
    for cause in (AccountBlocked, InvalidClient, ClientMismatch, StoreUnavailable, HostNotAllowed, RequestNotSent):
        error = NotYet(7.0, cause_code=cause.code)
        assert (error.api_code, error.http_status, error.action) == (cause.api_code, cause.http_status, cause.action)
        assert error.retry_after == 7.0
    for unknown in (None, "of another version", InvalidRefreshToken.code):
        assert (NotYet(1.0, cause_code=unknown).api_code, NotYet(1.0).http_status) == ("amo_unavailable", 503)


def test_conformance_check_finds_operation_by_path_template() -> None:
    """The value of a path parameter is not part of the operation's path."""
    document = {
        "paths": {"/a/{id}/b": {"get": {"operationId": "x", "tags": ["private"]}}},
        "components": {"schemas": {}},
    }
    known = Conformance(document)
    assert known.operation("private", "GET", "/a/account:1/b?c=d")["operationId"] == "x"
    assert known.operation("private", "POST", "/a/1/b") is None
    assert known.operation("public", "GET", "/a/1/b") is None
    assert known.operation("private", "GET", "/a/1/2/b") is None
