"""Export: freeze the store, wait for refreshes and exchanges in progress, and write every connection."""

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
"""Seconds."""


async def freeze(store: Store, *, why: str) -> Freeze:
    """Freeze the store, and return the freeze, which may be an older one."""
    await store.freeze_all(why=why, may_be_copy=True)
    frozen = await store.frozen()
    if frozen is None:
        raise CommandFailed("the database has just been thawed, so nothing is exported")
    return frozen


async def wait_until_idle(
    store: Store, *, leases: Leases, clock: Clock, rescue: RescueFolder, report: Callable[[float], None]
) -> None:
    """Wait until no refresh and no code exchange is in progress; `report` is called with the maximum seconds left.

    Raises `CommandFailed` if there is a pending write.
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
    """Raise `CommandFailed` if there is a pending write."""
    try:
        files = len(rescue.read())
    except OSError as error:
        raise CommandFailed(f"the rescue folder cannot be read: {error.strerror}") from None
    if files:
        raise CommandFailed(
            f"pairs that are not stored yet are in the rescue folder ({files}): make sure that the service is running "
            "and ready, then try again"
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
    """Write all but disconnected connections; return the ids of those left out because no key decrypts their pair.

    Raises `CommandFailed` if the store was thawed meanwhile.
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
            "it was thawed meanwhile: tokens may have been refreshed since they were read, so nothing is exported"
        )
    return unreadable
