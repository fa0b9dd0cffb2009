"""The command's commands."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from amo_callback.cli.main import COMMANDS, make_parser


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    [group] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001 -- because argparse tells it nowhere else
    return list(group.choices)


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_loads_the_module_that_it_is_in(module: str) -> None:
    """Each module brings the commands that the table says, and no other."""
    for command in COMMANDS[module]:
        assert _commands(make_parser(command)) == [*COMMANDS[module], "keygen", "version"]


@pytest.mark.parametrize("command", [None, "--help", "unknown"])
def test_whoever_asks_for_none_is_shown_all(command: str | None) -> None:
    """Help, a mistake, and nothing at all."""
    assert _commands(make_parser(command)) == [*(one for own in COMMANDS.values() for one in own), "keygen", "version"]


def test_a_small_command_loads_nothing() -> None:
    """`version` answers at once."""
    assert _commands(make_parser("version")) == ["keygen", "version"]


_ASK = """
import gc, sys
from amo_callback.cli.main import make_parser

make_parser("serve")
print(gc.isenabled(), sorted({"jwt", "asyncpg", "amo_callback.amo.sandbox"} & sys.modules.keys()))
"""


def test_serving_loads_nothing_that_few_need() -> None:
    """PyJWT waits for somebody's JWT, asyncpg for a PostgreSQL address; and garbage is looked for again afterwards."""
    told = subprocess.run([sys.executable, "-c", _ASK], check=True, capture_output=True, text=True)  # noqa: S603 -- because it is our own
    assert told.stdout == "True []\n"
