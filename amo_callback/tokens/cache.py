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

from amo_callback.errors import StoreUnavailable
from amo_callback.model import ChangeNotice, Connection, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_callback.clock import Clock
    from amo_callback.store import Store

CONNECTIONS = 10_000
_CERTAIN = 1.0
"""Seconds within which another process's change is seen."""
_LOOK = 0.4
"""Seconds between two looks at whether another process has changed anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadMark:
    """When a read was begun: what it returns is no newer than that."""

    at: float
    look: int
    changes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a read has found: values only, so that the search for garbage has little to look through."""

    connections: tuple[Connection, ...] = field(repr=False)
    at: float
    look: int
    changed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Last:
    """What was known last; where it was `changed` since then, nobody knows into what."""

    connections: tuple[Connection, ...] = field(repr=False)
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

    def certain(self, selector: str) -> Sequence[Connection] | None:
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

    def last(self, selector: str) -> Last | None:
        """Return what a selector named when that was last known; of an id also where another selector named it."""
        if (found := self._found.get(selector)) is not None:
            return Last(connections=found.connections, changed=found.changed)
        for name in self._selectors.get(selector, ()):
            found = self._found[name]
            named = tuple(one for one in found.connections if one.id == selector)
            return Last(connections=named, changed=found.changed)
        return None

    def begin(self) -> ReadMark:
        """Return the moment before a read."""
        return ReadMark(at=self._clock.monotonic(), look=self._look, changes=self._changes)

    def keep(self, selector: str, connections: Sequence[Connection], moment: ReadMark) -> None:
        """Remember what a read has found; not one that a write of this process overtook, for it may be of before."""
        living = tuple(one for one in connections if one.status is not Status.DISCONNECTED)
        if moment.changes != self._changes:
            return
        self._drop(selector)
        if not living:
            return  # whoever asks for what is not there may ask for anything
        self._found[selector] = _Found(connections=living, at=moment.at, look=moment.look)
        for one in living:
            self._selectors[one.id] = (*self._selectors.get(one.id, ()), selector)
        self._held += len(living)
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
            left = tuple(name for name in self._selectors[one.id] if name != selector)
            if left:
                self._selectors[one.id] = left
            else:
                del self._selectors[one.id]

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
