"""The key of an export: from a passphrase, typed or in a file, or another host's."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

import click

from amo_callback.errors import CommandFailed
from amo_callback.files import read_text
from amo_callback.transfer.export_file import FileKey, key_from_passphrase, key_of_host

if TYPE_CHECKING:
    from pathlib import Path

_MIN_PASSPHRASE = 12


def new_file_key(*, passphrase_file: Path | None, key_file: Path | None) -> FileKey:
    """Return the key of a new export: from a file, or a passphrase that is asked for; raises `CommandFailed`."""
    if key_file is None:
        return key_from_passphrase(_new_passphrase(passphrase_file), salt=secrets.token_bytes(16))
    try:
        return key_of_host(read_text(key_file, CommandFailed).split()[0])
    except (IndexError, ValueError):
        raise CommandFailed(f"{key_file}: holds no key as amo-callback keygen makes them") from None


def known_passphrase(file: Path | None) -> str:
    """Return the passphrase of a file, or one that is asked for; raises `CommandFailed`."""
    if file is not None:
        return read_text(file, CommandFailed).split("\n", 1)[0].rstrip("\r")
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask for the passphrase: name a --passphrase-file")
    return _ask("Passphrase")


def _new_passphrase(file: Path | None) -> str:
    passphrase = known_passphrase(file)
    if len(passphrase) < _MIN_PASSPHRASE:
        raise CommandFailed(f"the passphrase must have {_MIN_PASSPHRASE} characters or more")
    if file is None and _ask("The same again") != passphrase:
        raise CommandFailed("the two passphrases are not the same")
    return passphrase


def _ask(question: str) -> str:
    return str(click.prompt(question, hide_input=True, default="", show_default=False))
