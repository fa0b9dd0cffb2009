"""What the parts of a process need from outside: store, client of AMO, keys, time, log, rules, and the stop signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from amo_callback.amo.client import AmoClient
    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.events import Event, Observer
    from amo_callback.model import RefreshRules
    from amo_callback.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """The outside of one process, shared by its parts; never one of the parts."""

    store: Store
    amo: AmoClient
    cipher: Cipher
    clock: Clock
    observer: Observer
    random: Callable[[], float]
    rules: RefreshRules
    process: str
    """The name of this process, in its claims and in the history."""
    stop: asyncio.Event
    """Set once nothing new may be sent to AMO; what has been sent goes on to its end."""


async def record_event(event: Event, core: Core) -> None:
    """Store an event that belongs to no other write; where the store is out of reach, only report it."""
    try:
        await core.store.record(event)
    except StoreUnavailable:
        core.observer(event)
