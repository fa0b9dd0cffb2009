"""The files of a new configuration: one file with all settings or, with --systemd, also one file per secret."""

from __future__ import annotations

import os
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

import click

from amo_callback.config.database_url import SQLITE, is_postgres
from amo_callback.config.template import InitialConfig, InitialSecrets, write_config
from amo_callback.crypto import new_key
from amo_callback.errors import CommandFailed
from amo_callback.files import write_file
from amo_callback.store import database_file

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

STATE = "/var/lib/amo-callback"
"""The only folder to which the service can write under systemd."""
CLIENT_SECRET = "amo.client_secret"  # noqa: S105 -- the setting's name
ENCRYPTION_KEYS = "storage.encryption_keys"
CALLBACK = "/callback"
_FOLDER = "credentials"


@dataclass(frozen=True, kw_only=True, slots=True)
class Callback:
    """The redirect URI and the base path of the service."""

    redirect_uri: str
    base_path: str

    @property
    def hook(self) -> str:
        """The URL of AMO's "integration disabled" hook."""
        return f"{self.redirect_uri.removesuffix(CALLBACK)}/hooks/disconnect"


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallPaths:
    """The paths that `init` writes: the configuration file and, with --systemd, a folder of secrets."""

    config: Path
    systemd: bool

    @property
    def credentials(self) -> Path:
        return self.config.parent / _FOLDER

    @property
    def database(self) -> str:
        return f"{SQLITE}{STATE}/amo-callback.db" if self.systemd else f"{SQLITE}amo-callback.db"

    def has(self, name: str) -> bool:
        """Return whether a secret has a file of its own that is not empty."""
        file = self.credentials / name
        return self.systemd and file.is_file() and file.stat().st_size > 0

    def decide(self, callback: Callback, *, client_id: str, deep_link: str, database: str) -> InitialConfig:
        return InitialConfig(
            client_id=client_id,
            redirect_uri=callback.redirect_uri,
            base_path=callback.base_path,
            deep_link=deep_link,
            database=database,
            rescue=f"{STATE}/rescue" if self.systemd and is_postgres(database) else None,
            secrets_folder=_FOLDER if self.systemd else None,
        )


def preflight(paths: InstallPaths, database: str) -> None:
    """Check the paths before `init` asks for values.

    Raises `click.UsageError` if the service could not write to the database under systemd. Raises `CommandFailed` if
    the configuration file cannot be created, or if the database exists but its key is missing.
    """
    below = f"{SQLITE}{STATE}/"
    if paths.systemd and not is_postgres(database) and not database.startswith(below):
        raise click.UsageError(
            f"--database must begin with {below}: under systemd, the service can write only to {STATE}"
        )
    config = paths.config
    if config.exists() or config.is_symlink():
        raise CommandFailed(
            f"{config} already exists and may contain the only copy of an encryption key: edit it, move it away, or "
            "choose another file with --config"
        )
    folder = next(folder for folder in config.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandFailed(
            f"{folder} is not writable: run the command as another user, or choose another file with --config"
        )
    there = database_file(database, folder=config.parent)
    if there is not None and there.exists() and not paths.has(ENCRYPTION_KEYS):
        raise CommandFailed(
            f"the database {there} exists, and a new encryption key cannot decrypt it: restore the configuration that "
            "contains its key, or choose another database with --database"
        )


def write(paths: InstallPaths, decided: InitialConfig, client_secret: str | None) -> Sequence[str]:
    """Write all files, the configuration last; return a message for each file."""
    if not paths.config.parent.exists():
        paths.config.parent.mkdir(parents=True)
        if paths.systemd:
            paths.config.parent.chmod(0o755)  # the service's user must be able to open files in it
    if paths.systemd:
        made = _write_secrets(paths, client_secret)
        write_file(paths.config, write_config(decided, None), mode=0o644)
        return [*made, f"{paths.config}: written, without secrets"]
    secrets = InitialSecrets(encryption_key=new_key(), api_keys=_new_api_key(), client_secret=client_secret)
    write_file(paths.config, write_config(decided, secrets), mode=0o600)
    return [f"{paths.config}: written, readable only by you (0600), with new encryption and API keys"]


def _write_secrets(paths: InstallPaths, client_secret: str | None) -> Sequence[str]:
    folder = paths.credentials
    make_private(folder)
    kept = [name for name in _MADE if paths.has(name)]
    lines = [*(f"{folder / name}: kept, because it already existed" for name in kept), *make_keys(folder, given=kept)]
    if client_secret is not None:
        lines.append(f"{folder / CLIENT_SECRET}: {'replaced' if paths.has(CLIENT_SECRET) else 'written'}")
        keep_secret(folder, CLIENT_SECRET, client_secret)
    return lines


def _new_api_key() -> str:
    return f"backend:{token_hex(32)}"


_MADE = {
    ENCRYPTION_KEYS: (new_key, "generated; keep a copy, separate from the database's backups"),
    "api.keys": (_new_api_key, "generated, with one key named backend"),
}


def make_keys(folder: Path, *, given: Container[str]) -> Iterator[str]:
    """Generate each key that is not in `given`, write it to a file, and yield a message about the file."""
    for name, (make, what) in _MADE.items():
        if name not in given:
            keep_secret(folder, name, make())
            yield f"{folder / name}: {what}"


def keep_secret(folder: Path, name: str, value: str) -> None:
    """Write a secret to a file that only this process's user can read."""
    write_file(folder / name, f"{value}\n", mode=0o600, replace=True)


def make_private(folder: Path) -> None:
    """Make a folder and its files readable only by this process's user; create the folder if it does not exist."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, mode in [(folder, 0o700), *((file, 0o600) for file in folder.iterdir() if file.is_file())]:
        if not path.is_symlink():
            os.chown(path, os.geteuid(), os.getegid())
            path.chmod(mode)
