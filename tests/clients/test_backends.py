"""The backend developer's document: its examples and its recipes, run against the service and AMO's stand-in."""

import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.harness import Ended, Gate, open_gate, require, run_program
from tests.demo.walkthrough import TOKEN_LIFE, open_walkthrough
from tests.documents import blocks_of, json_examples, openapi_paths, read_document, validate_example
from tests.service import ADMIN_KEY, API_KEY, BASE, Answer, Running
from tests.web.phone import allow

DOCUMENT = read_document("backends.md")
EXAMPLES = json_examples(DOCUMENT)
ACCOUNT = "account:31920194"
"""The connection in the document's examples."""
RECONNECT_URL = "http://127.0.0.1:8080/api/amo-crm/connect"


# --- the examples -----------------------------------------------------------------------------


def test_backends_each_json_block_is_an_example() -> None:
    """Each block of JSON names the operation that it belongs to."""
    assert len(EXAMPLES) == DOCUMENT.count("```json\n") > 8


@pytest.mark.parametrize(("operation", "part", "value"), EXAMPLES)
def test_backends_example_matches_openapi_document(operation: str, part: str, value: Any) -> None:
    """Each request and response validates against the schema of its operation in the OpenAPI document."""
    validate_example(operation, part, value)


def test_backends_names_each_route_of_a_backend() -> None:
    """Each route that a key with the default scopes can use for connections has a place in the document."""
    routes = {
        f"`{method.upper()} {path}`"
        for path, item in openapi_paths().items()
        for method, operation in item.items()
        if method != "head" and operation.get("x-scope") in {"token", "read"} and path not in {"/webhooks", "/metrics"}
    }
    assert len(routes) > 6
    assert {route for route in routes if route not in DOCUMENT} == set()


async def test_backends_responses_are_as_in_examples(app: Running) -> None:
    """The service's responses have the members and the texts of the examples."""
    answers = await _answers(app)
    for operation, part, value in EXAMPLES:
        if part != "request":
            assert _form(value) in [_form(answer) for name, answer in answers if name == f"{operation} {part}"]


async def _answers(app: Running) -> list[tuple[str, Any]]:
    """Return the responses of the service in the examples' situations."""
    found = []

    async def ask(method: str, path: str, body: object = None, *, query: str = "") -> Any:
        key = None if path == "/oauth/token" else API_KEY  # the body has the key
        answer = await app.private(path.replace("{id}", ACCOUNT) + query, key=key, method=method, json=body)
        found.append((f"{method} {path} {answer.status}", content := answer.json()))
        return content

    started = await ask("POST", "/authorizations", {"owner": "42"})
    await allow(app, started["authorize_url"])
    app.clock.advance(10)
    await ask("GET", "/connections")
    token = await ask("GET", "/connections/{id}/token")
    token = await ask("POST", "/connections/{id}/refresh", {"rejected_access_token": token["access_token"]})
    del (await ask("GET", "/events"))["items"][1:]  # the example shows only the newest
    form = {"grant_type": "refresh_token", "client_secret": API_KEY}
    for name in (ACCOUNT, "account:1"):
        await ask("POST", "/oauth/token", {**form, "refresh_token": name})
    rejected = {"rejected_access_token": token["access_token"]}
    await app.private(f"/connections/{ACCOUNT}/freeze", method="POST", key=ADMIN_KEY)
    await ask("POST", "/connections/{id}/refresh", rejected)
    await app.private(f"/connections/{ACCOUNT}/thaw", method="POST", key=ADMIN_KEY)
    app.amo.spend(grant_type="refresh_token", refresh_token=app.amo.fake.ledger.issued[-1])
    await ask("POST", "/connections/{id}/refresh", rejected)
    app.clock.advance(5000)  # a younger token is fresh for any `min_ttl`
    await ask("GET", "/connections/{id}/token", query="?min_ttl=86400")
    return found


def _form(value: Any, member: str = "") -> Any:
    """Return a response in which values that differ from one connection to the next are replaced by types."""
    if isinstance(value, dict):
        return {name: _form(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_form(one) for one in value]
    return value if member in {"code", "title", "detail", "reason", "name", "status"} else type(value).__name__


# --- the recipes ------------------------------------------------------------------------------

RECIPES = {
    "amo.py": (sys.executable, "account.py"),
    "amo_async.py": (sys.executable, "account.py"),
    "amo.mjs": ("node", "account.mjs"),
    "amo.php": ("php", "account.php"),
    "amo.go": ("go", "amo.go"),
    "amo.sh": ("sh", "account.sh"),
}
"""The program that runs each recipe, and the file that it runs: the example of use, or the recipe itself."""
TOOLS = {"amo.sh": ("curl", "jq")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A recipe in a folder, as the document describes it, and the gate through which it calls the service."""

    command: tuple[str, ...]
    folder: Path
    gate: Gate

    async def run(self) -> Ended:
        return await run_program(*self.command, environment=self.gate.environment, folder=self.folder)

    async def account(self) -> int:
        """Run the recipe, and return the id of the account that it prints, alone or in AMO's response."""
        ended = await self.run()
        assert ended.status == 0, ended.err
        printed = json.loads(ended.out)
        return int(printed if isinstance(printed, int) else printed["id"])


@pytest.fixture(scope="session")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("go")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with a short `Retry-After` for frozen connections."""
    async with run(REFRESH__RETRY_BASE="1", REFRESH__RETRY_CAP="1") as running:
        yield running


@pytest.fixture
async def gate(app: Running) -> AsyncIterator[Gate]:
    async with open_gate(app) as opened:
        yield opened


@pytest.fixture(params=RECIPES)
async def backend(request: pytest.FixtureRequest, gate: Gate, tmp_path: Path, go_cache: Path) -> Backend:
    program, file = RECIPES[request.param]
    require(program, *TOOLS.get(request.param, ()))
    folder = tmp_path / "backend"
    folder.mkdir()
    (folder / request.param).write_text(dict(blocks_of(DOCUMENT, "recipe"))[request.param], encoding="utf-8")
    if file != request.param:
        (folder / file).write_text(dict(blocks_of(DOCUMENT, "use"))[request.param], encoding="utf-8")
    if program == "php" and "curl" not in (await run_program("php", "-m", folder=folder)).out:
        pytest.skip("php has no curl")
    if program != "go":
        return Backend(command=(program, file), folder=folder, gate=gate)
    environment = {"GOCACHE": str(go_cache), "GOPATH": str(go_cache), "GO111MODULE": "off"}
    built = await run_program("go", "build", "-o", "account", file, environment=environment, folder=folder)
    assert built.status == 0, built.err
    return Backend(command=("./account",), folder=folder, gate=gate)


async def test_recipe_calls_amo_and_replaces_rejected_token(app: Running, backend: Backend) -> None:
    """A recipe calls AMO with the service's token; after a 401, it gets another one, and repeats the call once."""
    connection = await app.connected()
    assert await backend.account() == app.amo.account.id
    assert backend.gate.requests == ["token 200"]
    app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
    assert await backend.account() == app.amo.account.id
    assert backend.gate.requests[1:] == ["token 200", "refresh 200"]
    assert await backend.account() == app.amo.account.id
    assert backend.gate.requests[3:] == ["token 200"]
    assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_recipe_connection_thawed_while_recipe_waits_is_used(app: Running, backend: Backend) -> None:
    """After 503 `frozen`, a recipe waits for `Retry-After` and repeats its request."""
    await _freeze(app, await app.connected())

    async def thaw(answer: Answer) -> None:
        if answer.status == 503:
            assert answer.headers["Retry-After"] == "1"
            await app.private(f"/connections/{ACCOUNT}/thaw", method="POST", key=ADMIN_KEY)

    backend.gate.before_answer = thaw
    assert await backend.account() == app.amo.account.id
    assert backend.gate.requests == ["token 503", "token 200", "refresh 200"]


async def test_recipe_waits_once(app: Running, backend: Backend) -> None:
    """If the connection is still frozen after `Retry-After`, a recipe raises an error with the code."""
    await _freeze(app, await app.connected())
    ended = await backend.run()
    assert ended.status != 0
    assert "frozen: The connection is frozen" in ended.printed
    assert backend.gate.requests == ["token 503", "token 503"]


async def test_recipe_raises_at_once_if_wait_is_long(app: Running, backend: Backend) -> None:
    """If `Retry-After` is longer than half a minute, a recipe raises an error with the code and does not wait."""
    await _freeze(app, await app.connected())
    backend.gate.retry_after = "31"
    ended = await backend.run()
    assert ended.status != 0
    assert "frozen: The connection is frozen" in ended.printed
    assert backend.gate.requests == ["token 503"]


async def _freeze(app: Running, connection: str) -> None:
    """Freeze a connection whose access token AMO rejects."""
    app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
    await app.private(f"/connections/{connection}/freeze", method="POST", key=ADMIN_KEY)


async def test_recipe_needs_reauth_shows_reconnect_url(app: Running, backend: Backend) -> None:
    """If AMO has withdrawn the access, a recipe raises an error with the URL at which the user connects again."""
    await app.connected()
    app.amo.account.disabled = True
    ended = await backend.run()
    assert ended.status != 0
    assert f"needs_reauth: connect again at {RECONNECT_URL}" in ended.printed
    assert backend.gate.requests == ["token 200", "refresh 409"]


async def test_recipe_unknown_connection_is_not_found(backend: Backend) -> None:
    """A recipe raises an error with the code of an unknown connection, and does not repeat the request."""
    ended = await backend.run()
    assert ended.status != 0
    assert "not_found: There is no such connection." in ended.printed
    assert backend.gate.requests == ["token 404"]


async def test_recipe_errors_contain_no_secret(app: Running, backend: Backend) -> None:
    """The output of a recipe that fails contains neither the API key nor the access token."""
    connection = await app.connected()
    token = (await app.private(f"/connections/{connection}/token")).json()["access_token"]
    app.amo.account.disabled = True
    ended = await backend.run()
    assert API_KEY not in ended.printed
    assert token[:50] not in ended.printed


# --- the commands -----------------------------------------------------------------------------


async def test_curl_examples_return_access_token(app: Running, gate: Gate, tmp_path: Path) -> None:
    """The commands of the document return the account's token as JSON."""
    require("curl")
    await app.connected()
    commands = [text for name, text in blocks_of(DOCUMENT, "shell") if name.startswith("token")]
    assert len(commands) == 2
    for command in commands:
        here = command.replace("/run/amo-callback/private.sock", gate.environment["SOCKET"])
        ended = await run_program("sh", "-c", here, environment=gate.environment, folder=tmp_path)
        assert f'"account_id":"{app.amo.account.id}"' in ended.out, ended.err
    command = dict(blocks_of(DOCUMENT, "shell"))["oauth"]
    ended = await run_program("sh", "-c", command, environment=gate.environment, folder=tmp_path)
    assert '"refresh_token": "account:31920194"' in ended.out, ended.err
    assert gate.requests == ["token 200"] * 3


async def test_demo_shows_situations_of_document(tmp_path: Path) -> None:
    """The commands of the document connect an account in the demo; freezing it and a lost response give the errors."""
    require("curl", "jq")
    commands = dict(blocks_of(DOCUMENT, "shell"))
    async with open_walkthrough() as show:
        exported = dict(part.split("=", 1) for part in show.demo.backend.removeprefix("export ").split())
        assert exported.keys() == {"AMO_CALLBACK", "API_KEY"}
        connect = f"{show.demo.backend}\n{commands['connect']}{commands['token']}"
        assert f'"account_id":"{ACCOUNT[8:]}"' in (await run_program("sh", "-ec", connect, folder=tmp_path)).out
        [one] = (await show.until(lambda snapshot: bool(snapshot.connections))).connections
        assert one.owners == ["42"]

        async def ask(method: str, last: str) -> tuple[int, dict[str, Any], str | None]:
            url = f"{exported['AMO_CALLBACK']}/connections/{ACCOUNT}/{last}"
            headers = {"Authorization": f"Bearer {exported['API_KEY']}"}
            async with show.http.request(method, url, headers=headers) as answer:
                return answer.status, await answer.json(content_type=None), answer.headers.get("Retry-After")

        await ask("POST", "freeze")
        show.clock.advance(TOKEN_LIFE)
        status, problem, wait = await ask("GET", "token")
        assert (status, problem["code"], wait) == (503, "frozen", "10")
        await ask("POST", "thaw")
        assert (await ask("GET", "token"))[0] == 200
        show.clock.advance(11)  # a new pair is not refreshed on demand
        assert await show.attempt("lost", one.id) == 204
        show.pass_lease()
        await show.until(lambda snapshot: snapshot.connections[0].status == "needs_reauth")
        show.clock.advance(TOKEN_LIFE)
        status, problem, _ = await ask("GET", "token")
        assert (status, problem["code"]) == (409, "needs_reauth")
        assert problem["reconnect_url"] == f"http://{show.addresses.proxy}{BASE}/connect"
