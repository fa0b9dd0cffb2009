"""`amo-callback`: the command."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from amo_callback import __version__
from amo_callback.cli import check, connections, copies, demo, keys, notices, serve, systemd
from amo_callback.errors import AmoCallbackError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

EX_CONFIG = 78
"""sysexits.h: something was found in an unconfigured or misconfigured state."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 good, 1 failed, 2 usage, 78 configuration."""
    options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amo-callback",
        description="Bring people back to the mobile app from amoCRM / Kommo OAuth, and keep their tokens alive.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add_to(commands)
    demo.add_to(commands)
    check.add_to(commands)
    connections.add_to(commands)
    notices.add_to(commands)
    copies.add_to(commands)
    keys.add_to(commands)
    systemd.add_to(commands)
    keygen = commands.add_parser("keygen", help="print a new encryption key")
    keygen.set_defaults(run=_keygen)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    return parser


def _keygen(_options: argparse.Namespace, _environ: object) -> int:
    from amo_callback.cipher import new_key  # noqa: PLC0415 -- because only this needs it

    print(new_key())
    return 0


def _version(_options: argparse.Namespace, _environ: object) -> int:
    print(f"amo-callback {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
