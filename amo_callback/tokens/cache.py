"""A cache of connections by selector, so that most hand-outs do not read the database.

An entry is valid until its connection is written, but for at most `_TTL` seconds after its read or its last renewal:

- The store reports writes of this process immediately, and writes of other processes if it is notified of them. The
  result of a read is not cached if a write was reported during the read.
- With several instances, a write that was not reported takes effect when the entry expires.
- With a single instance, only an `amo-callback` command on the same database writes without a report. Its writes change
  the store's `data_version`, which is polled in the background. If `data_version` has not changed, the poll renews all
  entries. If the poll fails or is late, callers read the store.
- An entry that was read before the store was last unreachable is not valid, because another instance may hold a newer
  pair that it could not store.

An entry that is no longer valid is kept, unless its connection was erased: while the store is unreachable, the entry
holds the last known connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.errors import HostNotAllowed, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.clock import Clock
    from amo_callback.core import Core
    from amo_callback.model import ChangeNotice, Connection
    from amo_callback.store import Store

CONNECTIONS = 10_000
_TTL = 1.0
"""The validity of an entry in seconds: the longest time until another process's write takes effect."""
_POLL_EVERY = 0.4
"""Seconds between two polls of the store's `data_version`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """A decrypted access token."""

    value: str = field(repr=False)
    issued_at: datetime
    expires_at: datetime
    base_url: str | None
    """The base URL of the account's API; `None` if the stored host is not allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenConnection:
    """The fields of a connection that a hand-out needs, without the encrypted pair and the refresh token."""

    connection: Connection
    token: AccessToken | None
    """The access token; `None` if no key decrypts the pair."""


def open_connection(connection: Connection, core: Core) -> OpenConnection:
    """Return a connection with its access token decrypted."""
    pair, token = core.cipher.decrypt_pair(connection), None
    if pair is not None:
        base_url = None
        # The base URL can be cached, because the allow list does not change while the process runs.
        with suppress(HostNotAllowed):
            base_url = core.amo.base_url(connection.domain)
        token = AccessToken(
            value=pair.access_token, issued_at=pair.issued_at, expires_at=pair.expires_at, base_url=base_url
        )
    return OpenConnection(connection=dataclasses.replace(connection, sealed_pair=None), token=token)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadMark:
    """The cache state when a read began, used to discard a result that a later write has superseded."""

    at: float
    epoch: int
    changes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _CacheEntry:
    """The result of a read: the first connection of a selector, and the ids of all its connections."""

    first: OpenConnection
    ids: tuple[str, ...]
    at: float
    epoch: int
    changed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleEntry:
    """The last known connection of a selector, and whether the connection has `changed` since it was read."""

    found: OpenConnection
    changed: bool


class ConnectionCache:
    """A least-recently-used cache of up to `limit` connections."""

    def __init__(self, *, store: Store, clock: Clock, limit: int = CONNECTIONS) -> None:
        self._store = store
        self._is_shared = store.shared is not None
        self._clock = clock
        self._limit = limit
        self._entries: OrderedDict[str, _CacheEntry] = OrderedDict()
        self._selectors: dict[str, tuple[str, ...]] = {}
        """The selectors under which each connection is cached, by connection id."""
        self._size = 0
        self._changes = 0
        """The number of reported changes."""
        self._version: int | None = None
        self._epoch = 0
        """The number of polls that found a changed `data_version`."""
        self._polled_at = -math.inf
        self._next_poll_at = -math.inf
        self._polling: asyncio.Task[None] | None = None
        store.subscribe(self._changed)

    def __len__(self) -> int:
        """Return the number of cached connections; each is counted once per selector."""
        return self._size

    def get(self, selector: str) -> OpenConnection | None:
        """Return the first connection of a selector, or `None` without a valid entry; start a poll if one is due."""
        now = self._clock.monotonic()
        if not self._is_shared and now >= self._next_poll_at and self._polling is None:
            self._next_poll_at = now + _POLL_EVERY
            self._polling = asyncio.create_task(self._poll(now), name="cache:poll")
            self._polling.add_done_callback(self._poll_ended)
        found = self._entries.get(selector)
        if found is None or found.changed or found.epoch != self._epoch:
            return None
        if now - max(found.at, self._polled_at) >= _TTL:
            return None
        if (failed_at := self._store.failed_at) is not None and failed_at > found.at:
            return None
        self._entries.move_to_end(selector)
        return found.first

    def get_stale(self, selector: str) -> StaleEntry | None:
        """Return the last known connection of a selector, or `None`.

        If `selector` is a connection id without an entry, the entry of another selector whose first connection has this
        id is used.
        """
        others = (self._entries[name] for name in self._selectors.get(selector, ()))
        same = (entry for entry in others if entry.first.connection.id == selector)
        entry = self._entries.get(selector) or next(same, None)
        return None if entry is None else StaleEntry(found=entry.first, changed=entry.changed)

    def mark(self) -> ReadMark:
        """Return the mark for a read that begins now."""
        return ReadMark(at=self._clock.monotonic(), epoch=self._epoch, changes=self._changes)

    def put(self, selector: str, first: OpenConnection | None, mark: ReadMark, *, others: Sequence[str] = ()) -> None:
        """Cache the result of a read that began at `mark`, unless a write has been reported since then.

        `first` is `None` if the selector names no connection. `others` are the ids of the other connections that the
        selector names; a write to any of them also invalidates the entry.
        """
        if mark.changes != self._changes:
            return
        self._drop(selector)
        if first is None:
            return
        ids = (first.connection.id, *others)
        self._entries[selector] = _CacheEntry(first=first, ids=ids, at=mark.at, epoch=mark.epoch)
        for name in ids:
            self._selectors[name] = (*self._selectors.get(name, ()), selector)
        self._size += len(ids)
        while self._size > self._limit:
            self._drop(next(iter(self._entries)))

    async def drain(self) -> None:
        """Stop polling."""
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling

    def _drop(self, selector: str) -> None:
        """Remove the entry of a selector."""
        entry = self._entries.pop(selector, None)
        for name in () if entry is None else entry.ids:
            self._size -= 1
            left = tuple(other for other in self._selectors[name] if other != selector)
            if left:
                self._selectors[name] = left
            else:
                del self._selectors[name]

    def _changed(self, changed: ChangeNotice) -> None:
        self._changes += 1
        if changed.connections is None:
            selectors = set(self._entries)
        else:
            selectors = {name for one in changed.connections for name in self._selectors.get(one, ())}
            if changed.membership_changed:
                selectors |= {name for name in self._entries if ":" in name}  # account and owner selectors
        for selector in selectors:
            if changed.erased:
                self._drop(selector)
            else:
                self._entries[selector] = dataclasses.replace(self._entries[selector], changed=True)

    async def _poll(self, now: float) -> None:
        with suppress(StoreUnavailable):
            version = await self._store.data_version()
            if version != self._version:
                self._version = version
                self._epoch += 1
            self._polled_at = now

    def _poll_ended(self, poll: asyncio.Task[None]) -> None:
        self._polling = None
        if not poll.cancelled():
            poll.result()
