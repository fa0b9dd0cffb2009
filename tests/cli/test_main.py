"""The command line: its commands, what they import, and its exit statuses."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

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
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)  # noqa: S603 -- because it is our own
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_of_the_table_is_in_its_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command works."""
    assert main([name, "--help"]) == 0
    assert f"Usage: amo-callback {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["version"], ["--help", "check"]])
def test_help_and_version_import_nothing_of_the_service(arguments: list[str]) -> None:
    """They answer at once."""
    assert _run(_IMPORTS, *arguments) == "0 []"


def test_serve_imports_nothing_that_few_need() -> None:
    """PyJWT waits for a JWT, asyncpg for a PostgreSQL address; garbage collection is on again afterwards."""
    assert _run(_SERVING) == "True []"


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["serve", "--nothing"], ["connections", "freeze"], ["connections", "thaw", "1", "--all"], ["token"]],
)
def test_a_command_line_that_is_not_understood_exits_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names what is wrong, and how to get help."""
    assert main(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_used_exits_78(capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem is a line."""
    assert main(["connections", "list"], environ={"AMO_CALLBACK_CONFIG": "/nowhere/config.toml"}) == 78
    assert capsys.readouterr().err.startswith("amo-callback: /nowhere/config.toml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script asks the command itself."""
    assert main(["completion", shell]) == 0
    assert "_AMO_CALLBACK_COMPLETE" in capsys.readouterr().out


def test_commands_are_completed_without_importing_them() -> None:
    """Names and summaries come from the table."""
    context = click.Context(cli)
    assert [item.value for item in cli.shell_complete(context, "re")] == ["restore"]
    assert [item.value for item in cli.shell_complete(context, "--v")] == ["--version"]


def test_documents_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The manual is the README; an unknown name is a usage error that names them all."""
    assert main(["docs"]) == 0
    assert capsys.readouterr().out.split() == ["glossary", "manual", "security"]
    for name, title in (("security", "# Security"), ("manual", "# amo-callback")):
        assert main(["docs", name]) == 0
        assert title in capsys.readouterr().out
    assert main(["docs", "nothing"]) == 2
    assert "glossary, manual, security" in capsys.readouterr().err
