"""Files: who may read secrets, whose they are, and whether the disk has room."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.config.loader import SECRETS, secret_folders, secrets_in
from amo_callback.refresh.rescue import RESERVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from amo_callback.cli.context import CommandContext

_ENOUGH = 256 * 1024 * 1024
"""Bytes of free disk below which there is a warning."""
_MIB = 1024 * 1024


def check_secrets(config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check who can read secrets: in the configuration file, and in files of their own."""
    found: list[Finding] = []
    if config is not None:
        found += _changeable(config)
        if held := secrets_in(config):
            found += _readable(config, f"it holds {', '.join(held)}", fix="or give each of them a file of its own")
    for folder in secret_folders(config, environ):
        for file in sorted(folder.iterdir()):
            if file.name in SECRETS and file.is_file():
                found += [*_readable(file, "it is a secret"), *_changeable(file)]
    yield from found or [ok("secrets", "no other user can read them in a file, or change it")]


def _readable(file: Path, why: str, *, fix: str = "") -> Iterator[Finding]:
    if open_to_others(file, stat.S_IROTH):
        mend = f"chmod o-rwx {file}{f', {fix}' if fix else ''}"
        yield fail("secrets", f"{file} can be read by every user of this machine, and {why}", fix=mend)


def _changeable(file: Path) -> Iterator[Finding]:
    if open_to_others(file, stat.S_IWOTH):
        yield fail("secrets", f"{file} can be changed by every user of this machine", fix=f"chmod o-w {file}")


def open_to_others(file: Path, permission: int) -> bool:
    """Return whether every user has this permission for a file, and can enter the folders above it."""
    real = file.resolve()
    if not real.stat().st_mode & permission:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in real.parents)


def check_disk(context: CommandContext) -> Iterator[Finding]:
    """Check the files beside the database, and the free disk for it and for the rescue folder."""
    if context.database is not None and context.database.exists():
        yield from _ownership(context.database)
        if open_to_others(context.database, stat.S_IROTH):
            yield warn(
                "disk",
                f"{context.database} can be read by every user: tokens are sealed in it, accounts and owners are not",
                fix=f"chmod 600 {context.database}",
            )
    yield _room(context)


def _ownership(database: Path) -> Iterator[Finding]:
    owner = database.stat().st_uid
    for suffix in ("-wal", "-shm"):
        beside = database.with_name(database.name + suffix)
        if beside.exists() and beside.stat().st_uid != owner:
            yield fail(
                "disk",
                f"{beside} is another user's than {database.name}: the service cannot write",
                fix=f"chown --reference={database} {beside}",
            )


def _room(context: CommandContext) -> Finding:
    # The database's disk and the rescue folder's may be two.
    folders = [context.rescue] if context.database is None else [context.database.parent, context.rescue]
    known = {_existing(path).stat().st_dev: _existing(path) for path in folders}
    free = {folder: os.statvfs(folder) for folder in known.values()}
    folder = min(free, key=lambda folder: free[folder].f_bavail * free[folder].f_frsize)
    room = free[folder].f_bavail * free[folder].f_frsize
    message = f"{room // _MIB:,} MiB are free in {folder}"
    without_names = [path for path, disk in free.items() if disk.f_files and not disk.f_favail]
    if without_names:
        return fail("disk", f"{without_names[0]}: no more files can be made", fix="remove files there")
    if room < 4 * RESERVE:
        return fail("disk", f"{message}: soon no token pair can be stored", fix="make room")
    if room < _ENOUGH:
        return warn("disk", message, fix="make room before it is full")
    return ok("disk", message)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
