"""The environment of a process: store, AMO client, encryption keys, clock, observer, rules and stop signal."""

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
    """The environment that all components of a process share; it contains no components itself."""

    store: Store
    amo: AmoClient
    cipher: Cipher
    clock: Clock
    observer: Observer
    random: Callable[[], float]
    rules: RefreshRules
    process: str
    """The name of this process, used in claims and in the history."""
    stop: asyncio.Event
    """The stop signal. After it is set, no new work is started; work in progress is finished."""


async def record_event(event: Event, core: Core) -> None:
    """Store an event in a write of its own; if the store is unavailable, pass the event only to the observer."""
    try:
        await core.store.record(event)
    except StoreUnavailable:
        core.observer(event)
