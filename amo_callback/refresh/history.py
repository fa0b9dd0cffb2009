"""What happened outside of any write: remembered where that can be done, and told in any case."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from amo_callback.errors import StoreUnavailable

if TYPE_CHECKING:
    from amo_callback.events import Event, Observer
    from amo_callback.store import Store


async def record_event(event: Event, *, store: Store, observer: Observer) -> None:
    """Write an event into the history, and tell it."""
    with suppress(StoreUnavailable):
        await store.record(event)
    observer(event)
