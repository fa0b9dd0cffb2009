"""The store, opened by the command itself: beside the service, or where none runs."""

from __future__ import annotations

import os
import pwd
import socket
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from amo_callback.cipher import Cipher
from amo_callback.clock import SystemClock
from amo_callback.config_load import find_config, load_settings, rescue_folder, storage_folder
from amo_callback.errors import CommandFailed, ConfigurationError, DecryptionFailed
from amo_callback.machine import machine_mark
from amo_callback.store import database_file, open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator, Mapping

    from amo_callback.clock import Clock
    from amo_callback.config import Settings
    from amo_callback.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The configuration, and the database file that it names: none, where that is PostgreSQL."""

    settings: Settings = field(repr=False)
    folder: Path
    database: Path | None
    rescue: Path

    @property
    def owned(self) -> Path:
        """What the service owns: the database file, else its rescue folder."""
        return self.database or self.rescue

    @property
    def machine(self) -> str:
        """A name for the place of the database file."""
        return machine_mark(self.database)


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """An opened store, and what it takes to read it."""

    place: Place
    store: Store
    cipher: Cipher
    clock: Clock


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command has which reads the configuration."""
    parser.add_argument("--config", metavar="FILE", help="default: ./config.toml, else /etc/amo-callback/config.toml")


def find_place(options: argparse.Namespace, environ: Mapping[str, str]) -> Place:
    """Read the configuration; raises `ConfigurationError`."""
    path = find_config(options.config, environ)
    settings = load_settings(path, environ)
    folder = storage_folder(path, environ)
    return Place(
        settings=settings,
        folder=folder,
        database=database_file(settings.storage.url.get_secret_value(), folder=folder),
        rescue=rescue_folder(settings, path, environ),
    )


def _owner(owned: Path) -> os.stat_result:
    """Return whose it is: its own, or its folder's where there is none yet, or a link elsewhere."""
    is_there = owned.exists() and not owned.is_symlink()
    return next(path for path in (*([owned] if is_there else []), *owned.absolute().parents) if path.exists()).stat()


def _self(user: int) -> dict[str, str]:
    """Return what the environment says of a user: PostgreSQL's library looks into his home, and takes his name."""
    try:
        known = pwd.getpwuid(user)
    except KeyError:
        return {"HOME": "/"}
    return {"HOME": known.pw_dir, "LOGNAME": known.pw_name, "USER": known.pw_name}


def become_owner(owned: Path) -> None:
    """Act as the owner of what the service owns from now on: what root leaves beside it the service could not open."""
    if os.geteuid() != 0:
        return
    owner = _owner(owned)
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        os.environ.update(_self(owner.st_uid))


_PROGRAM = (__file__, pydantic.__file__, os.__file__)
"""A file of this program, one of its libraries', and one of Python's own."""


@contextmanager
def _naming_unreadable_program(owned: Path) -> Iterator[None]:
    """Turn what fails because the effective user cannot read this program into `CommandFailed`, with what to do.

    Parts of the program are loaded only when they are needed, and so perhaps only after root has become another user.
    """
    try:
        yield
    except (ImportError, PermissionError) as error:
        folders = [str(Path(file).parent) for file in _PROGRAM]
        is_program = isinstance(error, ImportError) or str(error.filename).startswith(tuple(folders))
        file = next((file for file in _PROGRAM if not _is_readable(file)), None)
        if file is None or not is_program:
            raise
        name = _self(os.geteuid()).get("USER", str(os.geteuid()))
        raise CommandFailed(
            f"{owned} belongs to {name}: root acts as that user, who cannot read {file}. Install amo-callback and its "
            "Python where every user can read them (/opt, not /root), or run the command as that user"
        ) from None


def _is_readable(file: str) -> bool:
    try:
        open(file, "rb").close()  # noqa: PTH123 -- because `os.access` asks for the real user
    except PermissionError:
        return False
    return True


@contextmanager
def acting_as_owner(owned: Path) -> Iterator[None]:
    """Act as the owner of what the service owns for a while: root would write wherever that folder's links lead.

    Raises `CommandFailed` where a part of this program is needed that the owner cannot read.
    """
    if os.geteuid() != 0:
        yield
        return
    owner = _owner(owned)
    groups, environ = os.getgroups(), dict(os.environ)
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    os.environ.update(_self(owner.st_uid))
    try:
        with _naming_unreadable_program(owned):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


@asynccontextmanager
async def open_local(place: Place, *, make: bool = False) -> AsyncIterator[Local]:
    """Open the store that there is, or `make` one; raises `ConfigurationError`, also where no key opens it."""
    if not make and place.database is not None and not place.database.exists():
        raise ConfigurationError(f"storage.url: there is no database {place.database}")
    become_owner(place.owned)
    clock = SystemClock()
    cipher = Cipher(place.settings.storage.encryption_keys.get_secret_value().split())
    url = place.settings.storage.url.get_secret_value()
    process = f"{socket.gethostname()}:{os.getpid()} (command)"
    with _naming_unreadable_program(place.owned):
        async with open_store(url, folder=place.folder, clock=clock, process=process) as store:
            try:
                cipher.check_canary(await store.canary(cipher.seal_canary()))
            except DecryptionFailed:
                raise ConfigurationError("storage.encryption_keys: none of them opens this database") from None
            yield Local(place=place, store=store, cipher=cipher, clock=store.clock)
