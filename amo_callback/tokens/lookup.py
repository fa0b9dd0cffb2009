"""Which connections a selector names: an id, `account:ID`, or `owner:ID`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import Ambiguous, NotFound, StoreUnavailable
from amo_callback.model import Connection, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.refresh.pending_writes import PendingWrites
    from amo_callback.store import Store
    from amo_callback.tokens.cache import ConnectionCache

_ACCOUNT, _OWNER = "account:", "owner:"


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupResult:
    """The connection that a selector names; where the store was `away`, the one that it named when that was known."""

    connection: Connection
    away: StoreUnavailable | None = None
    changed: bool = False
    """Whether it was changed since then: another pair may have taken the place of the one that is known."""


class ConnectionLookup:
    """Find connections, each with what is not yet stored of it."""

    def __init__(self, *, store: Store, pending_writes: PendingWrites, memory: ConnectionCache) -> None:
        self._store = store
        self._pending_writes = pending_writes
        self._memory = memory

    def remembered(self, selector: str) -> Connection | None:
        """Return the first connection of those that a selector names, where memory is certain of them."""
        stored = self._memory.certain(selector)
        return None if stored is None else self._pending_writes.newest(stored[0])

    async def recall(self, selector: str, *, anew: bool = False) -> LookupResult:
        """Return the first connection of those that a selector names, from memory where that is certain.

        Where it is to be read `anew`, or is not certain, it is read; where it cannot be, memory is all there is.
        """
        if not anew and (connection := self.remembered(selector)) is not None:
            return LookupResult(connection=connection)
        try:
            return LookupResult(connection=(await self.find(selector))[0])
        except StoreUnavailable as error:
            last = self._memory.last(selector)
            if last is None:
                raise
            newest = self._pending_writes.newest(last.connections[0])
            changed = last.changed and newest is last.connections[0]
            return LookupResult(connection=newest, away=error, changed=changed)

    async def find(self, selector: str) -> Sequence[Connection]:
        """Return the connections that a selector names, the freshest active one first; raises `NotFound`."""
        if selector.startswith(_OWNER):
            return self._living(await self._read(selector))
        account_id = selector.removeprefix(_ACCOUNT) if selector.startswith(_ACCOUNT) else None
        if account_id == "":
            raise NotFound  # it would name everyone whose account AMO did not tell
        try:
            stored = await self._read(selector)
        except StoreUnavailable:
            held = self._pending_writes.find(connection_id=selector, account_id=account_id or "")
            if held is None:
                raise
            return [held]
        if not stored:
            held = self._pending_writes.find(connection_id=selector, account_id=account_id or "")
            known = None if held is None else await self._store.connection(held.id)
            if held is not None and not (known and known.status is Status.DISCONNECTED):
                return [held]
        return self._living(stored)

    async def _read(self, selector: str) -> Sequence[Connection]:
        """Read what the store has, and remember it."""
        moment = self._memory.begin()
        stored: Sequence[Connection]
        if selector.startswith(_OWNER):
            stored = await self._store.connections_owned(selector.removeprefix(_OWNER))
        elif selector.startswith(_ACCOUNT):
            stored = await self._store.connections_of(selector.removeprefix(_ACCOUNT))
        else:
            connection = await self._store.connection(selector)
            stored = [] if connection is None else [connection]
        self._memory.keep(selector, stored, moment)
        return stored

    def _living(self, stored: Sequence[Connection]) -> Sequence[Connection]:
        found = [self._pending_writes.newest(one) for one in stored if one.status is not Status.DISCONNECTED]
        if not found:
            raise NotFound
        return found

    async def only(self, selector: str) -> Connection:
        """Return the one connection that a selector names; raises `NotFound`, and `Ambiguous` where it names more."""
        [first, *others] = await self.find(selector)
        if others:
            raise Ambiguous
        return first
