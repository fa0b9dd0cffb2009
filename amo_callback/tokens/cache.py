"""What was read of connections, by what they were asked for, so that a hand-out does not read it again.

It is certain for less than a second, and only until this process changes it:

- What this process writes it hears of at once, and so it does of others' writes where the store can tell. A read that a
  write overtook is not remembered at all.
- Where several instances share the store, what was read is certain for that second and no longer: what was not heard of
  is read then.
- Where none do, a look at the store's `data_version` tells what nobody told of: where that stays the same, all that
  was remembered is certain for one more second. It is looked at in the background, in good time, so that no caller
  waits for it; and where it cannot be, or is too late, a caller reads as if nothing were remembered.
- What was read before the store was last out of reach is no longer certain: another instance may hold a newer pair,
  which it could not store.

What is no longer certain, or was changed, is kept all the same, unless it was erased: it is the last that is known
while the store is away.
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
_CERTAIN = 1.0
"""Seconds within which another process's change is seen."""
_LOOK = 0.4
"""Seconds between two looks at whether another process has changed anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """An access token, and where it may be sent."""

    value: str = field(repr=False)
    issued_at: datetime
    expires_at: datetime
    base_url: str | None
    """The address of AMO's API for the account; `None` where the stored host is not on the allow list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenConnection:
    """What a hand-out needs of a connection: never the sealed pair, nor the refresh token."""

    connection: Connection
    token: AccessToken | None
    """`None` where no key decrypts the pair."""


def open_connection(connection: Connection, core: Core) -> OpenConnection:
    """Decrypt the access token of a connection."""
    pair, token = core.cipher.pair_of(connection), None
    if pair is not None:
        base_url = None
        with suppress(HostNotAllowed):  # the allow list stays as it is until the process ends
            base_url = core.amo.base_url(connection.domain)
        token = AccessToken(
            value=pair.access_token, issued_at=pair.issued_at, expires_at=pair.expires_at, base_url=base_url
        )
    return OpenConnection(connection=dataclasses.replace(connection, sealed_pair=None), token=token)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadMark:
    """When a read was begun: what it returns is no newer than that."""

    at: float
    look: int
    changes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a read has found: values only, so that the search for garbage has little to look through."""

    connections: tuple[OpenConnection, ...]
    at: float
    look: int
    changed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Last:
    """What was known last; where it was `changed` since then, nobody knows into what."""

    connections: tuple[OpenConnection, ...]
    changed: bool


class ConnectionCache:
    """Remember up to `limit` connections, the last that were asked for."""

    def __init__(self, *, store: Store, clock: Clock, limit: int = CONNECTIONS) -> None:
        self._store = store
        self._several = store.shared is not None
        self._clock = clock
        self._limit = limit
        self._found: OrderedDict[str, _Found] = OrderedDict()
        self._selectors: dict[str, tuple[str, ...]] = {}
        """By which selectors each connection is remembered."""
        self._held = 0
        self._changes = 0
        """How often this process has changed anything."""
        self._version: int | None = None
        self._look = 0
        """How often a look has found that another process did."""
        self._looked_at = -math.inf
        self._next_look_at = -math.inf
        self._looking: asyncio.Task[None] | None = None
        store.subscribe(self._changed)

    def __len__(self) -> int:
        """Count the connections, one that several selectors name several times."""
        return self._held

    def get(self, selector: str) -> Sequence[OpenConnection] | None:
        """Return what a selector names, where that is certain; and see to it that it stays so."""
        now = self._clock.monotonic()
        if not self._several and now >= self._next_look_at and self._looking is None:
            self._next_look_at = now + _LOOK
            self._looking = asyncio.create_task(self._look_out(now), name="memory:look")
            self._looking.add_done_callback(self._looked)
        found = self._found.get(selector)
        if found is None or found.changed or found.look != self._look:
            return None
        if now - max(found.at, self._looked_at) >= _CERTAIN:
            return None
        if (failed_at := self._store.failed_at) is not None and failed_at > found.at:
            return None
        self._found.move_to_end(selector)
        return found.connections

    def get_stale(self, selector: str) -> Last | None:
        """Return what a selector named when that was last known; of an id also where another selector named it."""
        if (found := self._found.get(selector)) is not None:
            return Last(connections=found.connections, changed=found.changed)
        for name in self._selectors.get(selector, ()):
            found = self._found[name]
            named = tuple(one for one in found.connections if one.connection.id == selector)
            return Last(connections=named, changed=found.changed)
        return None

    def mark(self) -> ReadMark:
        """Return the moment before a read."""
        return ReadMark(at=self._clock.monotonic(), look=self._look, changes=self._changes)

    def put(self, selector: str, connections: Sequence[OpenConnection], moment: ReadMark) -> None:
        """Remember what a read has found; not one that a write of this process overtook, for it may be of before."""
        if moment.changes != self._changes:
            return
        self._drop(selector)
        if not connections:
            return  # a caller may ask for any number of selectors that name nothing
        self._found[selector] = _Found(connections=tuple(connections), at=moment.at, look=moment.look)
        for name in [one.connection.id for one in connections]:
            self._selectors[name] = (*self._selectors.get(name, ()), selector)
        self._held += len(connections)
        while self._held > self._limit:
            self._drop(next(iter(self._found)))

    async def drain(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    def _drop(self, selector: str) -> None:
        found = self._found.pop(selector, None)
        for one in found.connections if found is not None else ():
            self._held -= 1
            name = one.connection.id
            left = tuple(other for other in self._selectors[name] if other != selector)
            if left:
                self._selectors[name] = left
            else:
                del self._selectors[name]

    def _changed(self, changed: ChangeNotice) -> None:
        self._changes += 1
        if changed.connections is None:
            names = set(self._found)
        else:
            names = {name for one in changed.connections for name in self._selectors.get(one, ())}
            if changed.belonging:
                names |= {name for name in self._found if ":" in name}
        for name in names:
            if changed.erased:
                self._drop(name)
            else:
                self._found[name] = dataclasses.replace(self._found[name], changed=True)

    async def _look_out(self, now: float) -> None:
        with suppress(StoreUnavailable):
            version = await self._store.data_version()
            if version != self._version:
                self._version = version
                self._look += 1
            self._looked_at = now

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._looking = None
        if not look.cancelled():
            look.result()
