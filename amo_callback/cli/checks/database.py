"""Checks of the database (existence, schema, integrity, encryption, freeze), of its disk, and of the rescue folder."""

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
"""The number of connections per read. It is limited, because a long read delays checkpoints."""
_NAMED = 5
"""The maximum number of connection ids in a message."""
_THAW = "amo-callback connections thaw --all"
_MIB = 1024 * 1024
_LOW_DISK = 256 * _MIB
"""The minimum free disk space, in bytes; less space causes a warning."""


async def check_sqlite(
    context: CommandContext, file: Path, opening: AbstractAsyncContextManager[Store]
) -> AsyncIterator[Finding]:
    """Check the SQLite database in `file`; `opening` opens it."""
    if (missing := _missing(file)) is not None:
        yield missing
        return
    try:
        async with opening as store:
            async for finding in check_contents(store, f"{file}", context, schema=latest_schema(Engine.SQLITE)):
                yield finding
    except OtherSchema as error:
        upgrade = "start this version of the service: it backs up the database, then upgrades it"
        yield check_schema(f"{file}", error, upgrade=upgrade)
    except ConfigurationError as error:
        reason = str(error).removeprefix("storage.url: ")
        yield fail(
            "store",
            reason,
            fix="correct storage.url or the file's permissions; if the file is damaged, restore a backup",
        )


def _missing(file: Path) -> Finding | None:
    if file.exists():
        return None
    if not file.parent.is_dir():
        return fail("store", f"the folder {file.parent} does not exist", fix="create it, or correct storage.url")
    fix = "`amo-callback serve` creates it; if it should already exist, correct storage.url or $STATE_DIRECTORY"
    return warn("store", f"the database {file} does not exist", fix=fix)


# --- contents, for both database engines --------------------------------------------------------------


def check_schema(name: str, error: OtherSchema, *, upgrade: str) -> Finding:
    """Return a finding for a schema of another version; `upgrade` is the fix for an older schema."""
    versions = f"(schema {error.version}; this version uses schema {error.known})"
    if error.is_foreign:
        fix = "correct storage.url: amo-callback requires a database of its own"
        return fail("store", f"{name} is not an amo-callback database", fix=fix)
    if error.version == 0:
        return warn(
            "store",
            f"{name} is empty",
            fix="`amo-callback serve` creates the tables; if they should already exist, correct storage.url",
        )
    if error.version < error.known:
        return warn("store", f"{name} was written by an older amo-callback {versions}", fix=upgrade)
    return fail(
        "store",
        f"{name} was written by a newer amo-callback {versions}",
        fix="install the newer version, or restore an older backup",
    )


async def check_contents(store: Store, name: str, context: CommandContext, *, schema: int) -> AsyncIterator[Finding]:
    """Check the content of an open database: its integrity, encryption and freeze."""
    count, keys = await store.count(), context.encryption_keys
    if await store.is_whole():
        yield ok("store", f"{name}: {count:,} connections, schema {schema}")
    else:
        yield fail(
            "store", f"{name} is damaged", fix="stop the service, then run `amo-callback restore FILE` with a backup"
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
            "no key in storage.encryption_keys decrypts this database: the service does not start",
            fix="add the keys that encrypted it; if it is another installation's database, correct storage.url",
        )
    return None


async def _check_pairs(store: Store, keys: Sequence[str], count: int) -> Finding:
    """Decrypt every token pair, and report pairs that need an older key or that no key decrypts."""
    newest, every = Cipher(keys[:1]), Cipher(keys)
    done, older, unreadable, after = 0, 0, list[str](), ""
    with progress("decrypting token pairs", count) as advance:
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
            f"no key decrypts {len(unreadable):,} of {done:,} token pairs; their connections: {named}",
            fix="add the key that encrypted them; if it is lost, the users of these connections have to connect again",
        )
    text = f"the keys decrypt all {done:,} token pairs" if done else "the database has no token pairs yet"
    return ok("keys", f"{text}; {older:,} of them need an older key: do not remove it" if older else text)


def _opens(cipher: Cipher, connection: Connection) -> bool:
    try:
        cipher.open_tokens(connection.sealed_pair or b"", connection_id=connection.id)
    except (DecryptionFailed, ValueError, KeyError):
        return False
    return True


async def _check_frozen(store: Store, location: str) -> Finding:
    """Check whether the database is frozen, or will be frozen when the service starts."""
    frozen = await store.frozen()
    if frozen is not None:
        return warn(
            "frozen",
            f"all connections have been frozen since {rfc3339(frozen.at)}: {frozen.why}",
            fix=f"once no other host uses these tokens, run: {_THAW}",
        )
    if await store.is_elsewhere(location):
        return warn(
            "frozen",
            "the database was last used at another location (machine, folder or server) and will be frozen when the "
            "service starts here",
            fix=f"run the service at its previous location; or, once no other host uses these tokens, run: {_THAW}",
        )
    return ok("frozen", "not frozen")


# --- the files ----------------------------------------------------------------------------------


def check_rescue(context: CommandContext) -> Iterator[Finding]:
    waiting = RescueFolder(context.rescue).read()
    if waiting:
        yield warn(
            "rescue",
            f"{len(waiting)} pending writes in {context.rescue}: the database has not committed them",
            fix="do not delete them: the service stores them once the database accepts writes; if they remain, see the "
            "service's log",
        )
    else:
        yield ok("rescue", f"no pending writes in {context.rescue}")


def check_disk(context: CommandContext) -> Iterator[Finding]:
    """Check the owners and mode of the database files, and the free space for the database and the rescue folder."""
    if context.database is not None and context.database.exists():
        yield from _ownership(context.database)
        if open_to_others(context.database, stat.S_IROTH):
            yield warn(
                "disk",
                f"every user can read {context.database}: tokens are encrypted, but accounts and owners are not",
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
                f"{beside} and {database.name} have different owners: the service cannot write to the database",
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
        return fail(
            "disk", f"no file can be created in {without_names[0]}: no free inodes", fix="remove files from this disk"
        )
    if room < 4 * RESERVE:
        return fail("disk", f"{message}; it may soon be impossible to store token pairs", fix="free up disk space")
    if room < _LOW_DISK:
        return warn("disk", message, fix="free up disk space before the disk is full")
    return ok("disk", message)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
