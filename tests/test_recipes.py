"""The README's recipes for backends, run against the service and AMO's stand-in."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.service import API_KEY, Running

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8081"


RECIPES = {"requests": sys.executable, "aiohttp": sys.executable, "node": "node", "php": "php"}
"""The names of recipes in the README, and their interpreters."""
SUFFIXES = {"node": ".mjs", "php": ".php"}


async def _run(app: Running, *command: str) -> str:
    """Run a command as a backend does and return its output."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "AMO_CALLBACK": f"http://{app.service.private}", "API_KEY": API_KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (0, b"")
    return out.decode()


@pytest.mark.parametrize("recipe", RECIPES)
async def test_recipe_calls_amo_and_replaces_rejected_token(app: Running, tmp_path: Path, recipe: str) -> None:
    """A recipe prints the account's id; after a 401 of AMO it gets the next token and repeats the request once."""
    program, file = RECIPES[recipe], tmp_path / f"recipe{SUFFIXES.get(recipe, '.py')}"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if recipe == "php" and b"curl" not in (await _run(app, "php", "-m")).encode():
        pytest.skip("php has no curl")
    found = re.search(rf"<!-- recipe: {recipe} -->\n```\w+\n(.*?)\n```\n", README, re.DOTALL)
    assert found is not None
    file.write_text(found[1] + "\n", encoding="utf-8")
    connection = await app.connected()
    command = [program, str(file)]
    assert await _run(app, *command) == f"{app.amo.account.id}\n"
    assert app.amo.fake.ledger.refreshes() == []
    app.amo.fake.forget((await app.private(f"/connections/{connection}/token")).json()["access_token"])
    assert await _run(app, *command) == f"{app.amo.account.id}\n"
    assert len(app.amo.fake.ledger.refreshes()) == 1
    assert await _run(app, *command) == f"{app.amo.account.id}\n"
    assert len(app.amo.fake.ledger.refreshes()) == 1


async def test_curl_examples_return_access_token(app: Running) -> None:
    """Both commands of "For backends" return the account's token as JSON."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    await app.connected()
    section = README.partition("### For backends")[2].partition("\n## ")[0]
    commands = re.findall(r"```sh\n(curl .*?)\n```", section, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert ADDRESS in command
        command_here = command.replace(ADDRESS, f"http://{app.service.private}").replace("curl ", "curl -sS ", 1)
        assert f'"account_id":"{app.amo.account.id}"' in await _run(app, "sh", "-c", command_here)
    assert app.amo.fake.ledger.refreshes() == []
