"""The `amo-callback` command: its subcommands and exit statuses."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TextIO, cast

import click
from click.shell_completion import CompletionItem

from amo_callback import __version__
from amo_callback.errors import AmoCallbackError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EX_CONFIG = 78
"""The exit status for a configuration error (sysexits.h)."""
STATUSES = {
    0: "success",
    1: "an error, a failed check, or a declined confirmation",
    2: "invalid command line",
    EX_CONFIG: "unusable configuration",
    130: "interrupted",
}
"""The meaning of each exit status."""
COMMANDS = {
    "serve": ("serve", "Run the service."),
    "demo": ("demo", "Try the OAuth flow on this machine, with a stand-in for amoCRM; no configuration is required."),
    "init": ("init", "Write a configuration file: ask for the required values and generate keys."),
    "status": ("connections", "Show the readiness checks of the running service."),
    "check": ("check", "Check the installation; print each finding, and a fix for each problem."),
    "config": ("check", "Check the configuration, or print its reference or JSON Schema."),
    "connections": ("connections", "List, show, refresh, disconnect, freeze, thaw, export and import connections."),
    "token": ("connections", "Print an access token; refresh it first if it expires soon."),
    "events": ("connections", "Show the event history, with fingerprints of the presented tokens."),
    "webhooks": ("connections", "List undelivered webhooks, or retry them."),
    "rotate-keys": ("rotate_keys", "Re-encrypt stored records with the newest key, without stopping the service."),
    "keygen": ("rotate_keys", "Print a new encryption key."),
    "backup": ("backup", "Copy the SQLite database to a file, without stopping the service."),
    "restore": ("backup", "Replace the SQLite database with a backup; the restored database is frozen."),
    "systemd": ("systemd", "Install or uninstall the systemd service, or print its files."),
    "docs": ("info", "Print the manual or another document."),
    "completion": ("info", "Print a shell completion script."),
    "version": ("info", "Print the version."),
}
"""The module and summary of each command.

A module is imported only when one of its commands is used, because importing all modules would slow down every command.
"""
_LAST_STANDARD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """The environment variables and the exit function of a command."""

    environ: Mapping[str, str]
    leave: Callable[[int], object]
    """Called by `serve` with the exit status, to end the process."""


class _LazyGroup(click.Group):
    """A group that imports each command of `COMMANDS` on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            if not ctx.resilient_parsing:
                ctx.fail(f"unknown command {cmd_name}: choose one of {', '.join(COMMANDS)}")
            return None
        module, summary = COMMANDS[cmd_name]
        gc.disable()  # imports create little garbage, and collecting it would take longer than the import
        try:
            found: click.Command = getattr(import_module(f"amo_callback.cli.{module}"), cmd_name.replace("-", "_"))
        finally:
            gc.enable()
        found.help = found.help or summary
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=summary) for name, (_, summary) in COMMANDS.items() if name.startswith(incomplete)
        ]


@click.group(
    cls=_LazyGroup,
    help="Return users to the mobile app after amoCRM / Kommo OAuth, and store and refresh their tokens.",
    epilog="Exit status: " + "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items()) + ".",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, message="amo-callback %(version)s")
def cli() -> None: ...


def command() -> int:
    """Run the command as the entry point of the process; `serve` ends the process without waiting for its threads."""
    return main(leave=os._exit)


def main(
    arguments: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    leave: Callable[[int], object] = lambda _status: None,
) -> int:
    """Run the command and return its exit status, one of `STATUSES`."""
    _open_standard_streams()
    invocation = Invocation(environ=environ, leave=leave)
    try:
        return int(cli.main(arguments, prog_name="amo-callback", obj=invocation, standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except ConfigurationError as error:
        for problem in error.problems:
            click.echo(f"amo-callback: {problem}", err=True)
        return EX_CONFIG
    except AmoCallbackError as error:
        fields = ", ".join(f"{name}: {value}" for name, value in error.fields.items() if name != "error")
        click.echo(f"amo-callback: {error} {f'({fields})' if fields else ''}".rstrip(), err=True)
        return 1


def _open_standard_streams() -> None:
    """Open the null device for each closed standard stream; otherwise, another file would get its descriptor."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(number, True)  # noqa: FBT003 -- takes no keyword arguments
    os.close(number)
    sys.stdin = sys.stdin or _open_null("r")
    sys.stdout = sys.stdout or _open_null("w")
    sys.stderr = sys.stderr or _open_null("w")


def _open_null(mode: str) -> TextIO:
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123 -- `os.devnull` is a string


if __name__ == "__main__":
    sys.exit(command())
