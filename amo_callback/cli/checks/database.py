"""Checks of the database: its existence, integrity, schema, encryption and freeze; its disk, and the rescue folder."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from amo_callback.cli.checks.configuration import open_to_others
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.cli.output import progress
from amo_callback.clock import rfc3339
from amo_callback.crypto import Cipher
from amo_callback.errors import ConfigurationError, DecryptionFailed
from amo_callback.model import ConnectionFilter, Status
from amo_callback.refresh.rescue import RESERVE, RescueFolder
from amo_callback.store.engine import Engine
from amo_callback.store.migrate import OtherSchema, latest_schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from amo_callback.cli.context import CommandContext
    from amo_callback.model import Connection
    from amo_callback.store import Store

_PAGE = 500
"""The number of connections per read, which is limited because a read delays checkpoints."""
_NAMED = 5
"""The maximum number of connections that are named."""
_THAW = "amo-callback connections thaw --all"
_MIB = 1024 * 1024
_LOW_DISK = 256 * _MIB
"""The free disk space in bytes below which there is a warning."""


async def check_sqlite(
    context: CommandContext, file: Path, opening: AbstractAsyncContextManager[Store]
) -> AsyncIterator[Finding]:
    """Check the database file, opened with `opening`."""
    if (missing := _missing(file)) is not None:
        yield missing
        return
    try:
        async with opening as store:
            async for finding in check_contents(store, f"{file}", context, schema=latest_schema(Engine.SQLITE)):
                yield finding
    except OtherSchema as error:
        upgrade = "start this version of the service: it copies the database and then upgrades it"
        yield check_schema(f"{file}", error, upgrade=upgrade)
    except ConfigurationError as error:
        reason = str(error).removeprefix("storage.url: ")
        yield fail("store", reason, fix="correct storage.url, or remove what is there")


def _missing(file: Path) -> Finding | None:
    if file.exists():
        return None
    if not file.parent.is_dir():
        return fail("store", f"no such folder: {file.parent}", fix="create it, or correct storage.url")
    fix = "`amo-callback serve` creates it; if there should be one, correct storage.url or $STATE_DIRECTORY"
    return warn("store", f"there is no database {file}", fix=fix)


# --- the contents, of either engine ----------------------------------------------------------------


def check_schema(name: str, error: OtherSchema, *, upgrade: str) -> Finding:
    """Return a finding for the schema of another version; `upgrade` is the fix for an older one."""
    versions = f"(schema {error.version}, known here: {error.known})"
    if error.is_foreign:
        fix = "correct storage.url: amo-callback needs its own database"
        return fail("store", f"{name} is not an amo-callback database", fix=fix)
    if error.version == 0:
        return warn(
            "store",
            f"{name} is empty",
            fix="`amo-callback serve` creates the tables; if there should be some, check the database's name",
        )
    if error.version < error.known:
        return warn("store", f"{name} was written by an older amo-callback {versions}", fix=upgrade)
    return fail(
        "store",
        f"{name} was written by a newer amo-callback {versions}",
        fix="install that version, or restore an older backup",
    )


async def check_contents(store: Store, name: str, context: CommandContext, *, schema: int) -> AsyncIterator[Finding]:
    """Check the content of an open database: its integrity, encryption and freeze."""
    count, keys = await store.count(), context.encryption_keys
    if await store.is_whole():
        yield ok("store", f"{name}, {count:,} connections, schema {schema}")
    else:
        yield fail(
            "store", f"{name} is damaged", fix="stop the service, and restore a backup: amo-callback restore FILE"
        )
    yield _check_canary(keys, await store.stored_canary()) or await _check_pairs(store, keys, count)
    yield await _check_frozen(store, context.location)


def _check_canary(keys: Sequence[str], canary: bytes | None) -> Finding | None:
    """Return a finding if no key decrypts the canary, otherwise `None`."""
    if canary is None:
        return None
    try:
        Cipher(keys).check_canary(canary)
    except DecryptionFailed:
        return fail(
            "keys",
            "none of storage.encryption_keys decrypts this database: the service does not start",
            fix="configure the keys that encrypted it, unless it is another installation's database",
        )
    return None


async def _check_pairs(store: Store, keys: Sequence[str], count: int) -> Finding:
    """Decrypt every pair, without keeping any of them."""
    newest, every = Cipher(keys[:1]), Cipher(keys)
    done, older, unreadable, after = 0, 0, list[str](), ""
    with progress("opening pairs", count) as advance:
        while page := await store.page(after=after, limit=_PAGE, only=ConnectionFilter()):
            after = page[-1].id
            for connection in page:
                if connection.status is Status.DISCONNECTED:
                    continue
                done += 1
                if not _opens(newest, connection):
                    if _opens(every, connection):
                        older += 1
                    else:
                        unreadable.append(connection.id)
            advance(done)
    if unreadable:
        named = ", ".join(unreadable[:_NAMED]) + (", …" if len(unreadable) > _NAMED else "")
        return fail(
            "keys",
            f"no key decrypts {len(unreadable):,} of {done:,} pairs: {named}",
            fix="configure the key that encrypted them; if it is lost, their users have to connect again",
        )
    text = f"decrypt all {done:,} pairs" if done else "fit; there are no pairs yet"
    return ok("keys", f"{text}; {older:,} still need an older key: keep it" if older else text)


def _opens(cipher: Cipher, connection: Connection) -> bool:
    try:
        cipher.open_tokens(connection.sealed_pair or b"", connection_id=connection.id)
    except (DecryptionFailed, ValueError, KeyError):
        return False
    return True


async def _check_frozen(store: Store, location: str) -> Finding:
    """Return whether the database is frozen, or will be when the service starts."""
    frozen = await store.frozen()
    if frozen is not None:
        return warn(
            "frozen",
            f"no token has been refreshed since {rfc3339(frozen.at)}: {frozen.why}",
            fix=f"once no other host uses these tokens: {_THAW}",
        )
    if await store.is_elsewhere(location):
        return warn(
            "frozen",
            "it was last used at another location (machine, folder or server): it will be frozen when the service "
            "starts here",
            fix=f"run the service on its previous host; or, once no other host uses these tokens: {_THAW}",
        )
    return ok("frozen", "not frozen")


# --- the files ----------------------------------------------------------------------------------


def check_rescue(context: CommandContext) -> Iterator[Finding]:
    waiting = RescueFolder(context.rescue).read()
    if waiting:
        yield warn(
            "rescue",
            f"{len(waiting)} pending writes in {context.rescue}: the database has not committed them",
            fix="keep them: the service stores them when the disk has space; if they remain, see its log",
        )
    else:
        yield ok("rescue", f"no pending writes in {context.rescue}")


def check_disk(context: CommandContext) -> Iterator[Finding]:
    """Check the files next to the database, and the free disk space for the database and for the rescue folder."""
    if context.database is not None and context.database.exists():
        yield from _ownership(context.database)
        if open_to_others(context.database, stat.S_IROTH):
            yield warn(
                "disk",
                f"{context.database} can be read by every user: its tokens are encrypted, accounts and owners are not",
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
                f"{beside} and {database.name} have different owners: the service cannot write",
                fix=f"chown --reference={database} {beside}",
            )


def _room(context: CommandContext) -> Finding:
    # The database and the rescue folder may be on different disks.
    folders = [context.rescue] if context.database is None else [context.database.parent, context.rescue]
    known = {_existing(path).stat().st_dev: _existing(path) for path in folders}
    free = {folder: os.statvfs(folder) for folder in known.values()}
    folder = min(free, key=lambda folder: free[folder].f_bavail * free[folder].f_frsize)
    room = free[folder].f_bavail * free[folder].f_frsize
    message = f"{folder} has {room // _MIB:,} MiB of free space"
    without_names = [path for path, disk in free.items() if disk.f_files and not disk.f_favail]
    if without_names:
        return fail("disk", f"{without_names[0]}: no more files can be created", fix="remove files there")
    if room < 4 * RESERVE:
        return fail("disk", f"{message}: soon no token pair can be stored", fix="make room")
    if room < _LOW_DISK:
        return warn("disk", message, fix="make room before it is full")
    return ok("disk", message)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
