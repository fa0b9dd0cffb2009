"""`amo-callback`: the command."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, TextIO, cast

from amo_callback import __version__
from amo_callback.errors import AmoCallbackError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

EX_CONFIG = 78
"""sysexits.h: something was found in an unconfigured or misconfigured state."""
STATUSES = {
    0: "done",
    1: "failed, or `check` found what fails",
    2: "the command line is not understood",
    EX_CONFIG: "the configuration cannot be used",
    130: "interrupted",
}
"""What each exit status means."""


COMMANDS = {
    "serve": ("serve",),
    "demo": ("demo",),
    "init": ("init",),
    "check": ("check",),
    "connections": ("connections", "token", "events"),
    "notices": ("notices",),
    "copies": ("backup", "restore"),
    "keys": ("rotate-keys",),
    "systemd": ("systemd",),
}
"""Each module's commands. Only the module that is asked for is loaded: most take longer to load than to run."""
_LAST_STANDARD = 2
_SMALL = ("keygen", "version")
"""Those that need no module of their own."""


def command() -> int:
    """Run the command as the process itself: `serve` ends it without waiting for its threads."""
    return main(leave=os._exit)


def main(arguments: Sequence[str] | None = None, *, leave: Callable[[int], object] | None = None) -> int:
    """Run the command and return its exit status, one of `STATUSES`.

    `serve` calls `leave` with the status when all is closed.
    """
    _open_what_is_closed()
    words = sys.argv[1:] if arguments is None else arguments
    options = make_parser(words[0] if words else None).parse_args(words)
    if leave is not None:
        options.leave = leave
    try:
        return int(options.run(options, os.environ))
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"amo-callback: {problem}", file=sys.stderr)
        return EX_CONFIG
    except AmoCallbackError as error:
        told = ", ".join(f"{name}: {value}" for name, value in error.fields.items() if name != "error")
        print(f"amo-callback: {error} {f'({told})' if told else ''}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _open_what_is_closed() -> None:
    """Open the null device in the place of standard streams that are closed: else the next file takes their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(number, True)  # noqa: FBT003 -- because it takes no names
    os.close(number)
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: str) -> TextIO:
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123 -- because it stays open


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Make the parser of one command, or of all where it is none of those with a module of its own."""
    parser = argparse.ArgumentParser(
        prog="amo-callback",
        description="Bring people back to the mobile app from amoCRM / Kommo OAuth, and keep their tokens alive.",
        epilog="Exit status: " + "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items()) + ".",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    modules = [name for name, own in COMMANDS.items() if command in own]
    for module in modules or (() if command in _SMALL else COMMANDS):
        _load(module).add_to(commands)
    keygen = commands.add_parser("keygen", help="print a new encryption key")
    keygen.set_defaults(run=_keygen)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    return parser


def _load(module: str) -> ModuleType:
    """Import a command's module; to look for garbage in it meanwhile takes longer, and finds next to none."""
    gc.disable()
    try:
        return import_module(f"amo_callback.cli.{module}")
    finally:
        gc.enable()


def _keygen(_options: argparse.Namespace, _environ: object) -> int:
    from amo_callback.cipher import new_key  # noqa: PLC0415 -- because only this needs it

    print(new_key())
    return 0


def _version(_options: argparse.Namespace, _environ: object) -> int:
    print(f"amo-callback {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(command())
