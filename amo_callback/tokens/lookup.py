"""The look-up of connections by selector: a connection's id, `account:ID` or `owner:ID`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import Ambiguous, NeedsReauth, NotFound, StoreUnavailable
from amo_callback.model import Connection, Status
from amo_callback.tokens.cache import OpenConnection, open_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.core import Core
    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.tokens.cache import ConnectionCache

_ACCOUNT = "account:"
OWNER = "owner:"


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupResult:
    """The first connection that a selector names; after a `store_error`, the last known connection."""

    found: OpenConnection
    store_error: StoreUnavailable | None = None
    changed: bool = False
    """Whether the row has changed since it was read, so that its pair may have been replaced."""


class ConnectionLookup:
    """The look-up of connections, including their pending writes."""

    def __init__(self, core: Core, *, pending_writes: PendingWrites, cache: ConnectionCache) -> None:
        self._core = core
        self._pending_writes = pending_writes
        self._cache = cache

    def cached(self, selector: str) -> OpenConnection | None:
        """Return the first connection of a selector from the cache, or `None` if the cache has no valid entry."""
        known = self._cache.get(selector)
        return None if known is None else self._newest(known)

    async def get(self, selector: str, *, reread: bool = False) -> LookupResult:
        """Return the first connection that a selector names.

        The connection comes from the cache if it is cached and `reread` is false. If the store is unreachable, the last
        known connection is returned with the error. Raises `NotFound`, and `StoreUnavailable` if no connection is
        known.
        """
        if not reread and (known := self.cached(selector)) is not None:
            return LookupResult(found=known)
        try:
            [first, *_] = await self.find(selector)
        except StoreUnavailable as error:
            stale = self._cache.get_stale(selector)
            if stale is None:
                raise
            newest = self._newest(stale.found)
            changed = stale.changed and newest is stale.found
            return LookupResult(found=newest, store_error=error, changed=changed)
        return LookupResult(found=self.cached(selector) or open_connection(first, self._core))

    def _newest(self, stored: OpenConnection) -> OpenConnection:
        newest = self._pending_writes.overlay(stored.connection)
        return stored if newest is stored.connection else open_connection(newest, self._core)

    async def find(self, selector: str) -> Sequence[Connection]:
        """Return the connections that fit a selector; the one that the selector names comes first.

        `account:` names the active connection that was connected last. `owner:` names the connection that the user
        connected last, whatever its status. Raises `NotFound`, and `NeedsReauth` if AMO's hook ended the user's
        ownership of the named connection.
        """
        found = await self.find_all(selector)
        if found[0].status is Status.DISCONNECTED:
            raise NeedsReauth(Status.DISCONNECTED)
        return found

    async def find_all(self, selector: str) -> Sequence[Connection]:
        """Return the same connections as `find`; if AMO's hook ended the ownership, a connection is disconnected."""
        if selector.startswith(OWNER):
            return self._existing(await self._read(selector))
        account_id = selector.removeprefix(_ACCOUNT) if selector.startswith(_ACCOUNT) else None
        if account_id == "":
            raise NotFound  # an empty id would match every connection with an unknown account
        try:
            stored = await self._read(selector)
        except StoreUnavailable:
            held = self._pending_writes.find(connection_id=selector, account_id=account_id or "")
            if held is None:
                raise
            return [held]
        if not stored:
            held = self._pending_writes.find(connection_id=selector, account_id=account_id or "")
            known = None if held is None else await self._core.store.connection(held.id)
            if held is not None and not (known and known.status is Status.DISCONNECTED):
                return [held]
        return self._existing(stored)

    async def _read(self, selector: str) -> Sequence[Connection]:
        """Read the store and cache the result."""
        mark = self._cache.mark()
        stored: Sequence[Connection]
        if selector.startswith(OWNER):
            stored = await self._core.store.connections_named(selector.removeprefix(OWNER))
        elif selector.startswith(_ACCOUNT):
            stored = await self._core.store.connections_of(selector.removeprefix(_ACCOUNT))
        else:
            connection = await self._core.store.connection(selector)
            stored = [] if connection is None or connection.status is Status.DISCONNECTED else [connection]
        is_named = bool(stored) and stored[0].status is not Status.DISCONNECTED
        first = open_connection(stored[0], self._core) if is_named else None
        self._cache.put(selector, first, mark, others=[one.id for one in stored[1:]])
        return stored

    def _existing(self, stored: Sequence[Connection]) -> Sequence[Connection]:
        found = [one if one.status is Status.DISCONNECTED else self._pending_writes.overlay(one) for one in stored]
        if not found:
            raise NotFound
        return found

    async def find_one(self, selector: str) -> Connection:
        """Return the only connection that fits a selector; raises `NotFound`, and `Ambiguous` if there are several.

        A connection of which AMO's hook ended the ownership is disconnected.
        """
        [first, *others] = await self.find_all(selector)
        if others:
            raise Ambiguous
        return first
