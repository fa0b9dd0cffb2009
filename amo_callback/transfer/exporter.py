"""Export: freeze the store, wait for refreshes and code exchanges in progress, and write the connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import CommandFailed
from amo_callback.model import ConnectionFilter, Status
from amo_callback.transfer.export_file import record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.model import Freeze
    from amo_callback.refresh.leases import Leases
    from amo_callback.refresh.rescue import RescueFolder
    from amo_callback.store import Store
    from amo_callback.transfer.export_file import ExportWriter

PAGE = 500
_POLL_EVERY = 1.0
"""Seconds between two checks for refreshes and code exchanges in progress."""


async def freeze(store: Store, *, why: str) -> Freeze:
    """Freeze the store, because the export is a copy of its tokens, and return the freeze.

    An existing freeze is kept only if it records that the store may be a copy. Raises `CommandFailed` if another
    process has already thawed the store.
    """
    await store.freeze_all(why=why, may_be_copy=True)
    frozen = await store.frozen()
    if frozen is None:
        raise CommandFailed("another process has just thawed the database: nothing was exported")
    return frozen


async def wait_until_idle(
    store: Store, *, leases: Leases, clock: Clock, rescue: RescueFolder, report: Callable[[float], None]
) -> None:
    """Wait until no refresh or code exchange is in progress.

    Calls `report` with the maximum number of seconds left. Raises `CommandFailed` if there is a pending write.
    """
    while left := await _left(store, leases, clock):
        report(left)
        await clock.sleep(min(left, _POLL_EVERY))
    require_empty_rescue(rescue)


async def _left(store: Store, leases: Leases, clock: Clock) -> float:
    attempts = [leases.remaining(connection) for connection in await store.attempts()]
    exchanges = [
        leases.remaining_of(grant.code_hash, grant.attempt, grant.lease_until, reported=grant.lease_left)
        for grant in await store.exchanging(now=clock.now())
    ]
    return max([*attempts, *exchanges], default=0.0)


def require_empty_rescue(rescue: RescueFolder) -> None:
    """Raise `CommandFailed` if the rescue folder contains a pending write or cannot be read."""
    try:
        files = len(rescue.read())
    except OSError as error:
        raise CommandFailed(f"cannot read the rescue folder: {error.strerror}") from None
    if files:
        raise CommandFailed(
            f"the rescue folder contains unsaved token pairs ({files}): make sure that the service is running and "
            "ready, then try again"
        )


async def export(
    store: Store,
    *,
    frozen: Freeze,
    cipher: Cipher,
    rescue: RescueFolder,
    writer: ExportWriter,
    advance: Callable[[int], None],
) -> Sequence[str]:
    """Write all connections except disconnected ones and those that no key decrypts; return the ids of the latter.

    Raises `CommandFailed` if there is a pending write, or if the store was thawed during the export.
    """
    unreadable = []
    after = ""
    while page := await store.page(after=after, limit=PAGE, only=ConnectionFilter()):
        owners = await store.bindings_of([connection.id for connection in page])
        for connection in page:
            if connection.status is Status.DISCONNECTED:
                continue
            pair = cipher.decrypt_pair(connection)
            if pair is None:
                unreadable.append(connection.id)
            else:
                writer.add(record_of(connection, pair, owners[connection.id]))
        after = page[-1].id
        advance(writer.count)
    writer.end()
    require_empty_rescue(rescue)
    if await store.frozen() != frozen:
        raise CommandFailed(
            "the database was thawed during the export: nothing was exported, because the tokens may be outdated"
        )
    return unreadable
