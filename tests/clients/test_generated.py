"""Clients that generators make from `GET /openapi.json`, used against the running service."""

import importlib.util
import json
import os
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from amo_callback.clock import rfc3339
from tests.clients.harness import Ended, require, run_program
from tests.service import ADMIN_KEY, Running

PROGRAMS = Path(__file__).parent / "programs"
"""The programs that use the clients; each prints its results as one JSON object."""
GENERATORS = {"python": (), "typescript-fetch": ("npm", "node"), "go": ("go",), "php": ("php",)}
"""Generators of OpenAPI Generator, and the tools that their clients need."""
GUZZLE = Path("/usr/share/php/GuzzleHttp/autoload.php")
"""The library of the PHP client, from Debian's package `php-guzzlehttp-guzzle`."""


@pytest.fixture
def openapi_generator(request: pytest.FixtureRequest) -> Path:
    """Return the file of OpenAPI Generator, which the package `openapi-generator-cli` contains."""
    if not request.config.getoption("openapi_generator"):
        pytest.skip("not requested: use --openapi-generator")
    package = importlib.util.find_spec("openapi_generator_cli")
    if package is None or package.origin is None:
        pytest.skip("openapi-generator-cli is not installed")
    return Path(package.origin).with_name("openapi-generator.jar")


async def test_client_of_openapi_python_client_calls_service(app: Running, tmp_path: Path) -> None:
    """The client lists, takes, refreshes and imports, and parses problem details."""
    (tmp_path / "config.json").write_text('{"post_hooks": []}', encoding="utf-8")
    generate = ["openapi_python_client", "generate", "--meta", "none", "--fail-on-warning", "--config", "config.json"]
    await _run(
        tmp_path,
        *[sys.executable, "-m", *generate, "--path", await _document(app, tmp_path)],
        *["--output-path", "client/generated"],
    )
    await _check(app, tmp_path, sys.executable, str(PROGRAMS / "openapi_python_client.py"))


@pytest.mark.parametrize("generator", GENERATORS)
async def test_client_of_openapi_generator_calls_service(
    app: Running, tmp_path: Path, generator: str, openapi_generator: Path
) -> None:
    """OpenAPI Generator reports no error in the document, and its client does the same."""
    require("java", *GENERATORS[generator])
    options = ["--package-name=generated", "--global-property=apiTests=false,modelTests=false"]
    generated = await _run(
        tmp_path,
        *["java", "-jar", str(openapi_generator), "generate", "-i", await _document(app, tmp_path)],
        *["-g", generator, "-o", "client", *options],
    )
    assert "ERROR" not in generated.printed
    await _check(app, tmp_path, *await _build(generator, tmp_path))


async def _build(generator: str, folder: Path) -> list[str]:
    """Build a client of OpenAPI Generator, and return the command of the program that uses it."""
    if generator == "python":
        await _install(
            folder, sys.executable, "-m", "pip", "install", "-r", "client/requirements.txt", "-t", "packages"
        )
        return [sys.executable, str(PROGRAMS / "python.py")]
    if generator == "typescript-fetch":
        shutil.copy(PROGRAMS / "main.ts", folder)
        await _install(folder, "npm", "install", "typescript@5")
        options = ["--strict", "--target", "es2022", "--lib", "es2022,dom", "--module", "commonjs"]
        await _run(folder, "node_modules/.bin/tsc", *options, "--outDir", "built", "main.ts")
        return ["node", "built/main.js"]
    if generator == "go":
        (folder / "client/program").mkdir()
        shutil.copy(PROGRAMS / "main.go", folder / "client/program")
        await _run(folder / "client", "go", "build", "-o", "built", "./program")
        return ["client/built"]
    if not GUZZLE.exists():
        pytest.skip("php-guzzlehttp-guzzle is not installed")
    shutil.copy(PROGRAMS / "main.php", folder)
    return ["php", "main.php"]


async def _document(app: Running, folder: Path) -> str:
    """Save the OpenAPI document of the service, and return the name of the file."""
    (folder / "openapi.json").write_text((await app.private("/openapi.json", key=ADMIN_KEY)).text, encoding="utf-8")
    return "openapi.json"


async def _check(app: Running, folder: Path, *command: str) -> None:
    """Run the program of a client, and check its results."""
    connection = await app.connected()
    before = (await app.private(f"/connections/{connection}/token")).json()
    ended = await _run(
        folder,
        *command,
        AMO_CALLBACK=f"http://{app.service.private}",
        API_KEY=ADMIN_KEY,
        EXPIRES_AT=rfc3339(app.clock.now() + timedelta(days=1)),
        PYTHONPATH=os.pathsep.join([str(folder / "client"), str(folder / "packages")]),
    )
    results = json.loads(ended.out)
    after = (await app.private(f"/connections/{connection}/token")).json()
    assert before["access_token"] != after["access_token"]
    assert len(app.amo.fake.ledger.refreshes()) == 1
    authorize_url = parse_qs(urlsplit(results.pop("authorize_url")).query)
    assert authorize_url["client_id"] == [app.amo.fake.integration.client_id]
    lifetime = datetime.fromisoformat(before["expires_at"]) - datetime.fromisoformat(before["issued_at"])
    assert results == {
        "listed": [connection],
        "token": before["access_token"],
        "lifetime": lifetime.total_seconds(),
        "refreshed": after["access_token"],
        "authorization": [204, f"Bearer {after['access_token']}"],
        "issued": after["access_token"],
        "unknown": [404, 404, "not_found"],
        "imported": 1,
        "needs_reauth": [409, "needs_reauth", "missing"],
    }
    [imported] = (await app.private("/connections?account_id=77")).json()["items"]
    assert (imported["user_id"], imported["domain"], imported["refresh_expires_at"]) == ("5", "second.amocrm.ru", None)


async def _install(folder: Path, *command: str) -> None:
    """Install what a client needs; skip the test if the package index cannot be reached."""
    try:
        await _run(folder, *command)
    except AssertionError as error:
        pytest.skip(f"{command[0]} cannot install: {error}")


async def _run(folder: Path, *command: str, **environment: str) -> Ended:
    """Run a command in a folder; fails if its exit status is not 0."""
    ended = await run_program(*command, folder=folder, environment={**os.environ, **environment})
    assert ended.status == 0, ended.printed
    return ended
