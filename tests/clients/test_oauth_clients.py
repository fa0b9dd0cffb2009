"""Standard OAuth clients, run against the service's token endpoint and AMO's stand-in.

Each snippet of the document defines a function that calls AMO. A test runs it in a process of its own, with a driver
that calls AMO once for each line of its input. Python's libraries are in the extra `dev`. simple-oauth2 is looked for
in the folders in `NODE_PATH`, and golang.org/x/oauth2 in `GOPATH`, by default in Debian's folder.
`AMO_CALLBACK_TEST_PHP_AUTOLOAD` names a file that loads league/oauth2-client.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documents import blocks_of, read_document
from tests.service import ADMIN_KEY, API_KEY, Running

FOLDER = Path(__file__).parent / "oauth"
SNIPPETS = dict(blocks_of(read_document("backends.md"), "oauth"))
WRONG_KEY = "wrong-key-" + "x" * 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """A running client, which calls AMO's `/api/v4/account` on demand."""

    process: asyncio.subprocess.Process

    async def call(self) -> str:
        """Call AMO, and return the account's id, or the error's name, code and description."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        await self.process.stdin.drain()
        return (await self.process.stdout.readline()).decode().strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A library's snippet and its driver in a folder."""

    library: str
    folder: Path
    command: list[str]

    @asynccontextmanager
    async def start(self, app: Running, connection: str, *, key: str = API_KEY) -> AsyncIterator[Client]:
        process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "AMO_CALLBACK": f"http://{app.service.private}",
                "API_KEY": key,
                "CONNECTION": connection,
                "OAUTHLIB_INSECURE_TRANSPORT": "1",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield Client(process=process)
            await process.communicate(b"")  # closes stdin, also in Python 3.11
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0


def _python(*errors: str) -> list[str]:
    return [sys.executable, "driver.py", *errors]


def _node(folder: Path) -> list[str]:
    _require("node")
    found = [path for path in os.environ.get("NODE_PATH", "").split(":") if (Path(path) / "simple-oauth2").is_dir()]
    if not found:
        pytest.skip("simple-oauth2 is not in NODE_PATH")
    (folder / "node_modules").symlink_to(found[0])
    return ["node", "driver.js"]


def _go(folder: Path) -> list[str]:
    _require("go")
    path = os.environ.get("GOPATH", "/usr/share/gocode")
    environ = {
        "PATH": os.environ["PATH"],
        "GO111MODULE": "off",
        "GOPATH": path,
        "GOCACHE": os.environ.get("GOCACHE", str(folder / "cache")),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["go", *arguments]
        return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 -- because it is ours

    if run("list", "golang.org/x/oauth2").returncode != 0:
        pytest.skip(f"golang.org/x/oauth2 is not in {path}")
    built = run("build", "-o", "client", "driver.go", "snippet.go")
    assert built.returncode == 0, built.stderr
    return [str(folder / "client")]


def _php(folder: Path) -> list[str]:
    _require("php")
    autoload = os.environ.get("AMO_CALLBACK_TEST_PHP_AUTOLOAD")
    if autoload is None:
        pytest.skip("league/oauth2-client is not installed: AMO_CALLBACK_TEST_PHP_AUTOLOAD is not set")
    (folder / "vendor").mkdir()
    (folder / "vendor/autoload.php").symlink_to(autoload)
    return ["php", "driver.php"]


def _require(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


_AUTHLIB = "authlib.integrations.base_client.OAuthError"
LIBRARIES: dict[str, tuple[str, Any]] = {
    "authlib": ("py", lambda _: _python(_AUTHLIB, "requests.HTTPError")),
    "authlib-async": ("py", lambda _: _python(_AUTHLIB, "httpx.HTTPStatusError", "httpx2.HTTPStatusError")),
    "requests-oauthlib": ("py", lambda _: _python("oauthlib.oauth2.OAuth2Error")),
    "simple-oauth2": ("js", _node),
    "x-oauth2": ("go", _go),
    "league": ("php", _php),
}
"""The suffix of each library's snippet, and the function that returns the command to run it."""

ERRORS = {
    "authlib": ("OAuthError", "OAuthError", "HTTPError"),
    "authlib-async": ("OAuthError", "OAuthError", "HTTPStatusError"),
    "requests-oauthlib": ("InvalidGrantError", "InvalidClientError", "TemporarilyUnavailableError"),
    "simple-oauth2": ("Boom",) * 3,
    "x-oauth2": ("RetrieveError",) * 3,
    "league": ("IdentityProviderException",) * 3,
}
"""Each library's errors for `invalid_grant`, `invalid_client` and `temporarily_unavailable`."""


@pytest.fixture(scope="module", params=LIBRARIES)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    library, folder = request.param, tmp_path_factory.mktemp(request.param)
    suffix, prepare = LIBRARIES[library]
    (folder / f"snippet.{suffix}").write_text(SNIPPETS[library], encoding="utf-8")
    shutil.copy(FOLDER / f"driver.{suffix}", folder)
    return Program(library=library, folder=folder, command=prepare(folder))


def _token_requests(app: Running) -> int:
    return len([line for line in app.lines() if line["event"] == "http.request" and line["route"] == "/oauth/token"])


async def test_client_with_connection_name_calls_amo(app: Running, program: Program) -> None:
    """A client that has only the connection's name requests a token, calls AMO, and keeps the token."""
    await app.connected()
    async with program.start(app, f"account:{app.amo.account.id}") as client:
        assert await client.call() == str(app.amo.account.id)
        assert await client.call() == str(app.amo.account.id)
    assert _token_requests(app) == 1
    assert app.amo.fake.ledger.refreshes() == []


async def test_client_replaces_rejected_token(app: Running, program: Program) -> None:
    """After a 401 of AMO, the client's next token request causes one refresh, and the client repeats its call."""
    connection = await app.connected()
    async with program.start(app, connection) as client:
        assert await client.call() == str(app.amo.account.id)
        app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
        app.clock.advance(61)
        assert await client.call() == str(app.amo.account.id)
        assert await client.call() == str(app.amo.account.id)
    assert _token_requests(app) == 2
    assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_client_of_unknown_connection_raises_invalid_grant(app: Running, program: Program) -> None:
    """A client raises its own error, whose description has the URL at which the user connects."""
    await app.connected()
    async with program.start(app, "account:1") as client:
        name, code, description = (await client.call()).split(" ", 2)
    assert (name, code) == (ERRORS[program.library][0], "invalid_grant")
    assert app.settings.amo.connect_url in description


async def test_client_with_wrong_key_raises_invalid_client(app: Running, program: Program) -> None:
    """A client with a wrong API key raises its own error."""
    connection = await app.connected()
    async with program.start(app, connection, key=WRONG_KEY) as client:
        name, code, _ = (await client.call()).split(" ", 2)
    assert (name, code) == (ERRORS[program.library][1], "invalid_client")


async def test_client_recovers_after_temporarily_unavailable(run: Any, program: Program) -> None:
    """A client raises an error while there is no token, and gets one when the cause has passed."""
    async with run(lifetimes={"access": 1000}) as app:
        connection = await app.connected()
        await app.private("/freeze", method="POST", key=ADMIN_KEY)
        app.clock.advance(1000)
        async with program.start(app, connection) as client:
            name, code, _ = (await client.call()).split(" ", 2)
            assert (name, code) == (ERRORS[program.library][2], "temporarily_unavailable")
            await app.private("/thaw", method="POST", key=ADMIN_KEY)
            assert await client.call() == str(app.amo.account.id)
