"""The adapters of the backend developer's document for libraries, run against the service and AMO's stand-in.

Python's libraries are in the extra `dev`. Node's library is looked for in the folders in `NODE_PATH`. PHP's library is
replaced by a stub, unless `AMO_CALLBACK_TEST_PHP_AUTOLOAD` names the autoload file of an installed one.
"""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.harness import AmoHosts, Ended, Gate, open_amo_hosts, open_gate, require, run_program
from tests.clients.test_backends import DOCUMENT, RECONNECT_URL
from tests.documents import blocks_of
from tests.service import Running

FOLDER = Path(__file__).parent
LIBRARIES = {
    "aioamocrm": ("amo_async.py", [sys.executable, "account.py"]),
    "amocrm-api": ("amo.py", [sys.executable, "account.py"]),
    "amocrm-js": ("amo.mjs", ["node", "--require", str(FOLDER / "amo_hosts.cjs"), "account.mjs"]),
    "amocrm-api-php": ("amo.php", ["php", "-d", "curl.cainfo=authority.pem", "account.php"]),
}
"""The recipe on which each adapter depends, and the command that runs the adapter's example."""
MODULES = {"aioamocrm": "aioamocrm", "amocrm-api": "amocrm"}


class Adapter:
    """An adapter's example in a folder, as the document describes it."""

    def __init__(self, library: str, folder: Path, *, gate: Gate, hosts: AmoHosts) -> None:
        recipe, self._command = LIBRARIES[library]
        self._folder = folder
        self._environment = {**gate.environment, **hosts.environment}
        self.gate = gate
        (folder / recipe).write_text(dict(blocks_of(DOCUMENT, "recipe"))[recipe], encoding="utf-8")
        (folder / self._command[-1]).write_text(dict(blocks_of(DOCUMENT, "adapter"))[library], encoding="utf-8")

    async def run(self) -> Ended:
        return await run_program(*self._command, environment=self._environment, folder=self._folder)

    async def account(self) -> int:
        """Run the example, and return the id of the account that it prints."""
        ended = await self.run()
        assert ended.status == 0, ended.err
        return int(ended.out)


@pytest.fixture
async def gate(app: Running) -> AsyncIterator[Gate]:
    async with open_gate(app) as opened:
        yield opened


@pytest.fixture
async def hosts(app: Running, tmp_path: Path) -> AsyncIterator[AmoHosts]:
    folder = tmp_path / "backend"
    folder.mkdir()
    async with open_amo_hosts(app, folder) as opened:
        yield opened


@pytest.fixture(params=LIBRARIES)
def adapter(request: pytest.FixtureRequest, gate: Gate, hosts: AmoHosts) -> Adapter:
    library, folder = request.param, hosts.authority.parent
    _install(library, folder)
    return Adapter(library, folder, gate=gate, hosts=hosts)


def _install(library: str, folder: Path) -> None:
    """Put the library in the folder of its example, or skip the test."""
    if library in MODULES and find_spec(MODULES[library]) is None:
        pytest.skip(f"{library} is not installed")
    if library == "amocrm-js":
        require("node")
        found = [path for path in os.environ.get("NODE_PATH", "").split(":") if (Path(path) / library).is_dir()]
        if not found:
            pytest.skip(f"{library} is not in NODE_PATH")
        (folder / "node_modules").symlink_to(found[0])
    if library == "amocrm-api-php":
        require("php")
        (folder / "vendor").mkdir()
        installed = os.environ.get("AMO_CALLBACK_TEST_PHP_AUTOLOAD")
        if installed is None:
            shutil.copy(FOLDER / "amocrm_api_php.php", folder / "vendor/autoload.php")
        else:
            (folder / "vendor/autoload.php").symlink_to(installed)


async def test_adapter_calls_amo_and_replaces_rejected_token(app: Running, adapter: Adapter) -> None:
    """A library calls AMO with the service's token; after a 401, it gets another one, and repeats the call once."""
    connection = await app.connected()
    assert await adapter.account() == app.amo.account.id
    assert set(adapter.gate.requests) == {"token 200"}
    app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
    assert await adapter.account() == app.amo.account.id
    assert adapter.gate.requests.count("refresh 200") == 1
    assert await adapter.account() == app.amo.account.id
    assert adapter.gate.requests.count("refresh 200") == 1
    assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_adapter_needs_reauth_shows_reconnect_url(app: Running, adapter: Adapter) -> None:
    """If AMO has withdrawn the access, the caller of a library gets the error with `reconnect_url`."""
    await app.connected()
    app.amo.account.disabled = True
    ended = await adapter.run()
    assert ended.status != 0
    assert f"needs_reauth: connect again at {RECONNECT_URL}" in ended.printed
    assert adapter.gate.requests[-1] == "refresh 409"


async def test_adapter_unknown_connection_is_not_found(adapter: Adapter) -> None:
    """The caller of a library gets the error with the code of an unknown connection."""
    ended = await adapter.run()
    assert ended.status != 0
    assert "not_found: There is no such connection." in ended.printed
    assert adapter.gate.requests == ["token 404"]


async def test_amocrm_js_rejected_token_with_problem_is_replaced(app: Running, gate: Gate, tmp_path: Path) -> None:
    """The adapter also replaces the token if AMO explains its 401, for which the library raises an error."""
    _install("amocrm-js", tmp_path)
    connection = await app.connected()
    app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
    async with open_amo_hosts(app, tmp_path, explains_401=True) as hosts:
        adapter = Adapter("amocrm-js", tmp_path, gate=gate, hosts=hosts)
        assert await adapter.account() == app.amo.account.id
    assert gate.requests == ["token 200", "refresh 200"]
