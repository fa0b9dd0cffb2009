"""The command line: commands, imports and exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import amo_callback
from amo_callback.cli.main import COMMANDS, cli, main

_IMPORTS = """
import sys
from amo_callback.cli.main import main

status = main(sys.argv[1:])
service = {name for name in sys.modules if name.startswith("amo_callback.")} - {
    "amo_callback.cli", "amo_callback.cli.main", "amo_callback.cli.info", "amo_callback.errors"
}
print(status, sorted(service | {"pydantic", "aiohttp", "rich", "asyncio"} & sys.modules.keys()))
"""
_SERVING = """
import gc, sys
from amo_callback.cli.main import cli
import click

cli.get_command(click.Context(cli), "serve")
print(gc.isenabled(), sorted({"jwt", "asyncpg", "amo_callback.amo.sandbox"} & sys.modules.keys()))
"""


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)  # noqa: S603 -- this program
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each listed command works."""
    assert main([name, "--help"]) == 0
    assert f"Usage: amo-callback {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["version"], ["--help", "check"]])
def test_help_and_version_import_no_service_module(arguments: list[str]) -> None:
    """Help and version import no module of the service, so that they are fast."""
    assert _run(_IMPORTS, *arguments) == "0 []"


def test_serve_imports_no_optional_module() -> None:
    """PyJWT is imported for a JWT and asyncpg for a PostgreSQL URL; garbage collection is enabled afterwards."""
    assert _run(_SERVING) == "True []"


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["serve", "--nothing"], ["connections", "freeze"], ["connections", "thaw", "1", "--all"], ["token"]],
)
def test_main_usage_error_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error names the problem and `--help`."""
    assert main(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_main_invalid_configuration_exits_78(capsys: pytest.CaptureFixture[str]) -> None:
    """Each configuration problem is one line."""
    assert main(["connections", "list"], environ={"AMO_CALLBACK_CONFIG": "/nowhere/config.toml"}) == 78
    assert capsys.readouterr().err.startswith("amo-callback: cannot read /nowhere/config.toml: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The completion script calls the command itself."""
    assert main(["completion", shell]) == 0
    assert "_AMO_CALLBACK_COMPLETE" in capsys.readouterr().out


def test_completion_imports_no_command() -> None:
    """Completion reads names and summaries from the table of commands."""
    context = click.Context(cli)
    assert [item.value for item in cli.shell_complete(context, "re")] == ["restore"]
    assert [item.value for item in cli.shell_complete(context, "--v")] == ["--version"]


def test_docs_lists_and_prints_documents(capsys: pytest.CaptureFixture[str]) -> None:
    """Each document is listed with a summary of one line and printed; an unknown name is a usage error."""
    files = {file.stem for file in (Path(amo_callback.__file__).parent / "docs").iterdir()}
    assert main(["docs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed.keys() == files | {"manual", "openapi"}
    assert all(summary.endswith(".") for summary in listed.values())
    for name in files | {"manual"}:
        assert main(["docs", name]) == 0
        assert capsys.readouterr().out.startswith("# ")
    assert main(["docs", "nothing"]) == 2
    assert "manual, mobile-app, backends, openapi" in capsys.readouterr().err


def test_docs_openapi_needs_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The OpenAPI document is printed without a configuration file or variables, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(["docs", "openapi"], environ={}) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["openapi"] == "3.1.0"
    assert {"/api/amo-crm/status", "/api/amo-crm/authorizations", "/connections/{id}/token"} <= document["paths"].keys()
    assert list(tmp_path.iterdir()) == []
