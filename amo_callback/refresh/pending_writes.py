"""Pending writes: token pairs that the store has not committed.

Obtaining a pair spends the previous refresh token, so if the pair were lost, the user would have to connect again. The
pair is kept in memory, for access-token hand-out, and in a rescue file. The write is retried until it commits or the
store contains a newer pair; after that, the file is removed. After a restart, the process loads the rescue files and
resumes the writes. If the store does not contain the connection, or only an older pair of it, the file is kept and
`pair.orphaned` is logged.

While a write is pending, this process does not refresh the connection, because the stored refresh token is already
spent.
"""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING

from amo_callback.concurrency import wait_or_stop
from amo_callback.errors import ConfigurationError, DecryptionFailed, ShuttingDown, StoreUnavailable
from amo_callback.events import Event, Level, report_bug
from amo_callback.model import Connection, RefreshedPair, Status
from amo_callback.refresh.pending_pair import PendingPair, clamped_to, file_name, open_pending, parse_name, seal_pending

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from amo_callback.core import Core
    from amo_callback.refresh.rescue import RescueFolder

_RETRY_EVERY = 1.0
"""Seconds between two tries of a write."""
_RESTORE_EVERY = 60.0
_STORE_GRACE = 2.0
"""The time limit, in seconds, for a write at shutdown; a pair that is not stored in time stays in its rescue file."""
_HISTORY = 100
"""The number of recent events that are searched for the refresh that obtained a pair."""


@dataclasses.dataclass(slots=True)
class _PendingWrite:
    pending_pair: PendingPair
    connection: Connection | None
    """The connection with the pair; `None` for a refreshed pair that was loaded from a rescue file."""
    rescued: bool
    events: Sequence[Event] = ()
    """The events to commit with the pair."""
    reported: bool = False
    saved: Connection | None = None
    tried: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class PendingWrites:
    """Stores token pairs, and keeps each pair until the store has committed it."""

    def __init__(self, core: Core, *, rescue: RescueFolder) -> None:
        self._core = core
        self._rescue = rescue
        self._pending: dict[str, _PendingWrite] = {}
        self._unreadable: set[str] = set()
        self._orphans: set[str] = set()
        self._expected = 0
        self._settled: set[str] = set()
        """Rescue files that could not be removed after their pair was stored or superseded."""
        self._reserved = False
        self._restoring: set[asyncio.Task[Connection | None]] = set()
        self._restore_lock = asyncio.Lock()
        self._retry_now = asyncio.Event()
        self._restore_at = core.clock.monotonic()

    # --- queries -----------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The rescue-file names of failed writes, unreadable files and orphaned pairs."""
        return sorted(
            {*(file_name(pending.pending_pair) for pending in self._refused()), *self._unreadable, *self._orphans}
        )

    @property
    def at_risk(self) -> bool:
        """Whether a pair exists only in memory, or a request that may return one is in progress."""
        return self._expected > 0 or bool(self.unsafe)

    @property
    def unsafe(self) -> list[str]:
        """The ids of connections whose pair exists only in memory."""
        return sorted({pending.pending_pair.connection_id for pending in self._pending.values() if not pending.rescued})

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Count an operation that may yield a pair, so that `at_risk` is true.

        After the `with` block, the caller must pass the pair to `save` before it awaits anything else.
        """
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    def blocks(self, connection: Connection) -> bool:
        """Return whether a pending write prevents refreshing the connection."""
        for owner, version in map(parse_name, self._unreadable | self._orphans):
            # A refresh has spent the refresh token of the pair that it replaces, and those of older pairs. A grant
            # spends no refresh token.
            if owner == connection.id and version is not None and connection.pair_version <= version:
                return True
        return any(self._replaces(name, connection) for name in self._pending)

    def overlay(self, stored: Connection) -> Connection:
        """Return the connection with the pair of its pending write, if there is one."""
        for pending in self._refused():
            if self._replaces(file_name(pending.pending_pair), stored) and stored.status is not Status.DISCONNECTED:
                return _with_pair(stored, pending.pending_pair)
        return stored

    def find(self, *, connection_id: str = "", account_id: str = "") -> Connection | None:
        """Return a connection with the pair of its pending write, for use while the store is unreachable."""
        for pending in self._refused():
            found = pending.connection
            if found is not None and (found.id == connection_id or (account_id and found.account_id == account_id)):
                return found
        return None

    def _refused(self) -> list[_PendingWrite]:
        """Return the writes that have failed at least once, and those loaded from rescue files."""
        return [pending for pending in self._pending.values() if pending.reported]

    @staticmethod
    def _replaces(name: str, stored: Connection) -> bool:
        owner, version = parse_name(name)
        return owner == stored.id and version in {None, stored.pair_version}

    # --- writing -----------------------------------------------------------------------------------

    async def save(
        self, pending_pair: PendingPair, *, connection: Connection, events: Sequence[Event] = ()
    ) -> Connection | None:
        """Store a pair, without a time limit, and return the connection; `None` if the pair is superseded or orphaned.

        `connection` is the row as it was read; `events` are committed with the pair. At shutdown, a pair that has a
        rescue file remains in that file, and `ShuttingDown` is raised.
        """
        return await self._keep(
            _PendingWrite(pending_pair, _with_pair(connection, pending_pair), rescued=False, events=events)
        )

    async def restore(self) -> None:
        """Load every rescue file that is not loaded yet, and try to store its pair.

        This method is called at start and once a minute, because another process that uses the folder may have left
        files. Concurrent calls run one after the other. Raises `ConfigurationError` if the folder cannot be read.
        """
        async with self._restore_lock:
            pending = set(self._pending)  # read first, because a pair may be stored during the listing
            try:
                files = await asyncio.to_thread(self._rescue.read)
            except OSError as error:
                raise ConfigurationError(f"storage.rescue: cannot read the folder: {error.strerror}") from None
            self._unreadable &= files.keys()
            self._orphans &= files.keys()
            self._settled &= files.keys()
            for name in sorted(files.keys() - self._unreadable - pending):
                if name in self._settled:
                    await self._forget(name)
                elif name not in self._pending:
                    await self._load(name, files[name])

    async def restore_for(self, connection: Connection) -> None:
        """Load new rescue files, since a process that exited during the connection's attempt may have left a pair."""
        try:
            await self.restore()
        except ConfigurationError:
            raise StoreUnavailable(
                f"the rescue folder cannot be read, and may contain a newer token pair of connection {connection.id}"
            ) from None

    async def watch(self) -> None:
        """Retry every pending write, and load new rescue files once a minute."""
        if self._core.clock.monotonic() >= self._restore_at:
            self._restore_at = self._core.clock.monotonic() + _RESTORE_EVERY
            await self.restore()
        await self.flush()

    async def _load(self, name: str, content: bytes | None) -> None:
        try:
            pending_pair = open_pending(name, content or b"", self._core.cipher)
        except DecryptionFailed:
            self._unreadable.add(name)
            fields = {"file": name, "text": "restore the encryption key or the file's owner, then restart the service"}
            self._core.observer(Event(name="rescue.unreadable", level=Level.ERROR, fields=fields))
        else:
            await self._adopt(pending_pair)

    async def _adopt(self, pending_pair: PendingPair) -> None:
        connection = pending_pair.connection if not isinstance(pending_pair, RefreshedPair) else None
        # The process that exchanged the code may have exited, so the process that stores the pair reports the event.
        events = [] if connection is None else [Event(name="connection.connected", connection_id=connection.id)]
        pending = _PendingWrite(pending_pair, connection, rescued=True, events=events, reported=True)
        task = asyncio.create_task(self._keep(pending), name=f"pending_write:{file_name(pending_pair)}")
        self._restoring.add(task)
        task.add_done_callback(self._restored)
        await pending.tried.wait()

    async def flush(self) -> None:
        """Retry every pending write now, and reserve disk space if necessary."""
        if not self._reserved:
            self._reserved = await asyncio.to_thread(self._rescue.reserve)
        waiting = list(self._pending.values())
        for pending in waiting:
            pending.tried.clear()
        self._retry_now.set()
        self._retry_now = asyncio.Event()
        await asyncio.gather(*(pending.tried.wait() for pending in waiting))

    async def drain(self) -> None:
        """Wait until every pair that was loaded from a rescue file is in the store, or left in its file at shutdown."""
        if self._restoring:
            await asyncio.wait(self._restoring)

    async def _keep(self, pending: _PendingWrite) -> Connection | None:
        name = file_name(pending.pending_pair)
        self._pending[name] = pending
        try:
            while refusal := await self._try_store_in_time(pending):
                if not pending.rescued:
                    pending.rescued = await self._rescued(pending.pending_pair)
                self._report_once(pending, refusal)
                pending.tried.set()
                await self._wait(pending)
            if name in self._orphans:
                return None
            if pending.rescued:
                await self._forget(name)
            if pending.reported and pending.saved is None:
                self._report("pair.write_completed", pending.pending_pair, superseded=True)
            return pending.saved
        finally:
            del self._pending[name]
            pending.tried.set()

    async def _try_store_in_time(self, pending: _PendingWrite) -> Exception | None:
        """Try to store a pair; at shutdown, a try that takes longer than `_STORE_GRACE` counts as failed."""
        refusals: list[Exception | None] = []

        async def offer() -> None:
            refusals.append(await self._try_store(pending))

        if await wait_or_stop(offer(), stop=self._core.stop, grace=_STORE_GRACE, clock=self._core.clock):
            return refusals[0]
        return StoreUnavailable("timeout")

    async def _try_store(self, pending: _PendingWrite) -> Exception | None:
        """Try to store a pair; return an error, unless the pair is stored, superseded, or orphaned in a rescue file."""
        name = file_name(pending.pending_pair)
        if refusal := await self._store_pair(pending):
            return refusal
        try:
            orphaned = pending.saved is None and not await self._is_superseded(pending.pending_pair)
        except Exception as error:  # noqa: BLE001 -- no error may lose the pair
            return error
        if not orphaned:
            self._orphans.discard(name)
            return None
        pending.rescued = pending.rescued or await self._rescued(pending.pending_pair)
        if not pending.rescued:
            return StoreUnavailable("the database has refused the token pair, and the rescue file cannot be written")
        if name not in self._orphans:
            self._orphans.add(name)
            self._report(
                "pair.orphaned",
                pending.pending_pair,
                Level.ERROR,
                text="the database does not contain the connection, or contains only an older token pair for it: "
                "check storage.url",
            )
        return None

    async def _store_pair(self, pending: _PendingWrite) -> Exception | None:
        """Try to store a pair; return an error, or `None` if the store has committed or refused the pair."""
        saved = Event(
            name="pair.write_completed", connection_id=pending.pending_pair.connection_id, fields={"superseded": False}
        )
        late = [saved] if pending.reported else []
        events = [*pending.events, *late]
        pending.pending_pair = pending_pair = clamped_to(pending.pending_pair, self._core.clock.now())
        if pending.connection is not None:
            pending.connection = _with_pair(pending.connection, pending_pair)
        try:
            if isinstance(pending_pair, RefreshedPair):
                pending.saved = await self._core.store.save_refreshed(pending_pair, events=events)
            else:
                pending.saved = await self._core.store.save_connected(pending_pair, events=events)
        except Exception as error:  # noqa: BLE001 -- no error may lose the pair
            return None if await self._was_committed(pending, events) else error
        if pending.saved is None:
            await self._was_committed(pending, events)
        return None

    async def _was_committed(self, pending: _PendingWrite, events: Sequence[Event]) -> bool:
        """Return whether a pair was committed although the response was lost; if it was, report its events."""
        pending.saved = await self._stored(pending)
        if pending.saved is not None:
            for event in events:
                self._core.observer(event)
        return pending.saved is not None

    async def _stored(self, pending: _PendingWrite) -> Connection | None:
        """Return the stored connection if it has, or has had, exactly this pair; otherwise `None`."""
        pending_pair = pending.pending_pair
        sealed = (
            pending_pair.sealed_pair if isinstance(pending_pair, RefreshedPair) else pending_pair.connection.sealed_pair
        )
        try:
            stored = await self._core.store.connection(pending_pair.connection_id)
            if stored is None or stored.status is Status.DISCONNECTED:
                return None
            return stored if stored.sealed_pair == sealed or await self._is_recorded(pending) else None
        except Exception:  # noqa: BLE001 -- no error may lose the pair
            return None

    async def _is_recorded(self, pending: _PendingWrite) -> bool:
        """Return whether the history contains the refresh that obtained the pair.

        The row alone does not show this, because another process may have refreshed or re-encrypted the pair since.
        """
        tokens = {event.fields["next_token"] for event in pending.events if "next_token" in event.fields}
        if not tokens:
            return False
        recorded = await self._core.store.events(connection_id=pending.pending_pair.connection_id, limit=_HISTORY)
        return any(
            event.name == "refresh.succeeded" and event.details.get("next_token") in tokens for event in recorded
        )

    async def _is_superseded(self, pending_pair: PendingPair) -> bool:
        """Return whether the store refused a pair because of a newer pair, a newer grant or a disconnect.

        If not, the store is another database or a restored backup, and may not have a valid pair for the connection.
        """
        if not isinstance(pending_pair, RefreshedPair):
            return True  # the store refuses a grant only because of a later grant or a disconnect
        stored = await self._core.store.connection(pending_pair.connection_id)
        if stored is None:
            return False
        regranted = (stored.grant_iat or 0) > (pending_pair.grant_iat or 0) > 0
        return regranted or stored.status is Status.DISCONNECTED or stored.pair_version > pending_pair.pair_version

    def _report_once(self, pending: _PendingWrite, refusal: Exception) -> None:
        if pending.reported:
            return
        pending.reported = True
        if isinstance(refusal, StoreUnavailable):
            self._report(
                "pair.write_pending", pending.pending_pair, Level.ERROR, store=refusal.detail, rescued=pending.rescued
            )
        else:
            bug = Event(
                name="pair.write_pending",
                level=Level.ERROR,
                connection_id=pending.pending_pair.connection_id,
                error=refusal,
            )
            self._core.observer(bug)

    async def _wait(self, pending: _PendingWrite) -> None:
        """Wait for the next try; at shutdown, raise `ShuttingDown` if the pair has a rescue file."""
        if self._core.stop.is_set() and pending.rescued:
            raise ShuttingDown
        stop = self._core.stop if pending.rescued else asyncio.Event()
        await wait_or_stop(self._retry_now.wait(), stop=stop, grace=0, clock=self._core.clock, limit=_RETRY_EVERY)

    async def _rescued(self, pending_pair: PendingPair) -> bool:
        """Write the rescue file and return whether that succeeded."""
        sealed = seal_pending(pending_pair, self._core.cipher)
        self._settled.discard(file_name(pending_pair))
        self._reserved = False  # the write may use the reserved space
        try:
            await asyncio.to_thread(self._rescue.write, file_name(pending_pair), sealed)
        except OSError:
            return False
        return True

    async def _forget(self, name: str) -> None:
        """Remove a rescue file that is no longer needed; if that fails, log it once and retry later."""
        try:
            await asyncio.to_thread(self._rescue.remove, name)
        except OSError as error:
            if name not in self._settled:
                fields = {"file": name, "error": error.strerror}
                self._core.observer(Event(name="rescue.not_removed", level=Level.WARNING, fields=fields))
            self._settled.add(name)
        else:
            self._settled.discard(name)

    def _restored(self, task: asyncio.Task[Connection | None]) -> None:
        self._restoring.discard(task)
        report_bug("pair.bug", task, self._core.observer)

    def _report(self, name: str, pending_pair: PendingPair, level: Level = Level.INFO, **fields: object) -> None:
        self._core.observer(Event(name=name, level=level, connection_id=pending_pair.connection_id, fields=fields))


def _with_pair(connection: Connection, pending_pair: PendingPair) -> Connection:
    """Return the connection as it will be after the pair has been stored."""
    if not isinstance(pending_pair, RefreshedPair):
        return pending_pair.connection
    return dataclasses.replace(
        connection,
        status=Status.ACTIVE,
        reason=None,
        sealed_pair=pending_pair.sealed_pair,
        access_issued_at=pending_pair.issued_at,
        access_expires_at=pending_pair.expires_at,
        attempt=None,
        presented_token=None,
        possibly_spent_token=None,
    )
